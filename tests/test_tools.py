"""What all tools share: folders, streams, and what ends a tool early, in one line."""

import io
import os
import signal
import sys
import threading
from pathlib import Path

import disks
import h5py
import numpy as np
import pytest
import torch

from parts.errors import UserError
from parts.h5array import DataError
from parts.h5file import new_h5_file
from parts.streams import SafeStderr
from tools.shared import common, splitting


def test_make_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert common.make_folder("~/new/folder", "--out") == tmp_path / "new/folder"
    assert (tmp_path / "new/folder").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out: cannot create the folder"):
        common.make_folder(tmp_path / "file/new", "--out")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="--out: expected a writable folder, found"):
        common.make_folder(tmp_path, "--out")


def test_what_torchrun_left_in_the_environment_is_ignored(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    processes = common.choose_device("cpu")
    assert (processes.rank, processes.size, processes.local_rank) == (0, 1, 0)
    assert processes.device == torch.device("cpu")


def interrupted(argv):
    raise KeyboardInterrupt


def speaks(argv):
    print("Δ 猫")


def refused(argv):
    Path(argv[0]).read_bytes()


def too_large(argv):
    raise MemoryError


def test_what_the_system_refuses(capsys, tmp_path):
    assert common.run_tool("tool.py", refused, [tmp_path / "x"]) == 2
    assert capsys.readouterr().err == f"tool.py: {tmp_path / 'x'}: No such file or directory\n"
    assert common.run_tool("tool.py", too_large, None) == 2
    assert capsys.readouterr().err.startswith("tool.py: expected enough memory, found too little;")


def test_streams_that_go_away_or_take_few_letters(monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", os.fdopen(writing, "w"))
        assert common.run_tool("tool.py", speaks, None) == 0
    assert capsys.readouterr().err == ""
    with monkeypatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, "stdout", full)
        assert common.run_tool("tool.py", speaks, None) == 2
    assert capsys.readouterr().err == "tool.py: stdout: No space left on device\n"
    narrow = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(narrow, encoding="cp1252"))
        assert common.run_tool("tool.py", speaks, None) == 0
        assert narrow.getvalue() == b"\\u0394 \\u732b\n"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", None)
        assert common.run_tool("tool.py", speaks, None) == 0
        assert common.run_tool("tool.py", interrupted, None) == 130
    assert capsys.readouterr() == ("", "")


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


@pytest.mark.parametrize("room", [0, 100, 3000, 10_000])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, room):
    disks.fill(monkeypatch, room)
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

    disks.write_with(monkeypatch, interrupt)
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
    safe = SafeStderr()
    assert not safe.isatty()
    safe.write("lost")
    safe.flush()
    assert sys.stderr is None or stream is None
