"""One sheet with the best, the median and the worst samples of a run, truth beside prediction.

    python tools/gallery.py runs/main data/pets                       runs/main/main_gallery.png
    python tools/gallery.py runs/main data/pets --split val --count 4 --out sheet.png

Samples are ordered by the primary metric of the script's first task and drawn by its tasks. A
stopped run is shown with its best weights so far. RUN is the folder of a run or, where
several share it, NAME_model_lite.pt or NAME_last.pt in it.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataload import SPLITS, H5Dataset
from engine.evaluation import evaluate, predict
from engine.settings import Parser, UserError, whole_number
from tools.common import as_path, choose_device, run_tool
from tools.networks import LAST, LITE, open_network, tasks_of

BATCH_SIZE = 32
PANEL, DPI = 1.7, 200  # inches that a picture is wide, and their pixels: enough for thin lines
MOST = 20  # samples per group, so that the sheet stays small enough to open


def scores_of(table, task):
    """(N,) primary metric of every sample, of {"loss" or metric: (N, 2)}; NaN where unknown.

    Where numerator and denominator are both 0, there was nothing to find: a perfect score.
    """
    perfect = float(task.higher_is_better)
    parts = [table[part] for part in task.means.get(task.primary, (task.primary,))]
    scores = sum((pairs[:, 0] / pairs[:, 1]).nan_to_num(perfect) for pairs in parts) / len(parts)
    return torch.where(table["loss"][:, 1] > 0, scores, torch.nan).cpu()


def choose(scores, count, higher_is_better=True):
    """{group: sample numbers} of the `count` best, middle and worst of scores (N,), without NaN.

    The groups share samples if there are fewer than 3 * count.
    """
    order = scores.argsort(descending=higher_is_better, stable=True).tolist()
    order = [number for number in order if not scores[number].isnan()]
    count = min(count, len(order))
    middle = (len(order) - count) // 2
    return {
        "best": order[:count],
        "median": order[middle : middle + count],
        "worst": order[len(order) - count :],
    }


def draw_sheet(path, groups, heads, dataset, outputs, tasks):
    """Write the sheet: a row for each group, two pictures for each sample, truth and prediction.

    Args:
        groups: {title: sample numbers}.
        heads, outputs: by sample number, the first words above its prediction; {task: output}.
    """
    from engine.pictures import Figure, drawn, plain_style, save, show

    columns, (height, width) = 2 * len(groups["median"]), dataset.side
    size = (PANEL * columns, len(groups) * (PANEL * height / width + 0.5))
    with plain_style():
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        axes = figure.subplots(len(groups), columns, squeeze=False)
        for row, (group, numbers) in zip(axes, groups.items(), strict=True):
            row[0].set_ylabel(group, fontsize=12)
            for place, number in enumerate(numbers):
                image, targets = dataset[number]
                titles = f"sample {number}: truth", heads[number]
                pair = zip(row[2 * place :], titles, (targets, outputs[number]), strict=False)
                for axis, title, answers in pair:
                    picture, words = drawn(image, answers, tasks, dataset.class_names)
                    lines = words.replace(", probability ", " ").replace(", ", "\n")
                    show(axis, picture, f"{title}\n{lines}", fontsize=8)
        save(figure, path)


def find_weights(place):
    """NAME_model_lite.pt, or NAME_last.pt of a stopped run, in a folder; UserError if not one."""
    found = {}
    for ending in (LAST, LITE):  # a finished run has both
        found |= {p.name.removesuffix(ending): p for p in sorted(place.glob(f"*{ending}"))}
    if len(found) != 1:
        names = ", ".join(path.name for path in found.values()) or "none"
        raise UserError(
            f"{place}: expected the folder of one run, with NAME{LITE} or NAME{LAST}, found {names}"
        )
    return next(iter(found.values()))


def open_data(split, folder, history):
    """The split of the data, which must be the very one that the run had; raises UserError."""
    dataset = H5Dataset(split, folder)
    expected = history.get("data_fingerprint", {}).get(split, "which its history does not tell")
    found = dataset.fingerprint()
    if found != expected:
        raise UserError(f"{folder / split}: expected the run's data, {expected}, found {found}")
    return dataset


def gallery(argv):
    """Evaluate the split and write the sheet; raises UserError."""
    options = parse(argv)
    processes = choose_device(options.device)
    run, data = as_path(options.run, "RUN"), as_path(options.data, "DATA")
    weights = run if run.is_file() else find_weights(run)
    network, history = open_network(weights, processes.device)
    dataset, tasks = open_data(options.split, data, history), tasks_of(history)
    name, task = next(iter(tasks.items()))
    scores = scores_of(evaluate(network, dataset, tasks, BATCH_SIZE, processes)[name], task)
    groups = choose(scores, options.count, task.higher_is_better)
    numbers = sorted({number for numbers in groups.values() for number in numbers})
    if not numbers:
        raise UserError(f"{data / options.split}: expected a sample of known {name}, found none")
    images, _ = dataset[numbers]
    outputs = dict(zip(numbers, predict(network, images.to(processes.device)), strict=True))
    heads = {number: f"{task.primary.replace('_', ' ')} {scores[number]:.2f}" for number in numbers}
    path = options.out or weights.with_name(f"{history['name']}_gallery.png")
    draw_sheet(path, groups, heads, dataset, outputs, tasks)
    print(path)


def parse(argv):
    """The options; a wrong one ends the process with code 2."""
    parser, counts = Parser("gallery.py", __doc__), whole_number(1, MOST)
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder of a run, finished or stopped")
    add("data", metavar="DATA", help="the data it was trained with")
    add("--split", choices=SPLITS, default="test", help="where the samples come from (test)")
    add("--count", type=counts, default=3, metavar="N", help="samples of each group (3)")
    add("--out", metavar="FILE", help="the sheet (NAME_gallery.png beside the run)")
    add("--device", metavar="DEVICE", help="cpu, cuda, ...; without it CUDA where there is one")
    options = parser.parse_args(argv)
    if options.out is not None:
        options.out = as_path(options.out, "--out")
        if options.out.suffix.lower() != ".png":
            parser.error(f"--out: expected the name of a PNG file, found {options.out}")
    return options


def main(argv=None):
    """Run the tool; returns the exit code: 0, or 2 for a mistake or a damaged file."""
    return run_tool("gallery.py", gallery, argv)


if __name__ == "__main__":
    sys.exit(main())
