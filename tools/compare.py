"""Compare runs, scripts x seeds x folds: one Markdown table, and one picture.

    python tools/compare.py runs/128                      the table on stdout
    python tools/compare.py runs/128 --all                with all metrics, not only primary ones
    python tools/compare.py runs/128 --out docs           also docs/compare.md and docs/compare.png
    python tools/compare.py runs/128 --split val          values of the best epoch, for choosing
    python tools/compare.py runs/128 --export results/128 one small text file for each run
    python tools/compare.py results/128                   the same table from these files
    python tools/compare.py dwa=runs/a fixed=runs/b       runs of one script under different labels

Folders are searched to any depth. Runs of one script with different constants become separate
columns; runs with different test images are folds of one column. Runs with different data or
budgets are refused. With --train-may-differ the training data may differ, for example in the images
without a box; then the number of steps instead of epochs must be the same.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.commandline import Parser
from parts.errors import UserError
from parts.files import replacing
from tools.shared import histories
from tools.shared.common import EXPERIMENTS, command, complain, make_folder
from tools.shared.comparison import FREE, markdown, tested
from tools.shared.curves import save_picture

EQUAL = (*histories.BUDGET, "demo", "processes")  # settings that must be the same for all runs


def conditions(run, train_may_differ):
    """{(scope, name): value} of what must be equal: in all runs (scope "") or in one test set."""
    whole = {key: run["config"].get(key) for key in EQUAL} | {"side": run["side"]}
    for task, entry in run["tasks"].items():
        whole[f"task {task}"] = [entry[k] for k in ("primary", "higher_is_better", "reference")]
    fold = {}
    if train_may_differ:
        fold["training steps"] = whole.pop("EPOCHS") * histories.steps_per_epoch(run)
    for split in [split for split in run["data"] if split != "train" or not train_may_differ]:
        fold[f"{split} samples"] = run["data"][split]
        fold[f"{split} data"] = run["data_fingerprint"].get(split)
    test = fold.pop("test data")
    whole |= {f"data with source line {line}": test for line in run["test_lines"] or ()}
    return {("", k): v for k, v in whole.items()} | {(test, k): v for k, v in fold.items()}


def refuse_different(runs, train_may_differ):
    """UserError if [(path, summary)] differ in data or budget, or folds share a test image."""
    known = {}
    for path, run in runs:
        found = conditions(run, train_may_differ)
        differ = [key for key, v in found.items() if known.get(key, (path, v))[1] != v][:3]
        if differ:
            other = known[differ[0]][0]
            how = ", ".join(f"{k[1]} = {found[k]}, not {known[k][1]}" for k in differ)
            raise UserError(f"{path}: cannot be compared with {other}: it has {how}")
        known = {key: (path, value) for key, value in found.items()} | known


def group(runs):
    """{column: [summary]} of [(path, summary)]; UserError if two are the same run."""
    columns, paths = {}, {}
    order = [*EXPERIMENTS, *(run["name"] for _, run in runs)]
    for path, run in sorted(runs, key=lambda pair: order.index(pair[1]["name"])):
        label = _label(run, [other for _, other in runs if other["name"] == run["name"]])
        key = label, run["seed"], histories.test_set(run)
        if key in paths:
            raise UserError(
                f"{path}: expected one run of {label} with seed {run['seed']} on its data, found "
                f"another in {paths[key]}; tell them apart with LABEL=FOLDER"
            )
        paths[key] = path
        columns.setdefault(label, []).append(run)
    return columns


def _label(run, namesakes):
    """The name, and the settings in which the run differs from others of its name."""
    ours, *others = (
        {k: v for k, v in r["config"].items() if k.isupper() and k not in FREE}
        | ({"weights": "given"} if r["weights_from"] else {})
        for r in (run, *namesakes)
    )
    differ = [k for k, v in ours.items() if any(other.get(k) != v for other in others)]
    settings = ", ".join(f"{name} {ours[name]}" for name in differ)
    return f"{run['name']} ({settings})" if settings else run["name"]


def choose_baseline(wanted, columns):
    """The column to compare with; UserError if it is missing, or shares no image with another."""
    if wanted and wanted not in columns:
        raise UserError(f"--baseline: expected one of {', '.join(columns)}, found {wanted}")
    tasks = [entry for column in columns.values() for entry in column[0]["tasks"].values()]
    references = [entry["reference"] for entry in tasks if entry["reference"] in columns]
    baseline = wanted or [*references, *columns][0]
    ours = tested(columns[baseline])
    for label, column in columns.items():
        theirs = tested(column)
        if ours and theirs and not ours.keys() & theirs.keys():
            how = f"it has test data = {', '.join(theirs)}, not {', '.join(ours)}"
            raise UserError(f"{label}: cannot be compared with {baseline}: {how}")
    return baseline


@command
def main(argv):
    """Read and check the runs, and print or write what the flags ask for; raises UserError."""
    parser = Parser("compare.py", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="[LABEL=] file or folder of runs")
    add("--split", choices=("test", "val"), default="test", help="the split to show (test)")
    add("--baseline", metavar="COLUMN", help="for the gains (a task's reference, or the first)")
    add("--all", action="store_true", help="show all metrics, not only the primary ones")
    text = "require only equal val and test data and numbers of steps"
    add("--train-may-differ", action="store_true", help=text)
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--out", metavar="FOLDER", help="also write compare.md and compare.png")
    target.add_argument("--export", metavar="FOLDER", help="only write a small file for each run")
    options = parser.parse_args(argv)
    runs = histories.find(options.runs)
    if options.export:
        folder = make_folder(options.export, "--export")
        print(*histories.export(runs, folder), sep="\n")
        return
    refuse_different(runs, options.train_may_differ)
    columns = group(runs)
    baseline = choose_baseline(options.baseline, columns)
    table = markdown(columns, options.split, baseline, options.all)
    if options.out:
        folder = make_folder(options.out, "--out")
        with replacing(folder / "compare.md") as temporary:
            temporary.write_text(table, encoding="utf-8")
        save_picture(folder / "compare.png", columns, options.split, baseline)
        complain(f"written to {folder}: compare.md and compare.png")
    print(table, end="")


if __name__ == "__main__":
    sys.exit(main())
