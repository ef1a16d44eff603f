"""Minutes of training until a validation IoU is reached, from the histories of finished runs.

    python benchmarks/time_to_quality.py RUN... [--seg-iou 0.80] [--out CURVE.png]

RUN is a run's folder, or a file as tools/compare.py --export writes it. The minutes are those of
the whole epochs, validation included.
"""

import argparse
import sys
from itertools import accumulate
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.common import run_tool
from tools.histories import find


def curve(summary):
    """Minutes at the end of every epoch, and the validation IoU then."""
    minutes = [seconds / 60 for seconds in accumulate(summary["seconds"])]
    return minutes, summary["curves"]["val"]["seg_iou"]


def first_above(minutes, series, level):
    """The first of the minutes whose value is `level` or more, as text."""
    reached = (m for m, value in zip(minutes, series, strict=True) if value >= level)
    found = next(reached, None)
    return "not reached" if found is None else f"{found:.1f} min"


def main(argv=None):
    """Print a line per run, and draw the curves if a file is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="folders or files of finished runs")
    parser.add_argument("--seg-iou", type=float, default=0.80, help="validation IoU (0.80)")
    parser.add_argument("--out", help="PNG of the curves")
    settings = parser.parse_args(argv)
    figure, axis = plt.subplots(figsize=(7, 4), dpi=110, layout="constrained")
    for _, run in find(settings.runs):
        minutes, series = curve(run)
        name = f"{run['name']}, seed {run['seed']}, {run['side'][0]} x {run['side'][1]}"
        print(f"{name}: {first_above(minutes, series, settings.seg_iou)}")
        axis.plot(minutes, series, label=name)
    axis.axhline(settings.seg_iou, color="grey", linestyle=":")
    axis.set(xlabel="minutes of training and validation", ylabel="validation seg IoU")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    if settings.out:
        figure.savefig(settings.out)


if __name__ == "__main__":
    sys.exit(run_tool("time_to_quality", main, None))
