"""Samples per second of random batches, and time and memory to open a float64 split.

    python benchmarks/data_speed.py [--count 2210] [--side 256] [--batch-size 32] [--folder DIR]

Random batches come from `H5Dataset` in memory and from disk, from one h5py read per index, and from
h5py's fancy indexing with sorted indices. The ways take turns, batch by batch, on the same file;
medians are printed as Markdown tables. The files, 10 bytes for each byte of an image (4.8 GB for
the 2210 images), are written to a temporary folder first and so lie in the page cache.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataload import H5Dataset
from parts.commandline import Parser, whole_number
from tools.shared.common import command

DTYPES = (np.uint8, np.float64)
BATCHES = 30  # for each way of reading

OPEN = """
import sys, threading, time
from pathlib import Path
from dataload import H5Dataset

def peak():  # not ru_maxrss, which starts with that of the process before exec
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

H5Dataset("warm", sys.argv[1])  # so that imports and first calls are not counted
before, start = peak(), time.perf_counter()
dataset = H5Dataset("split", sys.argv[1])
print(time.perf_counter() - start, peak() - before)
"""


def write(folder, count, side, dtype):
    """A split of random images, image by image as for one too large for the memory."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    with h5py.File(folder / "images.h5", "w") as images, h5py.File(folder / "masks.h5", "w") as m:
        pixels = images.create_dataset("images", (count, side, side, 3), dtype)
        masks = m.create_dataset("masks", (count, side, side, 1), dtype)
        for i in range(count):
            pixels[i] = random.integers(0, 256, (side, side, 3), np.uint8)
            masks[i] = random.integers(0, 2, (side, side, 1), np.uint8)
    boxes = np.tile(np.array([1.0, 1.0, side - 1.0, side - 1.0]), (count, 1))
    for name, array in {"bboxes": boxes, "binary": np.arange(count) % 2.0}.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file[name] = array


def naive(files, indices):
    """One read per index and array, as in many a Dataset; then stacked to tensors."""
    return [
        torch.from_numpy(np.stack([file[name][i] for i in indices])) for name, file in files.items()
    ]


def fancy(files, indices):
    """One fancy indexing per array; h5py wants the indices sorted."""
    return [torch.from_numpy(file[name][sorted(indices)]) for name, file in files.items()]


def rates(folder, batch_size):
    """{way: samples per second} of random batches of images and masks."""
    memory, disk = H5Dataset("split", folder), H5Dataset("split", folder, memory_limit=0)
    paths = {name: folder / "split" / f"{name}.h5" for name in ("images", "masks")}
    files = {name: h5py.File(path, "r", locking=False) for name, path in paths.items()}
    ways = {
        "H5Dataset, in memory": memory.__getitem__,
        "H5Dataset, from disk": disk.__getitem__,
        "h5py, one read per index": lambda indices: naive(files, indices),
        "h5py, sorted fancy indexing": lambda indices: fancy(files, indices),
    }
    seconds = {way: [] for way in ways}
    random = np.random.default_rng(0)
    for _ in range(BATCHES):
        for way, read in ways.items():
            indices = random.choice(len(memory), batch_size, replace=False).tolist()
            start = time.perf_counter()
            read(indices)
            seconds[way].append(time.perf_counter() - start)
    return {way: batch_size / median(times) for way, times in seconds.items()}


def opening(folder):
    """(seconds, bytes) to open a split in a fresh process, beyond what it takes to import."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", OPEN, str(folder)]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return map(float, done.stdout.split())


@command
def main(argv):
    """Write, measure and print; raises UserError."""
    parser = Parser("data_speed.py", __doc__)
    add, number = parser.add_argument, whole_number(1, 10**6)
    add("--count", type=number, default=2210, help="images in the split (2210)")
    add("--side", type=number, default=256, help="in pixels (256)")
    add("--batch-size", type=number, default=32, help="samples in a batch (32)")
    add("--folder", type=Path, help="for temporary files (the system's)")
    options = parser.parse_args(argv)
    if options.batch_size > options.count:
        parser.error(f"--batch-size: expected at most --count, found {options.batch_size}")
    versions = f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}, NumPy {np.__version__}"
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, PyTorch {torch.__version__}, {versions}")
    print(f"{options.count} images of {options.side} x {options.side}, batches of", end=" ")
    print(f"{options.batch_size} random samples, images and masks\n")
    table, opened = {}, {}
    for dtype in DTYPES:
        name = np.dtype(dtype).name
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            write(Path(folder) / "split", options.count, options.side, dtype)
            write(Path(folder) / "warm", 1, options.side, dtype)
            opened[name] = tuple(opening(folder))
            table[name] = rates(Path(folder), options.batch_size)
    print_tables(table, opened, options.count * options.side**2 * 4)


def print_tables(table, opened, size):
    """`size` is that of images and masks as uint8, in bytes."""
    print("| samples per second of a file of | " + " | ".join(table) + " |")
    print("| --- |" + " ---: |" * len(table))
    for way in next(iter(table.values())):
        print(f"| {way} | " + " | ".join(f"{rates[way]:.0f}" for rates in table.values()) + " |")
    print("| in memory / sorted fancy indexing | ", end="")
    ratios = [
        rates["H5Dataset, in memory"] / rates["h5py, sorted fancy indexing"]
        for rates in table.values()
    ]
    print(" | ".join(f"{ratio:.0f}" for ratio in ratios) + " |\n")
    print("| to open a split stored as | seconds | peak memory, MB | as uint8, MB | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, (seconds, peak) in opened.items():
        row = f"{seconds:.1f} | {peak / 1e6:.0f} | {size / 1e6:.0f} | {peak / size:.2f}"
        print(f"| {name} | {row} |")


if __name__ == "__main__":
    sys.exit(main())
