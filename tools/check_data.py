"""Report what a data folder in the H5 layout holds, and every problem in it.

    python tools/check_data.py DATA
    python tools/check_data.py DATA --script examples/breed.py

It checks the files of the three pet tasks, or of the tasks of --script.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS, DataError, H5Dataset, check_splits, likely_mistakes, split_arrays
from engine import script
from engine.setup import stride_of
from parts.commandline import Parser
from parts.errors import UserError, as_flag_errors
from parts.h5array import read_class_names
from parts.targets import PETS, Images, PixelTarget, with_sources
from tools.shared.common import as_path, command

STRIDE = 32  # of the five networks: both image sides must be multiples of it


@command
def main(argv):
    """Print the report; returns 0 if the experiments can run on the data, else 2."""
    parser = Parser("check_data.py", __doc__)
    parser.add_argument("folder", metavar="DATA", help="folder with train/, val/ and test/")
    text = "the script that will use the data (default: one with the three pet tasks)"
    parser.add_argument("--script", metavar="FILE", help=text)
    options = parser.parse_args(argv)
    folder, targets, stride = as_path(options.folder, "DATA"), PETS, STRIDE
    if options.script:
        targets, stride = targets_and_stride(options.script)
    problems, datasets = [], {}
    for split in SPLITS:
        found = list(split_problems(folder / split, targets))
        problems += found
        if not found:
            datasets[split] = H5Dataset(split, folder, targets)
        print(f"{split}: not usable" if found else "\n".join(describe(split, datasets[split])))
    for line in likely_mistakes(datasets):
        print(f"warning: {line}")
    problems += joint_problems(folder, datasets, next(iter(targets)), stride)
    for line in problems:
        print(f"problem: {line}")
    print(f"{folder}: {f'{len(problems)} problem(s)' if problems else 'usable'}")
    return 2 if problems else 0


def targets_and_stride(place):
    """{name: target} of a script, and the stride of its network; raises UserError."""
    module = script.load(place)
    try:
        script.check_definitions(module, ("Network", "TASKS"))
        targets = with_sources({name: task.target for name, task in module.TASKS.items()})
        with as_flag_errors():
            return targets, stride_of(module.Network())
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def split_problems(folder, targets):
    """Yield a line for each file of a split that an experiment would refuse."""
    images = None  # their shape; without it, other files can only be checked in part
    try:
        arrays = split_arrays(folder, targets)
    except DataError as error:
        yield str(error)
        return
    for name, array in arrays.items():
        kind = Images() if name == "images" else targets[name]
        try:
            array.read_header()
            if name == "images":
                kind.check_shape(array, None)
                images = array.shape
            elif images:
                kind.check_shape(array, images)
            if kind.classes:
                read_class_names(array, kind.classes)
            if images and isinstance(kind, PixelTarget):
                for _ in array.slabs(partial(kind.convert, array)):  # reads and checks all values
                    pass
            elif images:
                kind.read(array, images[1:3])
        except DataError as error:
            yield str(error)


def joint_problems(folder, datasets, first, stride):
    """Yield a line if the splits do not match, and for each side that no network accepts."""
    try:
        if datasets:
            check_splits(datasets, [first])
    except DataError as error:
        yield str(error)
    for height, width in sorted({dataset.side for dataset in datasets.values()}):
        if height % stride or width % stride:
            found = f"{height} x {width}"
            yield f"{folder}: expected sides that are multiples of {stride}, found {found}"


def describe(split, dataset):
    """Yield lines about a valid split: counts, sides, dtypes, values, and what is unknown."""
    count, (height, width), arrays = len(dataset), dataset.side, dataset.arrays
    pixels = sum(np.bincount(part.ravel(), minlength=256) for part in dataset.slabs("images"))
    levels, mean = np.flatnonzero(pixels), pixels @ np.arange(256) / pixels.sum()
    yield f"{split}: {count} samples, {height} pixels high, {width} wide"
    texts = {"images": f"values {levels[0]} to {levels[-1]}, mean {mean:.1f}"}
    for name, kind in dataset.targets.items():
        unknown = int((~dataset.known[name]).sum())
        share = f"{unknown} unknown ({unknown / count:.1%})"
        texts[name] = f"{kind.summary(dataset, name)}{share}"
    for name, text in texts.items():
        array = arrays.get(name)
        file = name if name == "images" else dataset.targets[name].file or name
        dtype = str(array.dtype) if array else "no file"
        yield f"  {file:7} {dtype:8} {text}"


if __name__ == "__main__":
    sys.exit(main())
