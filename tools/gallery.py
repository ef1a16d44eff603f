"""One sheet with the best, the median and the worst samples of a run, truth beside prediction.

    python tools/gallery.py runs/main data/pets                       runs/main/main_gallery.png
    python tools/gallery.py runs/main data/pets --split val --count 4 --out sheet.png

Samples are ordered by the IoU of their own mask. The weights are those of NAME_model_lite.pt, the
script MTL_NAME.py builds the network and says how each task is drawn.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import Parser, UserError
from engine.loop import evaluate, predict, sample_scores

from dataload import SPLITS, H5Dataset
from engine.artefacts import replacing
from engine.pictures import draw_sample
from tools.common import choose_device, run_tool
from tools.networks import LITE, open_network, script_of

BATCH_SIZE = 32
PANEL, DPI = 1.7, 110  # inches that a picture is wide, and their pixels


def choose(scores, count):
    """{group: sample numbers} of the `count` highest, middle and lowest of scores (N,).

    The groups share samples where there are less than 3 * count.
    """
    order = scores.argsort(descending=True).tolist()
    count = min(count, len(order))
    middle = (len(order) - count) // 2
    return {
        "best": order[:count],
        "median": order[middle : middle + count],
        "worst": order[len(order) - count :],
    }


def draw_sheet(path, groups, scores, dataset, outputs, tasks):
    """Write the sheet: a row for each group, two pictures for each sample, truth and prediction.

    Args:
        groups: {title: sample numbers}.
        scores: (N,) IoU of every sample.
        outputs: {sample number: {task: output}}.
        tasks: {name: Task}.
    """
    columns = 2 * len(groups["median"])
    height, width = dataset.side
    size = (PANEL * columns, len(groups) * (PANEL * height / width + 0.5))
    figure = plt.figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots(len(groups), columns, squeeze=False)
    for row, (title, numbers) in zip(axes, groups.items(), strict=True):
        row[0].set_ylabel(title, fontsize=12)
        for place, number in enumerate(numbers):
            image, targets = dataset[number]
            heads = f"sample {number}: truth", f"IoU {scores[number]:.2f}"
            pair = zip(row[2 * place :], (targets, outputs[number]), heads, strict=False)
            for axis, values, head in pair:
                words = draw_sample(axis, image, values, tasks, dataset.class_names)
                lines = words.replace(", probability ", " ").replace(", ", "\n")
                axis.set_title(f"{head}\n{lines}", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary)
    plt.close(figure)


def find_weights(folder):
    """The one NAME_model_lite.pt of a run folder.

    Raises:
        UserError: there is none, or more than one.
    """
    found = sorted(folder.glob(f"*{LITE}"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{folder}: expected the folder of one run, with NAME{LITE}, found {names}")
    return found[0]


def open_data(split, folder, history):
    """The split of the data, which must be what the run had.

    Raises:
        UserError: it is of another side or number of samples.
    """
    dataset = H5Dataset(split, folder)
    expected = history["data"][split], tuple(history["side"])
    found = len(dataset), dataset.side
    if found != expected:
        raise UserError(
            f"{folder}: expected the data of the run, {expected[0]} {split} samples of "
            f"{expected[1]}, found {found[0]} of {found[1]}"
        )
    return dataset


def gallery(argv):
    """Evaluate the split and write the sheet; raises UserError."""
    options = parse(argv)
    processes = choose_device(options.device)
    weights = find_weights(Path(options.run))
    network, history = open_network(weights, processes.device)
    dataset = open_data(options.split, options.data, history)
    tasks = script_of(history).TASKS
    table = evaluate(network, dataset, tasks, BATCH_SIZE, processes)
    pairs = table[f"{next(iter(tasks))}_iou"]  # of the target task
    scores = sample_scores(pairs)
    groups = choose(scores, options.count)
    numbers = sorted({number for numbers in groups.values() for number in numbers})
    images, _ = dataset.batch(numbers)
    outputs = dict(zip(numbers, predict(network, images.to(processes.device)), strict=True))
    path = options.out or weights.with_name(f"{history['name']}_gallery.png")
    draw_sheet(path, groups, scores, dataset, outputs, tasks)
    print(path)


def parse(argv):
    """The options; a wrong one ends the process with code 2."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("gallery.py", None, __doc__, formatter_class=formatter, allow_abbrev=False)
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder of a finished run")
    add("data", metavar="DATA", help="the data it was trained with")
    add("--split", choices=SPLITS, default="test", help="where the samples come from (test)")
    add("--count", type=int, default=3, metavar="N", help="samples of each kind (3)")
    add("--out", type=Path, metavar="FILE", help="the sheet (NAME_gallery.png beside the run)")
    add("--device", metavar="DEVICE", help="cpu, cuda, ...; without it CUDA where there is one")
    options = parser.parse_args(argv)
    if options.count < 1:
        parser.error(f"--count: expected a number above 0, found {options.count}")
    if options.out and options.out.suffix.lower() != ".png":
        parser.error(f"--out: expected the name of a PNG file, found {options.out}")
    return options


def main(argv=None):
    """Run the tool; returns the exit code: 0, or 2 for a mistake or a damaged file."""
    return run_tool("gallery.py", gallery, argv)


if __name__ == "__main__":
    sys.exit(main())
