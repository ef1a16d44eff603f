"""Masks for images without one, by a network whose answer is known."""

import shutil

import h5py
import numpy as np
import pytest
import torch
from running import run

from dataload import H5Dataset, write_split
from tools import pseudo_masks

SIDE = 32


@pytest.fixture
def data(tmp_path):
    """Four images of two halves; two have no mask, and one is known in part."""
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        images = random.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
        masks = np.ones((4, SIDE, SIDE, 1), np.uint8)
        masks[:, : SIDE // 2] = 0
        if split == "train":
            masks[1:3] = 255
            masks[3, :4] = 255
        boxes = np.full((4, 4), np.nan)
        write_split(tmp_path / "data" / split, images, masks, boxes, [0, 1, -1, 1], ("a", "b"), {})
    return tmp_path / "data"


@pytest.fixture
def model(data, tmp_path):
    run("MTL_baseline", data, tmp_path / "run", "--epochs", "1")
    path = tmp_path / "run" / "baseline_model_lite.pt"
    state = torch.load(path, weights_only=True)
    state["seg.logits.0.weight"].zero_()
    state["seg.logits.0.bias"].fill_(1.0)  # foreground everywhere
    torch.save(state, path)
    return path


def test_images_without_a_mask_get_that_of_the_network(data, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert not pseudo_masks.main([str(model), str(data), "--out", str(out)])
    assert capsys.readouterr().out.endswith(f"2 of 4 masks found; written to {out}\n")
    before, after = H5Dataset("train", data), H5Dataset("train", out)
    assert (after.masks[1:3] == 1).all()
    assert torch.equal(after.masks[[0, 3]], before.masks[[0, 3]])
    assert torch.equal(after.images, before.images) and after.class_names == before.class_names
    for split in ("val", "test"):
        assert H5Dataset(split, out).fingerprint() == H5Dataset(split, data).fingerprint()
    with h5py.File(out / "train" / "masks.h5") as file:
        assert file.attrs["source"] == f"tools/pseudo_masks.py {model}"


@pytest.mark.parametrize("mistake", ["there", "whole", "no seg"])
def test_mistakes_take_one_line(data, model, tmp_path, capsys, mistake):
    out = tmp_path / "out"
    if mistake == "there":
        out.mkdir()
        expected = f"--out: expected a new folder, found {out}"
    elif mistake == "whole":
        shutil.rmtree(data / "train")
        shutil.copytree(data / "val", data / "train")
        expected = f"{data}: expected training images without a mask, found none"
    else:
        run("examples/bin_only", data, tmp_path / "bin", "--epochs", "1")
        model = tmp_path / "bin" / "bin_only_model_lite.pt"
        expected = f"{model}: expected a network that segments, found ['bin']"
    capsys.readouterr()
    assert pseudo_masks.main([str(model), str(data), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"pseudo_masks.py: {expected}\n"
    assert mistake == "there" or not out.exists()
