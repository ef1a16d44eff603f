"""Writing the H5 layout of dataload.py, even on a disk that fills up."""

import io
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from parts.h5array import DataError


def write_split(folder, arrays, attributes, class_names):
    """Write one split in the layout of dataload.py; the inverse of H5Dataset.

    Arrays are stored contiguously, so that a sample or a whole file takes one read.

    Args:
        folder: created; must not hold the files yet.
        arrays: {file: values}, among them "images", uint8 (N, H, W, 3).
        attributes: {name: string or number}, the attributes of every file.
        class_names: {file: names of its classes}.

    Raises:
        DataError: a file exists already, or the disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in arrays.items():
        names = [text.encode() for text in class_names.get(name, ())]
        text = h5py.string_dtype("utf-8", max(map(len, [*names, b" "])))  # fixed length: no heap
        with new_h5_file(folder / f"{name}.h5") as file:
            dataset = file.create_dataset(name, data=values)
            if names:
                dataset.attrs["class_names"] = np.array(names, text)
            file.attrs.update(attributes)


@contextmanager
def new_h5_file(path):
    """An h5py.File to be filled in a block, on disk when the block ends.

    Raises:
        DataError: the file exists already, its folder is missing, or the disk is full; what has
            been written of the file stays.
    """
    try:
        sink = Sink(path, "x+")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
    with sink, h5py.File(sink, "w") as file:
        yield file
    if isinstance(sink.error, OSError):
        raise DataError(f"{path}: cannot be written ({sink.error.strerror})") from sink.error
    if sink.error:
        raise sink.error


class Sink(io.FileIO):
    """A file that remembers the first error in writing to it and accepts everything after that.

    If HDF5 saw a failed write or Ctrl-C, it would keep the file in its list of open ones, and the
    process would end in a segmentation fault when Python exits.
    """

    error = None

    def write(self, data):
        """Write all bytes, unless something has failed before."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while len(rest) and not self.error:
            rest = rest[self._attempt(super().write, rest) or 0 :]
        return size

    def truncate(self, size=None):
        """Set the size, unless something has failed before."""
        if not self.error:
            self._attempt(super().truncate, size)
        return size

    def close(self):
        """Close the file."""
        self._attempt(super().close)

    def _attempt(self, function, *arguments):
        """What the function returns; None if it fails."""
        try:
            return function(*arguments)
        except BaseException as error:
            self.error = self.error or error
