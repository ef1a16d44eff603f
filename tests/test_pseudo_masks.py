"""Masks for images without one, by a network whose answer is known."""

import os
import shutil
import stat

import h5py
import numpy as np
import pytest
import torch
from running import run

from dataload import H5Dataset, write_split
from parts.targets import PixelClasses
from tools import pseudo_masks

SPLITS = ("train", "val", "test")


def write(folder, side=32, classes=2):
    """Four images of two halves; in train two have no mask, and one is known in part."""
    random, names = np.random.default_rng(0), {"binary": ("a", "b")}
    for split in SPLITS:
        masks = np.full((4, side, side, 1), classes - 1, np.uint8)
        masks[:, : side // 2] = 0
        if split == "train":
            masks[1:3], masks[3, :4] = 255, 255
        arrays = {
            "images": random.integers(0, 256, (4, side, side, 3), np.uint8),
            "masks": masks,
            "bboxes": np.float32([(1, 2, 9, 9)] * 4),
            "binary": np.array([0, 1, -1, 1], np.int8),
            "own": random.uniform(0, 1, (4, 3)),
        }
        write_split(folder / split, arrays, {"split": split}, names)
    return folder


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data")


@pytest.fixture(scope="module")
def model(shared_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    run("MTL_baseline", shared_data, out, "--epochs", "1")
    path = out / "baseline_model_lite.pt"
    state = torch.load(path, weights_only=True)
    state["seg.logits.0.weight"].zero_()
    state["seg.logits.0.bias"].fill_(1.0)  # foreground everywhere
    torch.save(state, path)
    return path


def call(model, data, out):
    return pseudo_masks.main([str(model), str(data), "--out", str(out)])


def masks_of(folder, split="train"):
    """uint8 (N, H, W)."""
    return np.concatenate([*H5Dataset(split, folder).slabs("seg")])


def values_of(path):
    with h5py.File(path) as file:
        return file[path.stem][()], dict(file.attrs)


def test_images_without_a_mask_get_that_of_the_network(data, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(model, data, out) == 0
    assert capsys.readouterr().out == f"2 of 4 masks predicted; written to {out}\n"
    before, after = masks_of(data), masks_of(out)
    assert (after[1:3] == 1).all() and np.array_equal(after[[0, 3]], before[[0, 3]])
    for path in sorted(data.rglob("*.h5")):
        copy = out / path.relative_to(data)
        if path.name != "masks.h5" or path.parent.name != "train":
            assert all(map(np.array_equal, values_of(path), values_of(copy))), path
    source = f"tools/pseudo_masks.py {model}"
    assert values_of(out / "train/masks.h5")[1] == {"split": "train", "source": source}
    assert H5Dataset("train", out).class_names["bin"] == ("a", "b")


def test_a_split_without_masks_gets_all_of_them(data, model, tmp_path, capsys):
    (data / "train" / "masks.h5").unlink()
    assert call(model, data, tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("4 of 4 masks predicted")
    assert (masks_of(tmp_path / "out") == 1).all()


def test_images_of_any_side_get_masks_of_that_side(model, tmp_path):
    """40 is no multiple of the network's stride."""
    data = write(tmp_path / "data", side=40)
    assert call(model, data, tmp_path / "out") == 0
    masks = masks_of(tmp_path / "out")
    assert masks.shape == (4, 40, 40) and (masks[1:3] == 1).all()


class Ends:
    """In place of a trained network: class 2 in the right half of any image."""

    def __init__(self):
        task = type("Task", (), {"target": PixelClasses("masks", classes=3)})
        self.tasks = {"note": type("Other", (), {"target": None}), "parts": task}

    def output(self, image):
        logits = torch.zeros(3, 8, 8)
        logits[0], logits[2, :, 4:] = 0.5, 1.0
        return {"parts": logits}


def test_several_classes_under_any_name_of_the_task(tmp_path, monkeypatch):
    data = write(tmp_path / "data", classes=3)
    for split in SPLITS:
        with h5py.File(data / split / "masks.h5", "r+") as file:
            file["masks"].attrs["class_names"] = ["ground", "ear", "tail"]
    monkeypatch.setattr(pseudo_masks, "open_network", lambda path: Ends())
    assert call("any", data, tmp_path / "out") == 0
    dataset = H5Dataset("train", tmp_path / "out", {"parts": PixelClasses("masks", classes=3)})
    mask = dataset[1][1]["parts"][0]
    assert (mask[:, :16] == 0).all() and (mask[:, 16:] == 2).all()
    assert dataset.class_names["parts"] == ("ground", "ear", "tail")


def test_what_links_lead_to_is_copied(data, model, tmp_path):
    """By a link inside HDF5 and one of the file system, both relative, and values outside."""
    train, pool = data / "train", tmp_path / "pool"
    pool.mkdir()
    before = {path.stem: values_of(path)[0] for path in train.glob("*.h5")}
    (train / "images.h5").rename(pool / "all.h5")
    with h5py.File(train / "images.h5", "w") as file:
        file["images"] = h5py.ExternalLink("../../pool/all.h5", "images")
    (train / "binary.h5").rename(pool / "binary.h5")
    (train / "binary.h5").symlink_to("../../pool/binary.h5")
    place = tmp_path / "deep" / "er" / "out"
    assert call(model, data, place) == 0
    shutil.rmtree(pool)
    for name in ("images", "binary"):
        assert np.array_equal(values_of(place / f"train/{name}.h5")[0], before[name])


def test_a_read_only_source_gives_files_of_the_usual_modes(data, model, tmp_path):
    """As root may write anywhere, the modes are looked at."""
    for path in (*data.rglob("*"), data):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert call(model, data, tmp_path / "out") == 0
    for path in (tmp_path / "out").rglob("*"):
        assert path.stat().st_mode & stat.S_IWUSR
    for path in (data, *data.rglob("*")):
        path.chmod(0o755)


def test_paths_that_are_no_text(data, model, tmp_path, capfd):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(model.parent, folder)
    data.rename(folder / "data")
    assert call(folder / model.name, folder / "data", folder / "out") == 0
    assert "2 of 4 masks predicted; written to" in capfd.readouterr().out
    assert "caf\\udce9" in values_of(folder / "out/train/masks.h5")[1]["source"]


@pytest.mark.parametrize("mistake", ["there", "whole", "no seg", "no data", "damaged"])
def test_mistakes_take_one_line(data, model, tmp_path, monkeypatch, capsys, mistake):
    out = tmp_path / "out"
    if mistake == "there":
        out.mkdir()
        expected = f"--out: expected a new folder, found {out}"
    elif mistake == "whole":
        shutil.rmtree(data / "train")
        shutil.copytree(data / "val", data / "train")
        expected = f"{data}/train: expected images without a mask, found none"
    elif mistake == "no seg":
        network = Ends()
        del network.tasks["parts"]
        monkeypatch.setattr(pseudo_masks, "open_network", lambda path: network)
        expected = f"{model}: expected a network that segments, found ['note']"
    elif mistake == "no data":
        shutil.rmtree(data / "val")
        expected = f"{data}/val: no such folder; expected the split 'val' there"
    else:
        (data / "test" / "own.h5").write_bytes(b"something else")
        expected = f"{data}/test/own.h5: expected an HDF5 file, found a damaged one"
    assert call(model, data, out) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"pseudo_masks.py: {expected}") and printed.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"] + ["out"] * (
        mistake == "there"
    )
