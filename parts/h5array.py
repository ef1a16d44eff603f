"""One array of the H5 layout of dataload.py: opening its file, checking it, reading values.

Whatever is wrong with a file becomes one DataError, which names the file.
"""

import math
import re
import struct
from contextlib import contextmanager, suppress

import h5py
import numpy as np
import torch

DATASETS = ("images", "masks", "bboxes", "binary")  # each in the file of its name
BREEDS = 37  # of Oxford-IIIT Pet, in the optional file breeds.h5
UNKNOWN = 255  # in a mask
DEFAULT_CLASS_NAMES = ("class 0", "class 1")
SLAB_BYTES = 32 * 2**20  # converted at a time, so that a float64 file never fills the memory
BOX_TOLERANCE = 1e-3  # pixels by which rounding may push a box over the frame
HEAP_BYTES = 2**20  # largest file that is searched for a damaged heap of strings


class DataError(Exception):
    """A missing, damaged or inconsistent data file; the message is one line that names the file."""

    def __str__(self):
        # a DataLoader re-raises an error of its workers, with their traceback before the message
        return super().__str__().rpartition(f"{DataError.__name__}: ")[2].strip()


class H5Array:
    """One array of a split: the file is opened for each use, without locks, and closed after it.

    Every method raises DataError, with one line that names the file, if the file is missing,
    damaged, or not what the layout says.

    Attributes:
        name: one of DATASETS, or "breeds".
        path: of the file.
        shape, dtype: as stored; known after `read_header`.
    """

    def __init__(self, folder, name):
        self.name, self.path = name, folder / f"{name}.h5"
        self.shape = self.dtype = None

    def expect(self, condition, expected, found):
        """Raise DataError unless `condition` holds."""
        if not condition:
            raise DataError(f"{self.path}: expected {expected}, found {found}")

    @contextmanager
    def opened(self):
        """The h5py dataset; every error while it is open becomes a DataError of this file."""
        try:
            if not self.path.is_file():
                raise DataError(f"{self.path}: no such file")
            with h5py.File(self.path, "r", locking=False) as file:
                yield self._find(file)
        except (DataError, MemoryError):
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
        """Set shape and dtype, after a check that real numbers are stored for all of it."""
        with self.opened() as dataset:
            self.shape, self.dtype = dataset.shape, dataset.dtype
            is_real = self.dtype.kind in "buif" and self.shape is not None
            self.expect(is_real, "real numbers", f"shape {self.shape} of dtype {self.dtype}")
            self._check_storage(dataset)

    def _check_storage(self, dataset):
        """Refuse what HDF5 cannot read, or would read as zeros that nobody wrote."""
        if dataset.is_virtual:  # its sources would have to be checked in the same way
            found = f"a virtual dataset of values in {dataset.virtual_sources()[0].file_name!r}"
            self.expect(False, "the values in the file itself", found)
        properties = dataset.id.get_create_plist()
        for code, _, _, name in map(properties.get_filter, range(properties.get_nfilters())):
            found = f"number {code} {name.decode(errors='replace')!r}"
            self.expect(has_filter(code), "a filter of HDF5 (pip install hdf5plugin)", found)
        if dataset.chunks:
            pairs = zip(self.shape, dataset.chunks, strict=True)
            needed = math.prod(-(-side // chunk) for side, chunk in pairs)
            stored = dataset.id.get_num_chunks()
        else:
            needed, stored = dataset.nbytes, dataset.id.get_storage_size()
        # with a damaged shape, HDF5 would read zeros for days
        self.expect(stored >= needed, f"values for all of {self.shape}", "some never written")

    def check_shape(self, images):
        """Check the shape against the layout and the shape of `images`."""
        shape = self.shape
        if self.name == "images":
            fits = len(shape) == 4 and shape[3] == 3 and min(shape) > 0
            self.expect(fits, "(N, H, W, 3) with N, H and W above 0", shape)
        elif self.name == "masks":
            fits = shape[:3] == images[:3] and shape[3:] in ((), (1,))
            self.expect(fits, f"one mask for each image, {(*images[:3], 1)}", shape)
        elif self.name == "bboxes":
            self.expect(shape == (images[0], 4), f"({images[0]}, 4)", shape)
        else:
            self.expect(shape in (images[:1], (images[0], 1)), f"({images[0]}, 1)", shape)

    def accepts_any_value(self):
        """Whether every value of the stored dtype is valid, so that none needs a check."""
        return self.dtype == np.bool_ or (self.dtype == np.uint8 and self.name == "images")

    def slabs(self):
        """Yield (start, uint8 (n, H, W, 3) or (n, H, W)) of images or masks, all checked."""
        with self.opened() as dataset:
            for start, stop in _slabs(dataset):
                yield start, self._checked(dataset[start:stop], start)

    def rows(self, numbers):
        """These samples of images or masks, uint8 (B, H, W, 3) or (B, H, W), checked."""
        with self.opened() as dataset:
            before, now = (f"{array.shape} of dtype {array.dtype}" for array in (self, dataset))
            self.expect(now == before, f"shape {before} as at the start", now)
            return np.concatenate([self._checked(dataset[i : i + 1], i) for i in numbers])

    def _checked(self, values, start):
        """Real `values` as uint8, checked; `start` is the number of their first sample."""
        if self.name == "masks":
            values = values.reshape(values.shape[:3])
        if self.accepts_any_value():
            return values.astype(np.uint8, copy=False)
        top, expected = (255, "values 0-255") if self.name == "images" else (1, "0, 1 or 255")
        low, high = values.min(), values.max()  # NaN if any value is NaN
        unknown = None
        if self.name == "masks" and not (low >= 0 and high <= top):
            unknown = np.isnan(values) | (values == UNKNOWN)
            values = np.where(unknown, values.dtype.type(0), values)
            low, high = values.min(), values.max()
        if not (low >= 0 and high <= top):
            wrong = ~((values >= 0) & (values <= top))
            self.expect(False, expected, _first_wrong(values, wrong, start))
        rounded = np.rint(values, casting="unsafe") if values.dtype.kind == "f" else values
        if self.name == "masks" and (rounded != values).any():
            self.expect(False, expected, _first_wrong(values, rounded != values, start))
        rounded = rounded.astype(np.uint8, copy=False)
        return rounded if unknown is None else np.where(unknown, np.uint8(UNKNOWN), rounded)

    def source_lines(self):
        """The file's attribute `source_lines`, a list of one integer per sample; else None."""
        with self.opened() as dataset:
            lines = dataset.file.attrs.get("source_lines")
        fits = isinstance(lines, np.ndarray) and lines.shape == self.shape[:1]
        return lines.tolist() if fits and lines.dtype.kind in "iu" else None


def has_filter(code):
    """Whether HDF5 can undo the filter of this number; hdf5plugin brings some when imported."""
    if not h5py.h5z.filter_avail(code):
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401
    return h5py.h5z.filter_avail(code)


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


def read_labels(array, classes=2):
    """(N,) float32 whole numbers below `classes`, -1 for unknown."""
    with array.opened() as dataset:
        labels = dataset[()].reshape(-1).astype(np.float64)
    labels[np.isnan(labels)] = -1
    wrong = ~np.isin(labels, np.arange(-1, classes))
    if wrong.any():
        expected = "0, 1, -1 or NaN" if classes == 2 else f"0-{classes - 1}, -1 or NaN"
        array.expect(False, expected, _first_wrong(labels, wrong, 0))
    return torch.from_numpy(labels.astype(np.float32))


def read_class_names(array):
    """The names of class 0 and class 1."""
    with array.opened() as dataset:
        names = np.array(DEFAULT_CLASS_NAMES, object)
        if "class_names" in dataset.attrs:
            if dataset.attrs.get_id("class_names").dtype.kind == "O":  # strings in a heap
                check_heap(array)
            names = np.array(dataset.attrs["class_names"], object)
    names = names.tolist() if names.ndim else [names.item()]
    names = [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]
    are_names = len(names) == 2 and all(isinstance(n, str) and n.isprintable() for n in names)
    array.expect(are_names, "two class_names", str(names)[:80])
    return tuple(names)


def check_heap(array):
    """Refuse a damaged heap of strings, on which the HDF5 library would loop forever.

    A file above HEAP_BYTES, which holds more than labels, is not searched.
    https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, section III.E.
    """
    if array.path.stat().st_size > HEAP_BYTES:
        return
    data = array.path.read_bytes()
    for heap in re.finditer(rb"GCOL\x01.{3}(.{8})", data, re.DOTALL):
        end = heap.start() + int.from_bytes(heap[1], "little")
        place = heap.end()
        while place + 16 <= min(end, len(data)):
            number, size = struct.unpack_from("<H6xQ", data, place)
            step = 16 + -(-size // 8) * 8 if number else size  # number 0 is the free rest
            array.expect(0 < step <= end - place, "a sound heap of strings", "a damaged one")
            place += step


def _slabs(dataset):
    """Yield (start, stop) ranges that cover the dataset: about SLAB_BYTES each, whole chunks."""
    sample_bytes = max(1, dataset.dtype.itemsize * math.prod(dataset.shape[1:]))
    step = max(1, SLAB_BYTES // sample_bytes)
    chunk = dataset.chunks[0] if dataset.chunks else 1
    if chunk <= 4 * step:
        step = math.ceil(step / chunk) * chunk  # no chunk is decompressed twice
    for start in range(0, len(dataset), step):
        yield start, min(start + step, len(dataset))


def _first_wrong(values, wrong, start):
    """'VALUE in sample NUMBER' for the first wrong entry of a slab that begins at `start`."""
    position = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return f"{values[position]} in sample {start + int(position[0])}"
