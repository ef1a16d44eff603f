"""Compare finished runs, scripts x seeds: one Markdown table, and one picture.

    python tools/compare.py runs/128                      the table on stdout
    python tools/compare.py runs/128 --out docs           also docs/compare.md and docs/compare.png
    python tools/compare.py runs/128 --split val          values of the best epoch, for choosing
    python tools/compare.py runs/128 --export results/128 one small text file for each run
    python tools/compare.py results/128                   the same table from these files
    python tools/compare.py dwa=runs/a fixed=runs/b       runs of one script that are told apart

Folders are searched to any depth. Runs of one name whose constants differ become columns of their
own. Runs whose data or budget differ are refused: exit code 2 and one line that says how. With
--train-may-differ the training data may, as when images without a box are left out; then not the
epochs but the steps must be the same.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import Parser, UserError

from engine.artefacts import replacing
from tools import histories
from tools.common import EXPERIMENTS, make_folder, run_tool
from tools.comparison import markdown
from tools.curves import save_picture

SAME = (*histories.BUDGET, "demo", "processes")  # settings that must be the same for all runs
FREE = ("SEED", "DEMO_EPOCHS")  # settings that make no variant


def conditions(run, train_may_differ):
    """{name: value} of what must be the same for all runs; without what a history does not tell."""
    found = {key: run["config"].get(key) for key in SAME} | {"side": run["side"]}
    if train_may_differ:
        found["training steps"] = found.pop("EPOCHS") * histories.steps_per_epoch(run)
    for split, count in run["data"].items():
        if split != "train" or not train_may_differ:
            found[f"{split} samples"] = count
            found[f"{split} data"] = (run.get("data_fingerprint") or {}).get(split)
    return {key: value for key, value in found.items() if value is not None}


def refuse_different(runs, train_may_differ):
    """Refuse runs whose data or budget differ.

    Args:
        runs: [(path, summary)].

    Raises:
        UserError: names two runs and how they differ.
    """
    known = {}
    for path, run in runs:
        found = conditions(run, train_may_differ)
        differ = {key: v for key, v in found.items() if known.get(key, (path, v))[1] != v}
        if differ:
            other = known[next(iter(differ))][0]
            how = ", ".join(f"{key} = {v}, not {known[key][1]}" for key, v in differ.items())
            raise UserError(f"{path}: cannot be compared with {other}: it has {how}")
        known = {key: (path, value) for key, value in found.items()} | known


def group(runs):
    """{column: {seed: summary}} in the order of EXPERIMENTS, then of appearance.

    Raises:
        UserError: two runs have the same name, settings and seed.
    """
    columns, paths = {}, {}
    for path, run in sorted(runs, key=lambda pair: _place(pair[1]["name"])):
        label = _label(run, [other for _, other in runs if other["name"] == run["name"]])
        key = label, run["seed"]
        if key in paths:
            raise UserError(
                f"{path}: expected one run of {label} with seed {run['seed']}, found another in "
                f"{paths[key]}; tell them apart with LABEL=FOLDER"
            )
        paths[key] = path
        columns.setdefault(label, {})[run["seed"]] = run
    return {label: dict(sorted(seeds.items())) for label, seeds in columns.items()}


def _place(name):
    return EXPERIMENTS.index(name) if name in EXPERIMENTS else len(EXPERIMENTS)


def _label(run, namesakes):
    """The name, and the settings in which it differs from others of its name."""
    config = run["config"]
    names = {name: None for other in namesakes for name in other["config"] if name not in FREE}
    differ = [n for n in names if any(o["config"].get(n) != config.get(n) for o in namesakes)]
    settings = ", ".join(f"{name} {config.get(name)}" for name in differ)
    return f"{run['name']} ({settings})" if settings else run["name"]


def compare(argv):
    """Read, check, and print or write what the flags ask for; raises UserError."""
    options = parse(argv)
    runs = histories.find(options.runs)
    if options.export:
        folder = make_folder(options.export, "--export")
        for path in histories.export(runs, folder):
            print(path)
        return
    refuse_different(runs, options.train_may_differ)
    columns = group(runs)
    if options.baseline not in columns and options.baseline != EXPERIMENTS[0]:
        raise UserError(
            f"--baseline: expected one of {', '.join(columns)}, found {options.baseline}"
        )
    table = markdown(columns, options.split, options.baseline)
    print(table, end="")
    if options.out:
        folder = make_folder(options.out, "--out")
        with replacing(folder / "compare.md") as temporary:
            temporary.write_text(table, encoding="utf-8")
        save_picture(folder / "compare.png", columns, options.split)
        print(f"written to {folder}: compare.md and compare.png", file=sys.stderr)


def parse(argv):
    """The options; a wrong one ends the process with code 2."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("compare.py", None, __doc__, formatter_class=formatter, allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="[LABEL=] file or folder of finished runs")
    add("--split", choices=("test", "val"), default="test", help="which values (test)")
    add("--baseline", default=EXPERIMENTS[0], help=f"of the gains ({EXPERIMENTS[0]})")
    help_text = "only val and test and the number of training steps must be the same"
    add("--train-may-differ", action="store_true", help=help_text)
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--out", metavar="FOLDER", help="also write compare.md and compare.png")
    target.add_argument("--export", metavar="FOLDER", help="only write NAME_seedK.json of each run")
    return parser.parse_args(argv)


def main(argv=None):
    """Run the tool; returns the exit code: 0, or 2 for a mistake or a damaged file."""
    return run_tool("compare.py", compare, argv)


if __name__ == "__main__":
    sys.exit(main())
