"""What all tools share: folders, streams, and what the system refuses."""

import io
import os
import sys
from pathlib import Path

import pytest
import torch

from parts.errors import UserError
from tools.shared import common


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


def test_ctrl_c_and_what_the_system_refuses(capsys, tmp_path):
    assert common.run_tool("tool.py", interrupted, None) == 130
    assert capsys.readouterr().err == "tool.py: interrupted\n"
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
