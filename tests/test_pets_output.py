"""The output of tools/prepare_pets.py is complete or absent; downloads."""

import hashlib
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import pytest
from pets_folder import drawn, out, root  # noqa: F401 (fixtures)
from pets_source import assert_one_line, boxed_names, contents, everything, run

from dataload import SPLITS, H5Dataset
from tools import prepare_pets


def test_existing_output_is_refused_and_kept(drawn, out, capsys):
    run(drawn, out)
    before = contents(out)
    capsys.readouterr()
    assert run(drawn, out, "--seed", 1) == 2
    assert_one_line(capsys, "--out", str(out), "--force")
    assert contents(out) == before and list(out.parent.iterdir()) == [out]


def test_force_replaces(drawn, out):
    run(drawn, out)
    (out / "val/masks.h5").unlink()  # an incomplete one may be replaced as well
    assert run(drawn, out, "--size", 16, "--force") == 0
    assert [H5Dataset(split, out).side for split in SPLITS] == [(16, 16)] * 3
    assert list(out.parent.iterdir()) == [out]


def test_force_needs_no_old_output_and_follows_a_link(drawn, out):
    link = out.with_name("link")
    assert run(drawn, out, "--force") == 0
    assert everything(out) == boxed_names()
    link.symlink_to(out)
    assert run(drawn, link, "--size", 16, "--force") == 0
    assert link.is_symlink() and H5Dataset("val", out).side == (16, 16)


@pytest.mark.parametrize("name", ["thesis.tex", "train/notes.txt"])
def test_force_spares_foreign_files(drawn, out, capsys, name):
    run(drawn, out)
    (out / name).write_text("mine")
    before = contents(out)
    assert run(drawn, out, "--force") == 2
    assert_one_line(capsys, "--force", name)
    assert contents(out) == before


def test_force_spares_a_file(drawn, out, capsys):
    out.write_text("mine")
    assert run(drawn, out, "--force") == 2
    assert_one_line(capsys, "--force", str(out))
    assert out.read_text() == "mine"


def fail_at_val(monkeypatch, error):
    """Make the tool fail after one split is on disk, as a signal or a full disk would."""
    opened, tried = h5py.File, []

    def fail(path, mode="r", **options):
        place = Path(getattr(path, "name", path))  # of an open file or a path
        if mode != "r" and place.parent.name == "val":
            tried.append(place)
            raise error
        return opened(path, mode, **options)

    monkeypatch.setattr(h5py, "File", fail)
    return tried


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left\non device"), 2, "No space left on device"),
    ],
)
@pytest.mark.parametrize("has_old", [False, True])
def test_interrupted_write(drawn, out, capsys, monkeypatch, error, code, message, has_old):
    if has_old:
        run(drawn, out)
    before = contents(out)
    tried = fail_at_val(monkeypatch, error)
    assert run(drawn, out, "--seed", 1, "--force") == code
    assert tried[0].parents[2] == out.parent  # a sibling, so that renaming is atomic
    assert_one_line(capsys, message)
    assert contents(out) == before and list(out.parent.iterdir()) == [out] * has_old


def test_a_bug_leaves_no_partial_output_either(drawn, out, monkeypatch):
    fail_at_val(monkeypatch, KeyError("bug"))
    with pytest.raises(KeyError, match="bug"):
        run(drawn, out)
    assert list(out.parent.iterdir()) == []


def test_a_failed_exchange_brings_the_old_output_back(drawn, out, capsys, monkeypatch):
    run(drawn, out)
    before = contents(out)
    rename = Path.rename

    def fail(path, target):
        if ".partial-" in path.name:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    assert run(drawn, out, "--seed", 1, "--force") == 2
    assert_one_line(capsys, "Input/output error")
    assert contents(out) == before and list(out.parent.iterdir()) == [out]


def test_output_that_appears_meanwhile_is_kept(drawn, out, capsys, monkeypatch):
    opened = h5py.File

    def appear(path, mode="r", **options):
        out.mkdir(exist_ok=True)
        (out / "other").write_text("of another run")
        return opened(path, mode, **options)

    monkeypatch.setattr(h5py, "File", appear)
    assert run(drawn, out) == 2
    assert_one_line(capsys, str(out))
    assert [path.name for path in out.iterdir()] == ["other"]
    assert list(out.parent.iterdir()) == [out]


# Download, from a server on this machine in place of the real one


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def archives(drawn, tmp_path, monkeypatch):
    """The folder of the two archives that torchvision will fetch."""
    folder = tmp_path / "archives"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    resources = []
    for name in ("images", "annotations"):
        archive = folder / f"{name}.tar.gz"
        with tarfile.open(archive, "w:gz") as file:
            file.add(drawn / "oxford-iiit-pet" / name, arcname=name)
        url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        resources.append((url, hashlib.md5(archive.read_bytes()).hexdigest()))
    monkeypatch.setattr(prepare_pets.OxfordIIITPet, "_RESOURCES", resources)
    yield folder
    server.shutdown()
    server.server_close()


def test_download(archives, out, tmp_path):
    assert run(tmp_path / "new", out, "--download") == 0
    assert everything(out) == boxed_names()


def test_failed_download(archives, out, tmp_path, capsys):
    (archives / "images.tar.gz").unlink()
    assert run(tmp_path / "new", out, "--download") == 2
    assert_one_line(capsys, "--download to", "oxford-iiit-pet: expected images/", "404")
    assert list(out.parent.iterdir()) == []


def test_damaged_download(archives, out, tmp_path, capsys):
    (archives / "images.tar.gz").write_text("something else")
    assert run(tmp_path / "new", out, "--download") == 2
    last = capsys.readouterr().err.splitlines()[-1]  # after torchvision's progress bar
    assert last.startswith("prepare_pets.py: --download to") and "corrupted" in last
    assert list(out.parent.iterdir()) == []
