"""Disks on which writing a new H5 file fails."""

import io

from parts import h5file


def write_with(monkeypatch, write):
    """Let new files be written to by `write(file, data)` instead of `io.FileIO.write`."""
    raw = type("Raw", (io.FileIO,), {"write": write})
    monkeypatch.setattr(h5file, "Sink", type("Sink", (h5file.Sink, raw), {}))


def fill(monkeypatch, room=0):
    """Let the disk be full for each new file after `room` bytes."""

    def write(file, data):
        if room < file.tell() + len(data):
            raise OSError(28, "No space left on device")
        return io.FileIO.write(file, data)

    write_with(monkeypatch, write)
