"""Look at a data folder of the H5 layout: what is in it, and everything that is wrong with it.

python tools/check_data.py DATA_FOLDER
"""

import sys
from itertools import chain
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS, UNKNOWN, H5Dataset, check_splits, split_arrays, warnings
from engine.settings import Parser
from h5array import BREEDS, DataError, read_boxes, read_class_names, read_labels
from tools.common import run_tool

STRIDE = 32  # of the networks as they are: both sides must be multiples of it


def check_data(argv):
    """Print the report; returns the exit code: 0 if the experiments can run on the data, else 2."""
    parser = Parser("check_data.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder with train/, val/ and test/")
    folder = parser.parse_args(argv).folder
    problems = {split: list(split_problems(folder / split)) for split in SPLITS}
    datasets = {split: H5Dataset(split, folder) for split in SPLITS if not problems[split]}
    for split, found in problems.items():
        print(f"{split}: not usable" if found else "\n".join(describe(split, datasets[split])))
    for line in warnings(datasets):
        print(f"warning: {line}")
    problems = [*chain.from_iterable(problems.values()), *joint_problems(folder, datasets)]
    for line in problems:
        print(f"problem: {line}")
    print(f"{folder}: {f'{len(problems)} problem(s)' if problems else 'usable'}")
    return 2 if problems else 0


def main(argv=None):
    """Run the tool; returns the exit code of `check_data`, 130 for Ctrl-C."""
    return run_tool("check_data.py", check_data, argv)


def split_problems(folder):
    """Yield a line for each file of a split that an experiment would refuse."""
    try:
        arrays = split_arrays(folder)
    except DataError as error:
        yield str(error)
        return
    images = None  # their shape, without which the other files cannot be judged in full
    for name, array in arrays.items():
        try:
            array.read_header()
            if name == "images":
                array.check_shape(array.shape)
                images = array.shape
            elif images:
                array.check_shape(images)
            check_values(name, array, images)
        except DataError as error:
            yield str(error)


def check_values(name, array, images):
    """Read an array to its end; DataError for the first value that is not as it should be."""
    if name == "binary":
        read_labels(array)
        read_class_names(array)
    elif name == "breeds":
        read_labels(array, BREEDS)
    elif name == "bboxes" and images:
        read_boxes(array, images[1:3])
    elif name in ("images", "masks") and images:
        for _ in array.slabs():
            pass


def joint_problems(folder, datasets):
    """Yield a line if the splits do not fit together, and for each side no network can take."""
    try:
        check_splits(datasets)
    except DataError as error:
        yield str(error)
    for height, width in sorted({dataset.side for dataset in datasets.values()}):
        if height % STRIDE or width % STRIDE:
            found = f"{height} x {width}"
            yield f"{folder}: expected sides that are multiples of {STRIDE}, found {found}"


def describe(split, dataset):
    """Yield lines about a valid split: counts, sides, dtypes, ranges, classes, what is unknown."""
    count, (height, width), arrays = len(dataset), dataset.side, dataset.arrays
    unknown = {task: int((~known).sum()) for task, known in dataset.known.items()}
    unknown = {task: f"{n} unknown ({n / count:.1%})" for task, n in unknown.items()}
    known = dataset.bboxes[dataset.known["bbox"]]
    area = (known[:, 2:] - known[:, :2]).prod(1).mean() if len(known) else 0
    labels = [int((dataset.binary == label).sum()) for label in (0, 1)]
    classes = ", ".join(f"{n} {name}" for n, name in zip(labels, dataset.class_names, strict=True))
    values = {
        "images": "values {} to {}, mean {:.1f}".format(*image_statistics(dataset)),
        "masks": "foreground {:.1%}, pixels unknown {:.1%}".format(*mask_shares(dataset)),
        "bboxes": f"mean area {area:.1%}, {unknown['bbox']}",
        "binary": f"{classes}, {unknown['bin']}",
    }
    values["masks"] += f", masks {unknown['seg']}"
    if "breeds" in arrays:
        breeds = dataset.breeds[dataset.known["breed"]].unique()
        values["breeds"] = f"{len(breeds)} of {BREEDS}, {unknown['breed']}"
    yield f"{split}: {count} samples, {height} pixels high, {width} wide"
    for name, text in values.items():
        yield f"  {name:7} {arrays[name].dtype!s:8} {text}"


def image_statistics(dataset):
    """(smallest, largest, mean) of the images."""
    low, high, total, size = 255, 0, 0, 0
    for values in dataset.slabs("images"):
        low, high = min(low, values.min()), max(high, values.max())
        total, size = total + values.sum(dtype="int64"), size + values.size
    return low, high, total / size


def mask_shares(dataset):
    """Shares of the foreground among the known pixels, and of the unknown among all."""
    counts = sum(np.bincount(m.ravel(), minlength=256) for m in dataset.slabs("masks"))
    known = counts.sum() - counts[UNKNOWN]
    return counts[1] / max(known, 1), counts[UNKNOWN] / counts.sum()


if __name__ == "__main__":
    sys.exit(main())
