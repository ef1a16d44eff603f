"""New HDF5 files whose writing may fail without harm."""

import io
from contextlib import contextmanager

import h5py

from parts.h5array import DataError


class Sink(io.FileIO):
    """A file that keeps the first error of writing to it, and takes all bytes after that.

    After a failed write, HDF5 leaves the file in its list of open ones, and a segmentation fault
    ends the process when Python exits. So HDF5 does not hear of it, nor of Ctrl-C in between.
    """

    error = None

    def write(self, data):
        """Write all bytes, unless something has failed before."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest) and not self.error:
                rest = rest[super().write(rest) :]
        except BaseException as error:
            self.error = error
        return size

    def truncate(self, size=None):
        """Set the size, unless something has failed before."""
        try:
            return size if self.error else super().truncate(size)
        except BaseException as error:
            self.error = error
            return size


@contextmanager
def new_h5_file(path):
    """An h5py.File to be filled in a block, on disk when the block ends.

    Raises:
        DataError: the file exists already, its folder is missing, or the disk is full; what has
            been written of the file stays.
    """
    try:
        with Sink(path, "x+") as sink:
            with h5py.File(sink, "w") as file:
                yield file
            if sink.error:
                raise sink.error
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise DataError(f"{path}: cannot be written ({reason})") from error
