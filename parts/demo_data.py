"""Data sets of synthetic pets in the layout of dataload.py, drawn by several processes.

    make_demo(folder)                                           the data set of `--demo`
    make_demo(folder, counts=(3000, 96, 96), style="varied")    for pre-training

drawn_scenes.py describes the styles.
"""

import os
import signal
import tempfile
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import closing
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
from tqdm import tqdm

from parts.drawn_scenes import BREED_NAMES, STYLES, draw_sample
from parts.h5array import SPLITS, DataError
from parts.h5file import write_split
from parts.streams import STDERR

NOT_DRAWN = tuple(f"not drawn {n}" for n in range(37 - len(BREED_NAMES)))  # real pets have 37
CLASS_NAMES = {"binary": ("cat", "dog"), "breeds": BREED_NAMES + NOT_DRAWN}
CHUNK = 16  # samples that a process draws at a time
POOLED_PIXELS = 200 * 128**2  # fewer are drawn before other processes have started


def make_demo(folder, side=128, counts=(640, 96, 96), seed=0, style="demo", breeds=False):
    """Draw pets and write them to `folder`/{train,val,test} in the layout of dataload.py.

    The same arguments give the same pixels; sample i of a split does not depend on the counts or
    on the number of processes. A split is held in memory while it is drawn. Where Python spawns
    processes, a script that calls this needs `if __name__ == "__main__":`, as for every pool of
    processes; a notebook does not.

    Args:
        folder: created if missing; must not hold a split yet.
        side: height and width of the pictures in pixels, at least 32.
        counts: number of samples in train, val and test, at least 1 each.
        seed: a whole number from 0.
        style: "demo" or "varied".
        breeds: also write breeds.h5, with numbers in `drawn_scenes.BREED_NAMES`.

    Raises:
        DataError: `folder` already holds a split, the disk is full, or a process died.
        OSError: `folder` cannot be created.
        ValueError: there is no such style.
    """
    folder, is_new = Path(folder), not Path(folder).exists()
    found = [split for split in SPLITS if (folder / split).exists()]
    if found:
        raise DataError(f"{folder}: expected no split there yet, found {', '.join(found)}")
    if style not in STYLES:
        raise ValueError(f"style: expected one of {', '.join(STYLES)}, found {style!r}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:  # a kill leaves no half split
            draw_splits(Path(unfinished), side, counts, seed, style, breeds)
            for split in SPLITS:
                (Path(unfinished) / split).rename(folder / split)
    except BrokenExecutor as error:
        raise DataError(f"{folder}: a process that drew pets has died ({error})") from error
    finally:
        if is_new and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def draw_splits(folder, side, counts, seed, style, breeds):
    """Draw the splits into a folder, with a bar on a terminal; the arguments of `make_demo`."""
    provenance = {"source": "tools/make_demo.py", "side": side, "seed": seed, "style": style}
    tasks = [
        (seed, number, start, min(start + CHUNK, count), side, style)
        for number, count in enumerate(counts)
        for start in range(0, count, CHUNK)
    ]
    is_large = sum(counts) * side**2 >= POOLED_PIXELS
    chunks = draw_chunks(tasks, min(count_cores(), len(tasks)) if is_large else 1)
    look = {"desc": "drawing", "unit": "pet", "delay": 1, "leave": False}
    bar = tqdm(total=sum(counts), file=STDERR, disable=None, **look)  # None: without a terminal
    with closing(chunks), bar:
        for split, count in zip(SPLITS, counts, strict=True):
            arrays = collect(chunks, count, side, bar)
            if not breeds:
                del arrays["breeds"]
            write_split(folder / split, arrays, provenance, CLASS_NAMES)


def collect(chunks, count, side, bar):
    """{name of file: array} of the next `count` samples, as `write_split` takes them."""
    layout = {
        "images": ((side, side, 3), np.uint8),
        "masks": ((side, side, 1), np.uint8),
        "bboxes": ((4,), np.float32),
        "binary": ((), np.int8),
        "breeds": ((), np.int8),
    }
    arrays = {name: np.empty((count, *shape), dtype) for name, (shape, dtype) in layout.items()}
    filled = 0
    while filled < count:
        chunk = next(chunks)
        for array, values in zip(arrays.values(), chunk, strict=True):
            array[filled : filled + len(values)] = values
        filled += len(chunk[0])
        bar.update(len(chunk[0]))
    return arrays


def draw_chunk(seed, split, start, stop, side, style):
    """Samples `start` to `stop` of a split: the parts of `draw_sample`, each with a leading N."""
    samples = [draw_sample(seed, split, index, side, style) for index in range(start, stop)]
    return [np.stack(arrays) for arrays in zip(*samples, strict=True)]


def start_worker():
    """Leave stop signals to the process that started this worker, and end when that one does.

    SIGTERM ends it two seconds later, because the pool itself sends that when a worker has died.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(2))
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def draw_chunks(tasks, workers):
    """Yield `draw_chunk` of every task, in order, drawn by `workers` processes."""
    if workers == 1:
        yield from (draw_chunk(*task) for task in tasks)
        return
    with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
        yield from pool.map(draw_chunk, *zip(*tasks, strict=True))  # closing it cancels the rest


def count_cores():
    """The number of processor cores that this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
