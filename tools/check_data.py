"""Look at a data folder of the H5 layout: what is in it, and everything that is wrong with it."""

import sys
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from engine.settings import Parser

from dataload import SPLITS, H5Dataset, split_arrays, warnings
from h5array import DataError, read_boxes, read_labels
from tools.common import run_tool

STRIDE = 32  # of the networks as they are: both sides must be multiples of it


def check_data(argv):
    """Print the report; returns the exit code: 0 if the experiments can run on the data, else 2."""
    parser = Parser("dataload.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder with train/, val/ and test/")
    folder = parser.parse_args(argv).folder
    problems = {split: list(split_problems(folder / split)) for split in SPLITS}
    datasets = {split: H5Dataset(split, folder) for split in SPLITS if not problems[split]}
    for split, found in problems.items():
        print(f"{split}: not usable" if found else "\n".join(describe(split, datasets[split])))
    for line in warnings(datasets):
        print(f"warning: {line}")
    problems = [*chain.from_iterable(problems.values()), *side_problems(folder, datasets)]
    for line in problems:
        print(f"problem: {line}")
    print(f"{folder}: {f'{len(problems)} problem(s)' if problems else 'usable'}")
    return 2 if problems else 0


def main(argv=None):
    """Run the tool; returns the exit code of `check_data`, 130 for Ctrl-C."""
    return run_tool("dataload.py", check_data, argv)


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
    elif name == "bboxes" and images:
        read_boxes(array, images[1:3])
    elif name in ("images", "masks") and images:
        for _ in array.slabs():
            pass


def side_problems(folder, datasets):
    """Yield a line if the splits differ in side, and for each side the networks cannot take."""
    sides = {split: dataset.side for split, dataset in datasets.items()}
    if len(set(sides.values())) > 1:
        yield f"{folder}: expected one image side in all splits, found {sides}"
    for height, width in sorted(set(sides.values())):
        if height % STRIDE or width % STRIDE:
            found = f"{height} x {width}"
            yield f"{folder}: expected sides that are multiples of {STRIDE}, found {found}"


def describe(split, dataset):
    """Yield lines about a valid split: counts, sides, dtypes, ranges, classes, what is unknown."""
    count, (height, width), arrays = len(dataset), dataset.side, dataset.arrays
    known = dataset.bboxes[~dataset.bboxes.isnan().any(1)]
    missing = count - len(known)
    area = (known[:, 2:] - known[:, :2]).prod(1).mean() if len(known) else 0
    labels = [int((dataset.binary == label).sum()) for label in (0, 1, -1)]
    classes = ", ".join(f"{n} {name}" for n, name in zip(labels, dataset.class_names, strict=False))
    values = {
        "images": "values {} to {}, mean {:.1f}".format(*statistics(arrays["images"])),
        "masks": "values {} to {}, foreground {:.1%}".format(*statistics(arrays["masks"])),
        "bboxes": f"mean area {area:.1%}, {missing} unknown ({missing / count:.1%})",
        "binary": f"{classes}, {labels[2]} unknown ({labels[2] / count:.1%})",
    }
    yield f"{split}: {count} samples, {height} pixels high, {width} wide"
    for name, text in values.items():
        yield f"  {name:7} {arrays[name].dtype!s:8} {text}"


def statistics(array):
    """(smallest, largest, mean) of valid images or masks, from the file."""
    low, high, total, size = 255, 0, 0, 0
    for _, values in array.slabs():
        low, high = min(low, values.min()), max(high, values.max())
        total, size = total + values.sum(dtype="int64"), size + values.size
    return low, high, total / size
