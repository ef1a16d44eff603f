"""The synthetic pets: deterministic, well-formed, and not separable by colour."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dataload import DataError, H5Dataset
from tools.make_demo import make_demo

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "pets"
    make_demo(folder, side=64, counts=(60, 6, 8), seed=1)
    return folder


def test_the_seed_decides_every_pixel(demo, tmp_path):
    make_demo(tmp_path / "same", side=64, counts=(60, 6, 8), seed=1)
    make_demo(tmp_path / "other", side=64, counts=(60, 6, 8), seed=2)
    for split in ("train", "val", "test"):
        first, same, other = (
            H5Dataset(split, f) for f in (demo, tmp_path / "same", tmp_path / "other")
        )
        assert torch.equal(first.images, same.images)
        assert torch.equal(first.bboxes, same.bboxes)
        assert not torch.equal(first.images, other.images)
    assert not torch.equal(H5Dataset("val", demo).images, H5Dataset("test", demo).images[:6])


def test_every_sample_is_a_pet_with_its_head_in_the_box(demo):
    dataset = H5Dataset("train", demo)
    assert (len(dataset), dataset.side, dataset.class_names) == (60, (64, 64), ("cat", "dog"))
    assert dataset.binary.mean() == 0.5
    shares = dataset.masks.float().mean((1, 2))
    assert shares.min() > 0.02 and shares.max() < 0.6
    for mask, box in zip(dataset.masks, dataset.bboxes * 64, strict=True):
        x0, y0, x1, y1 = box.round().int().tolist()
        inside = mask[y0:y1, x0:x1].float().mean()
        assert inside > 0.4
        assert (x1 - x0) * (y1 - y0) < 0.3 * 64 * 64


def test_colour_does_not_tell_the_species(demo):
    dataset = H5Dataset("train", demo)
    images = dataset.images.float()
    masks = dataset.masks[..., None].float()
    colour = (images * masks).sum((1, 2)) / masks.sum((1, 2))  # (N, 3) mean over the pet
    for channel in colour.T:
        guess = (channel > channel.median()).float()
        right = (guess == dataset.binary).float().mean()
        assert 0.3 < right < 0.7


def test_a_split_is_never_overwritten(demo):
    before = (demo / "train" / "images.h5").read_bytes()
    with pytest.raises(DataError, match="expected no split there yet, found train"):
        make_demo(demo)
    assert (demo / "train" / "images.h5").read_bytes() == before


def command(*flags):
    arguments = [sys.executable, str(ROOT / "tools" / "make_demo.py"), *flags]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--side", "8"], "--side"),
        (["--counts", "4", "0", "4"], "--counts"),
        (["--counts", "4", "4"], "--counts: expected 3 numbers, found 2"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, flags, message):
    done = command("--out", str(tmp_path / "out"), *flags)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_writes_what_it_is_asked_for(tmp_path):
    out = tmp_path / "out"
    done = command("--out", str(out), "--side", "32", "--counts", "2", "3", "4")
    assert done.returncode == 0, done.stderr
    assert [len(H5Dataset(split, out)) for split in ("train", "val", "test")] == [2, 3, 4]
    assert command("--out", str(out)).returncode == 2
