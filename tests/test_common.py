"""What ends a tool early leaves nothing half done, and says so in one line."""

import io
import os
import signal
import sys
import threading

import h5py
import numpy as np
import pytest

from parts import h5file
from parts.h5array import DataError
from parts.h5file import new_h5_file
from parts.streams import SafeStream
from tools.shared import common, splitting


def killed(number):
    """The work of a tool that is sent a signal while it fills a new folder."""

    def work(argv):
        with splitting.staged(argv[0], force=False) as folder:
            (folder / "half").touch()
            os.kill(os.getpid(), number)

    return work


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_no_partial_folder(tmp_path, capsys, name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    assert common.run_tool("tool.py", killed(number), [tmp_path / "out"]) == 128 + number
    assert capsys.readouterr().err == "tool.py: interrupted\n"
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(number) is before


def test_a_second_sigterm_does_not_disturb_the_tidying_up(tmp_path, monkeypatch):
    def remove(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        rmtree(*arguments, **options)

    rmtree = splitting.shutil.rmtree
    monkeypatch.setattr(splitting.shutil, "rmtree", remove)
    work = killed(signal.SIGTERM)
    assert common.run_tool("tool.py", work, [tmp_path / "out"]) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_an_ignored_signal_stays_ignored(tmp_path):
    """As under nohup."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert common.run_tool("tool.py", killed(signal.SIGHUP), [tmp_path / "out"]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)
    assert (tmp_path / "out" / "half").exists()


def test_a_tool_runs_in_any_thread():
    found = []
    work = threading.Thread(target=lambda: found.append(common.run_tool("t", lambda argv: 7, [])))
    work.start()
    work.join()
    assert found == [7]


def test_an_error_without_a_file_is_not_blamed_on_stdout(capsys):
    def work(argv):
        print("so far")
        raise OSError(28, "No space left\non device")

    assert common.run_tool("tool.py", work, []) == 2
    assert capsys.readouterr() == ("so far\n", "tool.py: No space left on device\n")


def write_with(monkeypatch, write):
    """Let new files be written to by `write(file, data)` instead of `io.FileIO.write`."""
    raw = type("Raw", (io.FileIO,), {"write": write})
    monkeypatch.setattr(h5file, "Sink", type("Sink", (h5file.Sink, raw), {}))


@pytest.mark.parametrize("room", [0, 100, 3000, 10_000])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, room):
    def write(file, data):
        if room < file.tell() + len(data):
            raise OSError(28, "No space left on device")
        return io.FileIO.write(file, data)

    write_with(monkeypatch, write)
    path, opened = tmp_path / "masks.h5", len(open_files())
    message = rf"^{path}: cannot be written \(No space left on device\)$"
    with pytest.raises(DataError, match=message), new_h5_file(path) as file:
        file["masks"] = np.arange(20_000)
        file.attrs["source"] = "test"
    assert len(open_files()) == opened  # HDF5 would crash over it at the end of Python


def open_files():
    return h5py.h5f.get_obj_ids(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)


def test_a_new_file_holds_what_is_written_and_replaces_none(tmp_path):
    path = tmp_path / "masks.h5"
    with new_h5_file(path) as file:
        file.create_dataset("masks", data=np.arange(20_000), chunks=(7,), compression="gzip")
    with h5py.File(path) as file:
        assert np.array_equal(file["masks"], np.arange(20_000))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"masks.h5: cannot be written .File exists"):
        new_h5_file(path).__enter__()
    assert path.read_bytes() == before


def test_ctrl_c_while_hdf5_writes_waits_until_it_has(tmp_path, monkeypatch):
    def interrupt(file, data):
        raise KeyboardInterrupt

    write_with(monkeypatch, interrupt)
    opened = len(open_files())
    with pytest.raises(KeyboardInterrupt), new_h5_file(tmp_path / "masks.h5") as file:
        file["masks"] = np.arange(20_000)
    assert len(open_files()) == opened


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_stream_that_is_gone_takes_everything(monkeypatch, stream):
    if stream:
        with open(os.devnull, "w") as stream:
            pass
    monkeypatch.setattr(sys, "stderr", stream)
    safe = SafeStream("stderr")
    assert not safe.isatty()
    safe.write("lost")
    safe.flush()
    assert sys.stderr is None or stream is None
