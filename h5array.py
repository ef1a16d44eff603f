"""One array of the H5 layout of dataload.py in its file: opening, checks, values.

Whatever is wrong with a file ends in one DataError, which names the file.
"""

import math
import re
import struct
from contextlib import contextmanager

import h5py
import numpy as np
import torch

DATASETS = ("images", "masks", "bboxes", "binary")  # each in the file of its name
DEFAULT_CLASS_NAMES = ("class 0", "class 1")
SLAB_BYTES = 32 * 2**20  # converted at a time, so a float64 file never stands in memory whole
BOX_TOLERANCE = 1e-3  # pixels by which rounding may push a box over the frame


class DataError(Exception):
    """A missing, damaged or inconsistent data file; the message is one line that names the file."""

    def __str__(self):
        # a DataLoader raises an error of its workers anew, with their traceback before the message
        return super().__str__().rpartition(f"{DataError.__name__}: ")[2].strip()


class H5Array:
    """One array of a split: the file is opened for each use, without locks, and closed after it.

    Every method raises DataError, with one line that names the file, if the file is missing,
    damaged, or not what the layout says.

    Attributes:
        name: one of DATASETS.
        path: of the file.
        shape, dtype: as stored; known after `read_header`.
    """

    def __init__(self, folder, name):
        self.name, self.path = name, folder / f"{name}.h5"
        self.top = 255 if name == "images" else 1  # largest value allowed
        self.shape = self.dtype = None

    def expect(self, condition, expected, found):
        """Complain unless `condition` holds."""
        if not condition:
            raise DataError(f"{self.path}: expected {expected}, found {found}")

    @contextmanager
    def opened(self):
        """The h5py dataset; all that goes wrong while it is open is an error of this file."""
        try:
            if not self.path.is_file():
                raise DataError(f"{self.path}: no such file")
            with h5py.File(self.path, "r", locking=False) as file:
                yield self._find(file)
        except DataError:
            raise
        except Exception as error:  # h5py has no common class for what damaged files raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{self.path}: not a readable HDF5 file ({reason})") from error

    def _find(self, file):
        """The dataset of this array's name, or the only one there is."""
        if isinstance(file.get(self.name), h5py.Dataset):
            return file[self.name]
        found = [key for key in file if isinstance(file.get(key), h5py.Dataset)]
        self.expect(len(found) == 1, f"a dataset '{self.name}'", sorted(file)[:5] or "nothing")
        return file[found[0]]

    def read_header(self):
        """Learn shape and dtype, once it is sure that there are real numbers for all of it."""
        with self.opened() as dataset:
            self.shape, self.dtype = dataset.shape, dataset.dtype
            is_real = self.dtype.kind in "buif" and self.shape is not None
            self.expect(is_real, "real numbers", f"shape {self.shape} of dtype {self.dtype}")
            if dataset.chunks:
                pairs = zip(self.shape, dataset.chunks, strict=True)
                needed = math.prod(-(-side // chunk) for side, chunk in pairs)
                stored = dataset.id.get_num_chunks()
            else:
                needed, stored = dataset.nbytes, dataset.id.get_storage_size()
            # HDF5 reads zeros where nothing was written, for days if the shape is damaged
            self.expect(stored >= needed, f"values for all of {self.shape}", "some never written")

    def check_shape(self, images):
        """Complain unless the shape is what the layout wants beside that of `images`."""
        shape, count = self.shape, (*images, 0)[0]
        if self.name == "images":
            fits = len(shape) == 4 and shape[3] == 3 and min(shape) > 0
            self.expect(fits, "(N, H, W, 3) with N, H and W above 0", shape)
        elif self.name == "masks":
            fits = shape[:3] == images[:3] and shape[3:] in ((), (1,))
            self.expect(fits, f"one mask for each image, {(*images[:3], 1)}", shape)
        elif self.name == "bboxes":
            self.expect(shape == (count, 4), f"({count}, 4)", shape)
        else:
            self.expect(shape in ((count,), (count, 1)), f"({count}, 1)", shape)

    def takes_any(self):
        """Whether every value of the stored dtype is valid, so that none needs a look."""
        return self.dtype == np.bool_ or (self.dtype == np.uint8 and self.top == 255)

    def slabs(self):
        """Yield (start, uint8 (n, H, W, 3) or (n, H, W)) of images or masks, all checked."""
        largest = 0
        with self.opened() as dataset:
            for start, stop in _slabs(dataset):
                values = self._checked(dataset[start:stop], start)
                largest = max(largest, values.max())
                yield start, values
        scaled = self.name == "images" and self.dtype.kind == "f" and largest == 1
        self.expect(not scaled, "values 0-255", "values 0-1; multiply by 255")

    def rows(self, numbers):
        """uint8 (B, H, W, 3) or (B, H, W) of these samples of images or masks, checked."""
        with self.opened() as dataset:
            same = (dataset.shape, dataset.dtype) == (self.shape, self.dtype)
            self.expect(same, f"the file of the start, {self.shape}", f"another, {dataset.shape}")
            return np.concatenate([self._checked(dataset[i : i + 1], i) for i in numbers])

    def _checked(self, values, start):
        """uint8 of real `values`, the samples from `start` on."""
        if self.name == "masks":
            values = values.reshape(values.shape[:3])
        if self.takes_any():
            return values.astype(np.uint8, copy=False)
        low, high = values.min(), values.max()  # NaN if any value is NaN
        if not (low >= 0 and high <= self.top):
            wrong = ~((values >= 0) & (values <= self.top))
            self.expect(False, f"values 0-{self.top}", _first(values, wrong, start))
        rounded = np.rint(values, casting="unsafe") if values.dtype.kind == "f" else values
        if self.name == "masks" and (rounded != values).any():
            self.expect(False, "values 0 or 1", _first(values, rounded != values, start))
        return rounded.astype(np.uint8, copy=False)


def read_boxes(array, side):
    """(N, 4) float32 boxes as fractions of width and height, from pixels; NaN rows = unknown."""
    with array.opened() as dataset:
        pixels = dataset[()].astype(np.float64)
    (height, width), known = side, ~np.isnan(pixels).all(axis=1)
    inside = (pixels[:, :2] >= -BOX_TOLERANCE).all(axis=1)
    inside &= (pixels[:, 2:] <= np.array([width, height]) + BOX_TOLERANCE).all(axis=1)
    boxes = np.clip(pixels / [width, height, width, height], 0, 1).astype(np.float32)
    wrong = known & ~(inside & (boxes[:, :2] < boxes[:, 2:]).all(axis=1))
    if wrong.any():
        row = int(wrong.argmax())
        expected = f"xmin < xmax and ymin < ymax inside {width} x {height}, or four NaN"
        array.expect(False, expected, f"{pixels[row].tolist()} in sample {row}")
    return torch.from_numpy(boxes)


def read_labels(array):
    """(N,) float32 labels with -1 for unknown, and the names of the two classes."""
    with array.opened() as dataset:
        check_heap(array)
        labels = dataset[()].reshape(-1).astype(np.float64)
        names = np.array(dataset.attrs.get("class_names", DEFAULT_CLASS_NAMES), object).tolist()
    names = names if isinstance(names, list) else [names]
    names = [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]
    are_names = len(names) == 2 and all(isinstance(n, str) and n.isprintable() for n in names)
    array.expect(are_names, "two class_names", str(names)[:80])
    labels[np.isnan(labels)] = -1
    wrong = ~np.isin(labels, (-1, 0, 1))
    if wrong.any():
        array.expect(False, "0, 1, -1 or NaN", _first(labels, wrong, 0))
    return torch.from_numpy(labels.astype(np.float32)), tuple(names)


def check_heap(array):
    """Complain of a damaged heap of strings, on which the HDF5 library would loop for ever.

    https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, section III.E.
    """
    data = array.path.read_bytes()
    for heap in re.finditer(rb"GCOL.{4}(.{8})", data, re.DOTALL):
        end = heap.start() + int.from_bytes(heap[1], "little")
        place = heap.end()
        while place + 16 <= min(end, len(data)):
            number, size = struct.unpack_from("<H6xQ", data, place)
            step = 16 + -(-size // 8) * 8 if number else size  # number 0 is the free rest
            array.expect(0 < step <= end - place, "a sound heap of strings", "a damaged one")
            place += step


def _slabs(dataset):
    """(start, stop) ranges of samples that cover the dataset, of about SLAB_BYTES, whole chunks."""
    sample_bytes = max(1, dataset.dtype.itemsize * math.prod(dataset.shape[1:]))
    step = max(1, SLAB_BYTES // sample_bytes)
    chunk = dataset.chunks[0] if dataset.chunks else 1
    if chunk <= 4 * step:
        step = math.ceil(step / chunk) * chunk  # no chunk is decompressed twice
    for start in range(0, len(dataset), step):
        yield start, min(start + step, len(dataset))


def _first(values, wrong, start):
    """'VALUE in sample NUMBER' for the first wrong entry of a slab that begins at `start`."""
    position = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return f"{values[position]} in sample {start + int(position[0])}"
