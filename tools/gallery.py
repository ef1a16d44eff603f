"""One sheet with the best, median and worst samples of a run, truth beside prediction.

    python tools/gallery.py runs/main data/pets                       runs/main/main_gallery.png
    python tools/gallery.py runs/main data/pets --split val --count 4 --out sheet.png

DATA is any folder in the H5 layout. Samples are ordered by the primary metric of the script's first
task; a wrong class is red. A stopped run is shown with its best weights so far. RUN is the folder
of a run or, if several share it, NAME_model_lite.pt or NAME_last.pt in it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS
from engine.evaluation import sample_scores
from engine.trained import LAST, LITE, open_network
from parts.commandline import Parser, whole_number
from parts.errors import UserError
from parts.targets import Label
from tools.shared.common import as_path, command
from tools.shared.evaluated import evaluate_split, open_split

PANEL, DPI = 1.7, 200  # width of an image in inches, and pixels per inch: enough for thin lines
MOST = 20  # samples per group, so that the sheet stays small enough to open


def choose(scores, count, higher_is_better=True):
    """{group: numbers} of the `count` best, median and worst of scores (N,), NaN left out."""
    order = scores.argsort(descending=higher_is_better, stable=True)
    order = order[~scores[order].isnan()].tolist()
    count = min(count, len(order))
    starts = {"best": 0, "median": (len(order) - count) // 2, "worst": len(order) - count}
    return {group: order[start : start + count] for group, start in starts.items()}


def draw_sheet(path, groups, network, dataset, outputs, scores):
    """Write the sheet: a row for each {group: numbers}, the truth and the prediction of each.

    Args:
        outputs: {number: {task: output}}.
        scores: {task: (N,)} primary metric of every sample.
    """
    from parts.figures import Figure, draw_enlarged, plain_style, save, show

    columns, (height, width) = 2 * len(groups["median"]), dataset.side
    first, task = next(iter(network.tasks.items()))
    labels = [name for name, each in network.tasks.items() if isinstance(each.target, Label)]
    pictures = 1 + sum(each.target.fills for each in network.tasks.values())  # side by side
    size = (PANEL * columns * pictures, len(groups) * (PANEL * height / width + 0.42))
    with plain_style():
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        axes = figure.subplots(len(groups), columns, squeeze=False)
        for row, (group, numbers) in zip(axes, groups.items(), strict=True):
            row[0].set_ylabel(group, fontsize=12)
            for i, number in enumerate(numbers):
                image, targets = dataset[number]
                score = f"{task.primary.replace('_', ' ')} {scores[first][number]:.2f}"
                titles = f"{number}: truth", f"prediction, {score}"
                pair = zip(row[2 * i :], titles, (targets, outputs[number]), strict=False)
                for axis, title, values in pair:
                    drawn, words = draw_enlarged(image, values, network.tasks, network.class_names)
                    lines = words.replace(", probability ", " ").replace(", ", "\n")
                    show(axis, drawn, f"{title}\n{lines}".strip(), fontsize=8)
                if any(scores[name][number] == 0 for name in labels):
                    row[2 * i + 1].title.set_color("#B00000")
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
    add("data", metavar="DATA", help="data folder in the H5 layout")
    add("--split", choices=SPLITS, default="test", help="the split to show (default: test)")
    add("--count", type=counts, default=3, metavar="N", help="samples in each group (default: 3)")
    add("--out", metavar="FILE", help="PNG file (default: NAME_gallery.png in RUN)")
    add("--device", metavar="DEVICE", help="cpu, cuda, ... (default: CUDA if available)")
    options = parser.parse_args(argv)
    if options.out is not None and not options.out.lower().endswith(".png"):
        parser.error(f"--out: expected the name of a PNG file, found {options.out}")
    run = as_path(options.run, "RUN")
    weights = run if run.is_file() else find_weights(run)
    network = open_network(weights, options.device)
    dataset = open_split(as_path(options.data, "DATA"), options.split, network)
    table = evaluate_split(network, dataset)
    scores = {name: sample_scores(table[name], task) for name, task in network.tasks.items()}
    first, task = next(iter(network.tasks.items()))
    groups = choose(scores[first], options.count, task.higher_is_better)
    numbers = sorted({number for numbers in groups.values() for number in numbers})
    if not numbers:
        raise UserError(f"{dataset.folder}: expected a sample with known {first}, found none")
    outputs = dict(zip(numbers, network.outputs(dataset[numbers][0]), strict=True))
    default = weights.with_name(f"{network.history['name']}_gallery.png")
    path = as_path(options.out or default, "--out")
    draw_sheet(path, groups, network, dataset, outputs, scores)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
