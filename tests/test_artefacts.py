"""Files are written whole or not at all, whatever fails; nothing but tensors is ever loaded."""

import os
import pickle

import pytest
import torch

from parts import files
from parts.errors import UserError


@pytest.fixture
def old(tmp_path):
    """A file that a failure must leave as it is."""
    path = tmp_path / "main_last.pt"
    files.save({"old": torch.arange(3)}, path)
    return path


def is_old(path):
    alone = [entry.name for entry in path.parent.iterdir()] == [path.name]
    return alone and files.load(path)["old"].tolist() == [0, 1, 2]


def test_what_is_saved_is_loaded(old):
    content = {"tensor": torch.rand(3), "number": 0.1, "list": [1, None], "tuple": ("a", 2)}
    files.save(content, old)
    loaded = files.load(old)
    assert torch.equal(loaded.pop("tensor"), content.pop("tensor")) and loaded == content


def fail_half_way(path, content):
    with open(path, "wb") as file:
        file.write(bytes(content)[: len(content) // 2])
    raise OSError(28, "No space left on device")


def fail(*arguments):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("stage", "failure"),
    [
        ("pathlib.Path.write_bytes", fail),
        ("pathlib.Path.write_bytes", fail_half_way),
        ("os.fsync", fail),
        ("os.replace", fail),
    ],
)
def test_a_failure_at_any_stage_leaves_the_old_file(old, monkeypatch, stage, failure):
    with monkeypatch.context() as patch:
        patch.setattr(stage, failure)
        with pytest.raises(UserError) as caught:
            files.save({"new": torch.zeros(1000)}, old)
    assert str(caught.value) == f"{old}: cannot be written (No space left on device)"
    assert is_old(old)


def test_other_failures_leave_the_old_file_too(old):
    with pytest.raises(KeyboardInterrupt), files.replacing(old) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert is_old(old)


def test_a_disk_that_goes_away_is_named(old, monkeypatch):
    """Nothing on it can be written or removed."""

    def gone(*arguments, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", gone)
    monkeypatch.setattr(os, "unlink", gone)
    with pytest.raises(UserError, match=r"cannot be written \(Input/output error\)"):
        files.save({}, old)
    assert files.load(old)["old"].tolist() == [0, 1, 2]


def test_leftovers_of_this_name_are_removed(tmp_path):
    kept = ["main_last.pt", ".main_wide_last.pt.7.part.pt", ".main_last.pt.bak"]
    for name in [*kept, ".main_last.pt.7.part.pt", ".main_test.png.12.part.png"]:
        (tmp_path / name).touch()
    files.remove_leftovers([tmp_path / "main_last.pt", tmp_path / "main_test.png"])
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


class Dangerous:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_checkpoint_never_runs_code(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "main_last.pt"
    save(Dangerous(), path)
    with pytest.raises(UserError, match="expected a checkpoint, found a damaged file"):
        files.load(path)
    assert os.listdir(tmp_path) == ["main_last.pt"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(old, share):
    content = old.read_bytes()
    old.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="expected a checkpoint, found a damaged"):
        files.load(old)


def test_an_output_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--file-save-path: cannot create the folder "):
        files.output_folder(tmp_path / "file" / "out")


def test_an_unwritable_output_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match="--file-save-path: expected a writable folder, found"):
        files.output_folder(tmp_path)
