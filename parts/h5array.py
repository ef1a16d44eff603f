"""One array of the H5 layout of dataload.py: opened, checked and read.

Every problem of a file becomes one DataError that names the file.
"""

import math
import re
import struct
from contextlib import contextmanager, suppress

import h5py
import numpy as np

from parts.errors import UserError, one_line

SPLITS = ("train", "val", "test")
SLAB_BYTES = 32 * 2**20  # converted at a time, so that a float64 file never fills the memory
HEAP_BYTES = 2**20  # largest file whose heap of strings is checked for damage


class DataError(UserError):
    """A missing, damaged or inconsistent data file; the message is one line that names the file."""

    def __str__(self):
        # a DataLoader re-raises an error of its workers, with their traceback before the message
        return super().__str__().rpartition(f"{DataError.__name__}: ")[2].strip()


class H5Array:
    """One array of a split; its file is opened for each use, without locks, and closed after it.

    Every method raises DataError, with one line that names the file, if the file is missing or
    damaged or violates the layout.

    Attributes:
        name: of the dataset, and of the file without its ending.
        path: of the file.
        shape, dtype: as stored; known after `read_header`.
        scale, fill: the attributes `scale_factor` and `_FillValue` of the dataset, as in the CF
            conventions of netCDF: stored numbers times `scale` are the values, and `fill` means
            unknown; 1 and None by default.
    """

    def __init__(self, folder, name):
        self.name, self.path = name, folder / f"{name}.h5"
        self.shape = self.dtype = self.fill = None
        self.scale = 1

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
                yield self.find(file)
        except (DataError, MemoryError):
            raise
        except Exception as error:  # h5py has no common class for what damaged files raise
            raise DataError(f"{self.path}: not a readable HDF5 file ({one_line(error)})") from error

    def find(self, file):
        """The dataset with this array's name, or the only one in the file."""
        if isinstance(file.get(self.name), h5py.Dataset):
            return file[self.name]
        found = [key for key in file if isinstance(file.get(key), h5py.Dataset)]
        self.expect(len(found) == 1, f"a dataset '{self.name}'", sorted(file)[:5] or "nothing")
        return file[found[0]]

    def read_header(self):
        """Set shape and dtype, after checking that real numbers are stored for all of it."""
        with self.opened() as dataset:
            self.shape, self.dtype = dataset.shape, dataset.dtype
            is_real = self.dtype.kind in "buif" and self.shape is not None
            self.expect(is_real, "real numbers", f"shape {self.shape} of dtype {self.dtype}")
            self._check_storage(dataset)
            self.scale = self._number(dataset, "scale_factor", 1)
            self.fill = self._number(dataset, "_FillValue", None)

    def _number(self, dataset, name, default):
        """The number in an attribute of the dataset."""
        if name not in dataset.attrs:
            return default
        found = np.asarray(dataset.attrs[name])
        fits = found.size == 1 and found.dtype.kind in "iuf"
        self.expect(fits, f"a number as {name}", str(found)[:80])
        return found.item()

    def _check_storage(self, dataset):
        """DataError for what HDF5 cannot read, or would read as zeros that nobody wrote."""
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

    def slabs(self, convert):
        """Yield (start, `convert(values, start)`) for parts of the array that cover it, in order.

        Args:
            convert: (values as stored, number of their first sample) -> array.
        """
        with self.opened() as dataset:
            for start, stop in _slabs(dataset):
                yield start, convert(dataset[start:stop], start)

    def rows(self, numbers, convert):
        """These samples, converted as in `slabs`, as one array."""
        with self.opened() as dataset:
            before, now = (f"{array.shape} of dtype {array.dtype}" for array in (self, dataset))
            self.expect(now == before, f"shape {before} as at the start", now)
            return np.concatenate([convert(dataset[i : i + 1], i) for i in numbers])

    def values(self):
        """The whole array as float64."""
        with self.opened() as dataset:
            return dataset[()].astype(np.float64)

    def source_lines(self):
        """The file's attribute `source_lines`, a list of one integer per sample; else None."""
        with self.opened() as dataset:
            lines = dataset.file.attrs.get("source_lines")
        fits = isinstance(lines, np.ndarray) and lines.shape == self.shape[:1]
        return lines.tolist() if fits and lines.dtype.kind in "iu" else None


def has_filter(code):
    """Whether HDF5 can decode the filter with this number; importing hdf5plugin adds some."""
    if not h5py.h5z.filter_avail(code):
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401
    return h5py.h5z.filter_avail(code)


def read_class_names(array, classes):
    """The names of the classes as a tuple of strings; None if the file has none."""
    with array.opened() as dataset:
        if "class_names" not in dataset.attrs:
            return None
        if dataset.attrs.get_id("class_names").dtype.kind == "O":  # strings in a heap
            check_heap(array)
        names = np.array(dataset.attrs["class_names"], object)
    names = names.tolist() if names.ndim else [names.item()]
    names = [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]
    are_names = len(names) == classes and all(isinstance(n, str) and n.isprintable() for n in names)
    expected = "two class_names" if classes == 2 else f"{classes} class_names"
    array.expect(are_names, expected, str(names)[:80])
    return tuple(names)


def check_heap(array):
    """DataError for a damaged heap of strings, on which the HDF5 library would loop forever.

    A file above HEAP_BYTES, which holds more than labels, is not checked.
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


def first_wrong(values, wrong, start):
    """'VALUE in sample NUMBER' for the first wrong entry of a slab that begins at `start`."""
    position = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return f"{values[position]} in sample {start + int(position[0])}"
