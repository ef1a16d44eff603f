"""Data sets of synthetic pets: the same whoever draws them, whole or not there at all."""

import multiprocessing
import os
import signal
import sys
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dataload import DataError, H5Dataset
from parts import demo_data
from parts.demo_data import make_demo
from parts.drawn_scenes import BREED_NAMES, STYLES, draw_sample
from parts.targets import PETS, Label
from tools.make_demo import main


@pytest.fixture(scope="module", params=STYLES)
def pets(request, tmp_path_factory):
    """A small data set of each style."""
    folder = tmp_path_factory.mktemp("demo") / "pets"
    make_demo(folder, side=64, counts=(20, 6, 8), seed=1, style=request.param)
    return folder, request.param


def same(folder, style, index, seed=1, split=("train", 0)):
    """Whether a sample of a data set is the one drawn alone."""
    image, mask, box, label, _ = draw_sample(seed, split[1], index, 64, style)
    found, targets = H5Dataset(split[0], folder)[index]
    return (
        np.array_equal(found.permute(1, 2, 0), image)
        and np.array_equal(targets["seg"][0], mask[..., 0])
        and np.allclose(targets["bbox"] * 64, box)
        and targets["bin"] == label
    )


def test_a_sample_depends_on_seed_split_and_number_alone(pets, tmp_path):
    folder, style = pets
    assert all(same(folder, style, index) for index in (0, 17, 19))
    assert same(folder, style, 5, split=("val", 1)) and same(folder, style, 7, split=("test", 2))
    images = [draw_sample(*key, 64, style)[0] for key in ((1, 0, 4), (2, 0, 4), (1, 1, 4))]
    images.append(draw_sample(1, 0, 6, 64, style)[0])
    assert len({image.tobytes() for image in images}) == 4


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_any_number_of_processes_draws_the_same(tmp_path, monkeypatch, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    used = []

    def pool(workers, **options):
        used.append(workers)
        context = multiprocessing.get_context(method)
        return ProcessPoolExecutor(workers, mp_context=context, **options)

    make_demo(tmp_path / "one", side=32, counts=(40, 2, 3))
    assert used == []  # so small a job starts no process
    monkeypatch.setattr(demo_data, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(demo_data, "POOLED_PIXELS", 0)
    monkeypatch.setattr(demo_data, "count_cores", lambda: 3)
    make_demo(tmp_path / "many", side=32, counts=(40, 2, 3))
    assert used == [3]
    for split in ("train", "val", "test"):
        one, many = (H5Dataset(split, tmp_path / name) for name in ("one", "many"))
        assert one.fingerprint() == many.fingerprint()


def test_breeds_are_written_only_when_asked(tmp_path):
    make_demo(tmp_path / "with", side=32, counts=(16, 2, 2), breeds=True)
    make_demo(tmp_path / "without", side=32, counts=(16, 2, 2))
    files = [sorted(p.name for p in tmp_path.glob(f"{name}/val/*")) for name in ("with", "without")]
    assert files[1] == ["bboxes.h5", "binary.h5", "images.h5", "masks.h5"]
    assert files[0] == sorted([*files[1], "breeds.h5"])
    kinds = PETS | {"breed": Label("breeds", 37)}
    one, other = (H5Dataset("train", tmp_path / name, kinds) for name in ("with", "without"))
    images, targets = one[range(16)]
    assert torch.equal(images, other[range(16)][0]) and one.class_names["bin"] == ("cat", "dog")
    assert one.class_names["breed"][: len(BREED_NAMES)] == BREED_NAMES
    breeds = targets["breed"].tolist()
    assert breeds == [draw_sample(0, 0, i, 32)[4] for i in range(16)]
    assert [BREED_NAMES[n].split()[-1] for n in breeds] == ["cat", "dog"] * 8
    assert len(set(breeds)) > 8


def test_a_split_is_never_overwritten(pets):
    file = pets[0] / "train" / "images.h5"
    before = file.read_bytes()
    with pytest.raises(DataError, match="expected no split there yet, found train"):
        make_demo(pets[0])
    assert file.read_bytes() == before


def test_there_is_no_other_style(tmp_path):
    with pytest.raises(ValueError, match="expected one of demo, varied, found 'oil'"):
        make_demo(tmp_path / "out", style="oil")
    assert not (tmp_path / "out").exists()


def mistake(capsys, *flags, code=2):
    """The one line on stderr with which the command ends."""
    found = main(list(flags))
    printed = capsys.readouterr().err
    assert found == code and printed.count("\n") == 1 and printed.startswith("make_demo.py: ")
    return printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--side", "8"], "--side: expected a whole number from 32 to 1024, found '8'"),
        (["--counts", "4", "0", "4"], "--counts: expected a whole number from 2 to 100000, found"),
        (["--counts", "4", "4"], "--counts: expected 3 arguments"),
        (["--seed", "-1"], "--seed"),
        (["--vried"], "did you mean --varied?"),
        (["--out", ""], "--out: expected a path, found an empty one"),
        (["--out", "file/pets"], "file/pets: Not a directory"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert message in mistake(capsys, "--out", "out", *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command_writes_what_it_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = ["--side", "64", "--counts", "2", "3", "4", "--seed", "5"]
    assert main(["--out", "~/out", *flags]) == 0
    assert main(["--out", "~/varied", "--varied", *flags]) == 0
    for name, style in (("out", "demo"), ("varied", "varied")):
        splits = [H5Dataset(split, tmp_path / name) for split in ("train", "val", "test")]
        assert [len(split) for split in splits] == [2, 3, 4]
        assert same(tmp_path / name, style, 1, seed=5)
    assert "found train, val, test" in mistake(capsys, "--out", "~/out")


class Eager(demo_data.tqdm):
    """A progress bar that is drawn from the start."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options | {"delay": 0, "mininterval": 0})


def test_a_closed_stderr_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_data, "tqdm", Eager)
    monkeypatch.setattr(sys, "stderr", None)
    make_demo(tmp_path / "out", side=32, counts=(2, 2, 2))


class Interrupted(demo_data.tqdm):
    """A progress bar under which Ctrl-C is pressed."""

    def update(self, n=1):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("cores", "is_there"), [(1, True), (2, False)])
def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch, capsys, cores, is_there):
    monkeypatch.setattr(demo_data, "POOLED_PIXELS", 0)
    monkeypatch.setattr(demo_data, "count_cores", lambda: cores)
    monkeypatch.setattr(demo_data, "tqdm", Interrupted)
    out = tmp_path / "out"
    if is_there:
        out.mkdir()
    flags = ["--out", str(out), "--side", "32", "--counts", "300", "20", "20"]
    assert "interrupted" in mistake(capsys, *flags, code=130)
    assert list(tmp_path.rglob("*")) == ([out] if is_there else [])
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_is_one_line(tmp_path, monkeypatch, capsys):
    def broken(tasks, workers):
        yield demo_data.draw_chunk(*tasks[0])
        raise BrokenExecutor("terminated abruptly")

    monkeypatch.setattr(demo_data, "draw_chunks", broken)
    flags = ["--out", str(tmp_path / "out"), "--side", "32", "--counts", "40", "2", "2"]
    assert "a process that drew pets has died" in mistake(capsys, *flags)
    assert not (tmp_path / "out").exists()
