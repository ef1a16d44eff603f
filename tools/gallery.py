"""One sheet with the best, the median and the worst samples of a run, truth beside prediction.

    python tools/gallery.py runs/main data/pets                       runs/main/main_gallery.png
    python tools/gallery.py runs/main data/pets --split val --count 4 --out sheet.png

Samples are ordered by the primary metric of the script's first task and drawn by its tasks. A
stopped run is shown with its best weights so far. RUN is the folder of a run or, where several
share a folder, NAME_model_lite.pt or NAME_last.pt in it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS
from engine.evaluation import evaluate, predict, sample_scores
from engine.settings import Parser, UserError, whole_number
from tools.shared.common import as_path, choose_device, command
from tools.shared.networks import LAST, LITE, open_data, open_network

BATCH_SIZE = 32
PANEL, DPI = 1.7, 200  # width of an image in inches, and pixels per inch: enough for thin lines
MOST = 20  # samples per group, so that the sheet stays small enough to open


def choose(scores, count, higher_is_better=True):
    """{group: numbers} of the `count` best, median and worst of scores (N,), NaN left out."""
    order = scores.argsort(descending=higher_is_better, stable=True)
    order = order[~scores[order].isnan()].tolist()
    count = min(count, len(order))
    starts = {"best": 0, "median": (len(order) - count) // 2, "worst": len(order) - count}
    return {group: order[start : start + count] for group, start in starts.items()}


def draw_sheet(path, groups, heads, dataset, outputs, tasks):
    """Write the sheet, a row for each {group: numbers}; `heads` and `outputs` are {number: ...}."""
    from engine.pictures import Figure, drawn, plain_style, save, show

    columns, (height, width) = 2 * len(groups["median"]), dataset.side
    size = (PANEL * columns, len(groups) * (PANEL * height / width + 0.5))
    with plain_style():
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        axes = figure.subplots(len(groups), columns, squeeze=False)
        for row, (group, numbers) in zip(axes, groups.items(), strict=True):
            row[0].set_ylabel(group, fontsize=12)
            for i, number in enumerate(numbers):
                image, targets = dataset[number]
                titles = f"sample {number}: truth", heads[number]
                pair = zip(row[2 * i :], titles, (targets, outputs[number]), strict=False)
                for axis, title, values in pair:
                    picture, words = drawn(image, values, tasks, dataset.class_names)
                    lines = words.replace(", probability ", " ").replace(", ", "\n")
                    show(axis, picture, f"{title}\n{lines}", fontsize=8)
        save(figure, path)


def find_weights(folder):
    """NAME_model_lite.pt, or NAME_last.pt of a stopped run; UserError unless it is one run."""
    found = {}
    for ending in (LAST, LITE):  # a finished run has both
        found |= {p.name.removesuffix(ending): p for p in sorted(folder.glob(f"*{ending}"))}
    if len(found) != 1:
        expected = f"the folder of one run, with NAME{LITE} or NAME{LAST}"
        names = ", ".join(path.name for path in found.values()) or "none"
        raise UserError(f"{folder}: expected {expected}, found {names}")
    return next(iter(found.values()))


@command
def main(argv):
    """Evaluate the split and write the sheet; raises UserError."""
    parser = Parser("gallery.py", __doc__)
    add, counts = parser.add_argument, whole_number(1, MOST)
    add("run", metavar="RUN", help="the folder of a run, finished or stopped")
    add("data", metavar="DATA", help="the data it was trained on")
    add("--split", choices=SPLITS, default="test", help="the split to show (test)")
    add("--count", type=counts, default=3, metavar="N", help="samples in each group (3)")
    add("--out", metavar="FILE", help="the PNG file (NAME_gallery.png beside the run)")
    add("--device", metavar="DEVICE", help="cpu, cuda, ... (CUDA if there is a GPU)")
    options = parser.parse_args(argv)
    if options.out is not None and not options.out.lower().endswith(".png"):
        parser.error(f"--out: expected the name of a PNG file, found {options.out}")
    processes, run = choose_device(options.device), as_path(options.run, "RUN")
    weights = run if run.is_file() else find_weights(run)
    network, tasks, history = open_network(weights, processes.device)
    folder = as_path(options.data, "DATA")
    dataset = open_data(folder, options.split, history)
    name, task = next(iter(tasks.items()))
    scores = sample_scores(evaluate(network, dataset, tasks, BATCH_SIZE, processes)[name], task)
    groups = choose(scores, options.count, task.higher_is_better)
    numbers = sorted({number for numbers in groups.values() for number in numbers})
    if not numbers:
        place = folder / options.split
        raise UserError(f"{place}: expected a sample with known {name}, found none")
    outputs = predict(network, dataset[numbers][0].to(processes.device))
    heads = {number: f"{task.primary.replace('_', ' ')} {scores[number]:.2f}" for number in numbers}
    path = as_path(options.out or weights.with_name(f"{history['name']}_gallery.png"), "--out")
    draw_sheet(path, groups, heads, dataset, dict(zip(numbers, outputs, strict=True)), tasks)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
