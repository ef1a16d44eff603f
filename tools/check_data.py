"""Report what a data folder of the H5 layout holds, and every problem in it.

python tools/check_data.py DATA
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS, UNKNOWN, H5Dataset, check_splits, split_arrays, warnings
from engine.settings import Parser
from parts.h5array import BREEDS, DataError, read_boxes, read_class_names, read_labels
from tools.shared.common import as_path, command

STRIDE = 32  # of the networks as they are: both sides must be multiples of it


@command
def main(argv):
    """Print the report; returns 0 if the experiments can run on the data, else 2."""
    parser = Parser("check_data.py", __doc__)
    parser.add_argument("folder", metavar="DATA", help="holds train/, val/ and test/")
    folder = as_path(parser.parse_args(argv).folder, "DATA")
    problems, datasets = [], {}
    for split in SPLITS:
        found = list(split_problems(folder / split))
        problems += found
        if not found:
            datasets[split] = H5Dataset(split, folder)
        print(f"{split}: not usable" if found else "\n".join(describe(split, datasets[split])))
    for line in warnings(datasets):
        print(f"warning: {line}")
    problems += joint_problems(folder, datasets)
    for line in problems:
        print(f"problem: {line}")
    print(f"{folder}: {f'{len(problems)} problem(s)' if problems else 'usable'}")
    return 2 if problems else 0


def split_problems(folder):
    """Yield a line for each file of a split that an experiment would refuse."""
    images = None  # their shape, without which other files can only be checked in part
    try:
        arrays = split_arrays(folder)
    except DataError as error:
        yield str(error)
        return
    for name, array in arrays.items():
        try:
            array.read_header()
            shape = array.shape if name == "images" else images
            if shape:
                array.check_shape(shape)
            if name == "images":
                images = shape
            if name == "binary":
                read_labels(array)
                read_class_names(array)
            elif name == "breeds":
                read_labels(array, BREEDS)
            elif name == "bboxes" and images:
                read_boxes(array, images[1:3])
            elif images:
                for _ in array.slabs():  # reads and checks all values
                    pass
        except DataError as error:
            yield str(error)


def joint_problems(folder, datasets):
    """Yield a line if the splits do not match, and for each side that no network accepts."""
    try:
        if datasets:
            check_splits(datasets)
    except DataError as error:
        yield str(error)
    for height, width in sorted({dataset.side for dataset in datasets.values()}):
        if height % STRIDE or width % STRIDE:
            found = f"{height} x {width}"
            yield f"{folder}: expected sides that are multiples of {STRIDE}, found {found}"


def describe(split, dataset):
    """Yield lines about a valid split: counts, sides, dtypes, ranges, classes, unknown targets."""
    count, (height, width), arrays = len(dataset), dataset.side, dataset.arrays
    unknown = {task: int((~known).sum()) for task, known in dataset.known.items()}
    unknown = {task: f"{n} unknown ({n / count:.1%})" for task, n in unknown.items()}
    pixels, masks = histogram(dataset, "images"), histogram(dataset, "masks")
    levels, known_pixels = np.flatnonzero(pixels), masks[:UNKNOWN].sum()
    mean = pixels @ np.arange(256) / pixels.sum()
    boxes = dataset.bboxes[dataset.known["bbox"]]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1).mean() if len(boxes) else 0
    labels = [int((dataset.binary == label).sum()) for label in (0, 1)]
    classes = ", ".join(f"{n} {name}" for n, name in zip(labels, dataset.class_names, strict=True))
    texts = {
        "images": f"values {levels[0]} to {levels[-1]}, mean {mean:.1f}",
        "masks": f"foreground {masks[1] / max(known_pixels, 1):.1%}, pixels unknown "
        f"{masks[UNKNOWN] / masks.sum():.1%}, masks {unknown['seg']}",
        "bboxes": f"mean area {area:.1%}, {unknown['bbox']}",
        "binary": f"{classes}, {unknown['bin']}",
    }
    if "breeds" in arrays:
        breeds = dataset.breeds[dataset.known["breed"]].unique()
        texts["breeds"] = f"{len(breeds)} of {BREEDS}, {unknown['breed']}"
    yield f"{split}: {count} samples, {height} pixels high, {width} wide"
    for name, text in texts.items():
        yield f"  {name:7} {arrays[name].dtype!s:8} {text}"


def histogram(dataset, name):
    """(256,) how often each value occurs in the images or masks."""
    return sum(np.bincount(slab.ravel(), minlength=256) for slab in dataset.slabs(name))


if __name__ == "__main__":
    sys.exit(main())
