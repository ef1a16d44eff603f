"""Minutes of training until a validation value is reached, from the histories of runs.

    python benchmarks/time_to_quality.py RUN... [--level 0.80] [--out CURVE.png]

RUN is a run's folder, or a file as tools/compare.py --export writes it. The value is the primary
metric of its first task, which also chooses the best epoch. The minutes are those of whole epochs,
validation included.
"""

import sys
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from parts.commandline import Parser
from tools.shared.common import command
from tools.shared.histories import find


def curve(run):
    """The metric's name, minutes at the end of every epoch, and the values then."""
    task, entry = next(iter(run["tasks"].items()))
    name = f"{task}_{entry['primary']}"
    minutes = [seconds / 60 for seconds in accumulate(run["seconds"])]
    return name, minutes, run["curves"]["val"][name]


def first_to_reach(minutes, series, level, higher_is_better=True):
    """The first of the minutes whose value is `level` or better, as text."""
    sign = 1 if higher_is_better else -1
    pairs = zip(minutes, series, strict=True)
    reached = (m for m, value in pairs if value is not None and sign * value >= sign * level)
    found = next(reached, None)
    return "not reached" if found is None else f"{found:.1f} min"


@command
def main(argv):
    """Print a line per run, and draw the curves if a file is given; raises UserError."""
    parser = Parser("time_to_quality.py", __doc__)
    text = "[LABEL=]PATH of a run's folder or file"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=text)
    parser.add_argument("--level", type=float, default=0.80, help="value to reach (0.80)")
    parser.add_argument("--out", metavar="FILE", help="PNG of the curves")
    options = parser.parse_args(argv)
    curves = []
    for _, run in find(options.runs):
        name, minutes, series = curve(run)
        higher = next(iter(run["tasks"].values()))["higher_is_better"]
        commit = f", commit {run['commit'][:9]}" if run["commit"] else ""
        title = f"{run['name']}, seed {run['seed']}, {run['side'][0]} x {run['side'][1]}{commit}"
        print(f"{title}: {name} {first_to_reach(minutes, series, options.level, higher)}")
        curves.append((title, name, minutes, series))
    if options.out:
        draw(options.out, curves, options.level)


def draw(path, curves, level):
    """One line for each (title, metric, minutes, values)."""
    from parts.figures import Figure, save

    figure = Figure((7, 4), dpi=110, layout="constrained")
    axis = figure.subplots()
    for title, name, minutes, series in curves:
        axis.plot(minutes, [float("nan") if v is None else v for v in series], label=title)
        axis.set_ylabel(f"validation {name.replace('_', ' ')}")
    axis.axhline(level, color="grey", linestyle=":")
    axis.set_xlabel("minutes of training and validation")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
