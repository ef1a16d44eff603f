"""Compare runs across scripts, seeds and folds: tables, statements, and one picture.

    python tools/compare.py runs/128                      the tables on stdout
    python tools/compare.py runs/128 --baseline main      compared with main, if it has the task
    python tools/compare.py runs/128 --only main OEQ      only these columns
    python tools/compare.py runs/128 --all                with all metrics, not only primary ones
    python tools/compare.py runs/128 --out docs           also docs/compare.md and docs/compare.png
    python tools/compare.py runs/128 --split val          values of the best epoch, for choosing
    python tools/compare.py runs/128 --export 128.jsonl   a small text file of all these runs
    python tools/compare.py 128.jsonl                     the same tables from this file
    python tools/compare.py dwa=runs/a fixed=runs/b       runs of one script under different labels

Folders are searched to any depth. Runs of one script with different constants, starting weights or
numbers of parameters become separate columns; runs with different test images are folds of one
column. Each metric is compared with --baseline, else with the single-task network of its task, else
with the first column that has it. Runs with different data or budgets are refused. With
--train-may-differ the training data may differ, for example in the images without a box; then the
number of steps must be equal instead of the number of epochs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.commandline import Parser
from parts.errors import UserError
from parts.files import replacing
from tools.shared import histories
from tools.shared.common import as_path, command, make_folder, to_stderr
from tools.shared.comparison import differences, group, metrics, reference
from tools.shared.forest import save_picture
from tools.shared.tables import markdown, test_sizes

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
        prints = run["data_fingerprint"].get(split, {})
        fold |= {f"{split} {file}": text for file, text in prints.items()}
    test = histories.test_set(run)
    whole |= {f"data with source line {line}": test for line in run["test_lines"] or ()}
    return {("", k): v for k, v in whole.items()} | {(test, k): v for k, v in fold.items()}


def refuse_different(runs, train_may_differ):
    """UserError if [(path, summary)] differ in data or budget, or if folds share a test image."""
    known = {}
    for path, run in runs:
        found = conditions(run, train_may_differ)
        differ = [key for key, v in found.items() if known.get(key, (path, v))[1] != v][:3]
        if differ:
            other = known[differ[0]][0]
            how = ", ".join(f"{k[1]} = {found[k]}, not {known[k][1]}" for k in differ)
            raise UserError(f"{path}: cannot be compared with {other}: it has {how}")
        known = {key: (path, value) for key, value in found.items()} | known


def choose(columns, flag, labels):
    """{label: column} of some columns; UserError if one is missing."""
    for label in labels:
        if label not in columns:
            raise UserError(f"{flag}: expected one of {', '.join(columns)}, found {label}")
    return {label: columns[label] for label in labels}


def refuse_unpaired(columns, split, wanted):
    """UserError if a column shares no test image with the one it is compared with."""
    for metric in metrics(columns, split):
        against = reference(columns, metric, wanted)
        ours = test_sizes(columns[against])
        for label, column in columns.items():
            theirs = test_sizes(column) if metric.task in column[0]["tasks"] else ()
            if ours and theirs and not ours.keys() & theirs.keys():
                how = f"it has test data = {', '.join(theirs)}, not {', '.join(ours)}"
                raise UserError(f"{label}: cannot be compared with {against}: {how}")


@command
def main(argv):
    """Read and check the runs, and print or write what the flags ask for; raises UserError."""
    parser = Parser("compare.py", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="file or folder of runs; LABEL=PATH renames them")
    text = "the split to show (default: test)"
    add("--split", choices=("test", "val"), default="test", help=text)
    text = "column to compare with (default: the task's single-task network, else the first)"
    add("--baseline", metavar="COLUMN", help=text)
    add("--only", nargs="+", metavar="COLUMN", help="show only these columns")
    add("--all", action="store_true", help="show all metrics, not only the primary ones")
    text = "accept different training data, with an equal number of steps"
    add("--train-may-differ", action="store_true", help=text)
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--out", metavar="FOLDER", help="also write compare.md and compare.png")
    target.add_argument("--export", metavar="FILE", help="only write the runs to this .jsonl file")
    options = parser.parse_args(argv)
    runs = histories.find(options.runs)
    if options.export:
        if options.only:
            parser.error("--only: cannot be combined with --export, which writes all runs")
        export(runs, as_path(options.export, "--export"))
        return
    refuse_different(runs, options.train_may_differ)
    columns = group(runs)
    columns = choose(columns, "--only", options.only or columns)
    choose(columns, "--baseline", [options.baseline] if options.baseline else [])
    refuse_unpaired(columns, options.split, options.baseline)
    table = markdown(columns, options.split, options.baseline, options.all)
    if options.out:
        folder = make_folder(options.out, "--out")
        with replacing(folder / "compare.md") as temporary:
            temporary.write_text(table, encoding="utf-8")
        found = differences(columns, options.split, options.baseline)
        if found:
            save_picture(folder / "compare.png", found)
        to_stderr(f"written to {folder}: compare.md" + (" and compare.png" if found else ""))
    print(table, end="")


def export(runs, path):
    """Write [(place, summary)] as a series, each run once; raises UserError.

    The file may hold some of these runs already, but nothing else.
    """
    if path.suffix != ".jsonl":
        raise UserError(f"--export: expected a file that ends in .jsonl, found {path}")
    make_folder(path.parent, "--export")
    for place, run in runs:
        if run["unfinished"]:
            raise UserError(f"{place}: expected a finished run, found it {run['unfinished']}")
    lines = {f"{histories.to_line(run)}\n": (place, run) for place, run in runs}
    group(lines.values())  # two of the same name, seed and images could not be told apart
    if path.exists() and not set(path.open(encoding="utf-8", errors="replace")) <= lines.keys():
        hint = "give it as one of RUNS too, remove it, or choose another file"
        raise UserError(f"{path}: holds other content than these runs; {hint}")
    with replacing(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines)} runs")


if __name__ == "__main__":
    sys.exit(main())
