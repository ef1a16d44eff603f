"""What train does not know, predicted by a network whose answer is known."""

import os
import shutil
import stat
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from running import run

from dataload import H5Dataset, write_split
from parts.targets import Box, Derived, Label, PixelClasses
from tools import pseudo_labels

SPLITS = ("train", "val", "test")
PARTS = PixelClasses("masks", classes=3)
KINDS = {
    "parts": PARTS,
    "bbox": Box("bboxes"),
    "bin": Label("binary"),
    "three": Label("three", classes=3),
    "area": Derived(lambda parts: parts.float().mean((1, 2, 3)), parts=PARTS),
}


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


def call(*arguments):
    """call(MODEL, ..., DATA, OUT, flags ...)."""
    flags = [each for each in arguments if str(each).startswith("--")]
    count = arguments.index(flags[0]) if flags else len(arguments)
    *inputs, out = arguments[:count]
    return pseudo_labels.main([*map(str, inputs), "--out", str(out), *arguments[count:]])


def masks_of(folder, split="train"):
    """uint8 (N, H, W)."""
    return np.concatenate([*H5Dataset(split, folder).slabs("seg")])


def values_of(path):
    with h5py.File(path) as file:
        return file[path.stem][()], dict(file.attrs)


def test_images_without_a_mask_get_that_of_the_network(data, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(model, data, out) == 0
    assert capsys.readouterr().out == f"predicted of 4 samples: seg 2; written to {out}\n"
    before, after = masks_of(data), masks_of(out)
    assert (after[1:3] == 1).all() and np.array_equal(after[[0, 3]], before[[0, 3]])
    for path in sorted(data.rglob("*.h5")):
        copy = out / path.relative_to(data)
        if path.name != "masks.h5" or path.parent.name != "train":
            assert all(map(np.array_equal, values_of(path), values_of(copy))), path
    source = f"tools/pseudo_labels.py {model}"
    assert values_of(out / "train/masks.h5")[1] == {"split": "train", "source": source}
    assert H5Dataset("train", out).class_names["bin"] == ("a", "b")


def test_a_split_without_masks_gets_all_of_them(data, model, tmp_path, capsys):
    (data / "train" / "masks.h5").unlink()
    assert call(model, data, tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("predicted of 4 samples: seg 4; ")
    assert (masks_of(tmp_path / "out") == 1).all()


def test_images_of_any_side_get_masks_of_that_side(model, tmp_path):
    """40 is no multiple of the network's stride."""
    data = write(tmp_path / "data", side=40)
    assert call(model, data, tmp_path / "out") == 0
    masks = masks_of(tmp_path / "out")
    assert masks.shape == (4, 40, 40) and (masks[1:3] == 1).all()


class Predicts:
    """In place of a trained network: for any image class 2 in the right half of the parts, a box,
    label 1 of two and 2 of three, and an area, which no file holds."""

    def __init__(self, **others):
        self.tasks = {name: SimpleNamespace(target=kind) for name, kind in KINDS.items()}
        self.class_names = {}
        self.others = {name: torch.tensor(values) for name, values in others.items()}

    def output(self, image):
        logits = torch.zeros(3, 8, 8)
        logits[0], logits[2, :, 4:] = 0.5, 1.0
        return {
            "parts": logits,
            "bbox": torch.tensor([0.25, 0.0, 0.5, 0.75]),
            "bin": torch.tensor([0.5]),
            "three": torch.tensor([0.0, 1.0, 2.0]),
            "area": torch.tensor([0.5]),
        } | self.others


@pytest.fixture
def partly(tmp_path, monkeypatch):
    """Data of three classes; in train sample 1 has no box, 2 no label."""
    monkeypatch.setattr(pseudo_labels, "open_network", lambda path: Predicts())
    data = write(tmp_path / "data", side=32, classes=3)
    for split in SPLITS:
        with h5py.File(data / split / "masks.h5", "r+") as file:
            file["masks"].attrs["class_names"] = ["ground", "ear", "tail"]
        (data / split / "own.h5").rename(data / split / "three.h5")
        with h5py.File(data / split / "three.h5", "w") as file:
            file["other"] = np.array([0, 1, 2, np.nan])[:, None]
    with h5py.File(data / "train/bboxes.h5", "r+") as file:
        file["bboxes"][1] = np.nan
    with h5py.File(data / "train/binary.h5", "r+") as file:
        file["binary"][2] = -1
    return data


def test_every_kind_of_target_is_filled_where_it_is_unknown(partly, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("any", partly, out) == 0
    assert "parts 2, bbox 1, bin 1, three 1;" in capsys.readouterr().out
    dataset = H5Dataset("train", out, {n: k for n, k in KINDS.items() if n != "area"})
    mask = dataset[1][1]["parts"][0]
    assert (mask[:, :16] == 0).all() and (mask[:, 16:] == 2).all()
    assert dataset.class_names["parts"] == ("ground", "ear", "tail")
    boxes, _ = values_of(out / "train/bboxes.h5")
    assert boxes.tolist() == [[1, 2, 9, 9], [8, 0, 16, 24], [1, 2, 9, 9], [1, 2, 9, 9]]
    assert values_of(out / "train/binary.h5")[0].tolist() == [0, 1, 1, 1]
    assert [dataset[i][1]["three"].item() for i in range(4)] == [0, 1, 2, 2]


def test_classes_in_another_order_are_warned_of(partly, tmp_path, monkeypatch, capsys):
    """The network's label 1 is "a", the file's is "b"."""
    network = Predicts()
    network.class_names = {"bin": ("b", "a"), "parts": ("ground", "ear", "tail")}
    monkeypatch.setattr(pseudo_labels, "open_network", lambda path: network)
    assert call("any", partly, tmp_path / "out") == 0
    path = partly / "train/binary.h5"
    assert capsys.readouterr().err == f"warning: {path}: expected ('b', 'a'), found ('a', 'b')\n"


def test_only_the_tasks_that_are_asked_for(partly, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("any", partly, out, "--tasks", "bbox") == 0
    assert "samples: bbox 1; written" in capsys.readouterr().out
    masks = values_of(out / "train/masks.h5")[0]
    assert (masks[1] == 255).all() and values_of(out / "train/binary.h5")[0][2] == -1


def test_only_what_two_networks_agree_on(partly, tmp_path, monkeypatch, capsys):
    """Boxes of an IoU of .9 are averaged, those of .75 are not; one label differs; the parts
    differ in the lower half. A label of another file is not shared."""
    parts = torch.zeros(3, 8, 8)
    parts[0], parts[2, :, 4:], parts[1, 4:] = 0.5, 1.0, 2.0
    networks = {
        "first": Predicts(),
        "close": Predicts(
            bbox=[0.25, 0.0, 0.5, 0.675], three=[1.0, 0.0, 0.0], parts=parts.tolist()
        ),
        "far": Predicts(bbox=[0.25, 0.0, 0.5, 0.5625]),
    }
    networks["close"].tasks["bin"] = SimpleNamespace(target=Label("other"))
    monkeypatch.setattr(pseudo_labels, "open_network", lambda path: networks[path.name])
    assert call("first", "close", partly, tmp_path / "out") == 0
    assert "parts 2, bbox 1, three 0;" in capsys.readouterr().out
    boxes, _ = values_of(tmp_path / "out/train/bboxes.h5")
    np.testing.assert_allclose(boxes[1], [8, 0, 16, 22.8], rtol=1e-6)
    masks, _ = values_of(tmp_path / "out/train/masks.h5")
    assert (masks[1, :14, :16] == 0).all() and (masks[1, :14, 16:] == 2).all()
    assert (masks[1, 18:] == 255).all()  # between these rows, logits are interpolated
    assert call("first", "far", partly, tmp_path / "none", "--tasks", "bbox") == 2
    assert "expected networks that agree on a sample, found none" in capsys.readouterr().err


def test_a_file_that_train_lacks_holds_what_is_known_now(partly, tmp_path, monkeypatch):
    """Two networks agree on no label of three, on every one of two."""
    networks = {"one": Predicts(), "two": Predicts(three=[1.0, 0.0, 0.0])}
    monkeypatch.setattr(pseudo_labels, "open_network", lambda path: networks[path.name])
    names = ("bboxes", "binary", "three")
    for name in names:
        (partly / "train" / f"{name}.h5").unlink()
    assert call("one", "two", partly, tmp_path / "out") == 0
    values = {
        n: values_of(tmp_path / f"out/train/{n}.h5")[0] for n in ("bboxes", "binary", "three")
    }
    assert values["bboxes"].tolist() == [[8, 0, 16, 24]] * 4
    assert values["binary"].tolist() == [1] * 4 and values["three"].tolist() == [-1] * 4


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
    assert "predicted of 4 samples: seg 2; written to" in capfd.readouterr().out
    assert "caf\\udce9" in values_of(folder / "out/train/masks.h5")[1]["source"]


@pytest.mark.parametrize("mistake", ["there", "whole", "derived", "task", "no data", "damaged"])
def test_mistakes_take_one_line(data, model, tmp_path, monkeypatch, capsys, mistake):
    out, flags = tmp_path / "out", []
    if mistake == "there":
        out.mkdir()
        expected = f"--out: expected a new folder, found {out}"
    elif mistake == "whole":
        shutil.rmtree(data / "train")
        shutil.copytree(data / "val", data / "train")
        expected = f"{data}/train: expected unknown seg, found none"
    elif mistake == "derived":
        network = Predicts()
        network.tasks = {"area": network.tasks["area"]}
        monkeypatch.setattr(pseudo_labels, "open_network", lambda path: network)
        expected = (
            f"{model}: expected networks that share a target that a file can hold, found none"
        )
    elif mistake == "task":
        flags = ["--tasks", "seg", "box"]
        expected = "--tasks: expected some of ['seg'], found ['seg', 'box']"
    elif mistake == "no data":
        shutil.rmtree(data / "val")
        expected = f"{data}/val: no such folder; expected the split 'val' there"
    else:
        (data / "test" / "own.h5").write_bytes(b"something else")
        expected = f"{data}/test/own.h5: expected an HDF5 file, found a damaged one"
    assert call(model, data, out, *flags) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"pseudo_labels.py: {expected}") and printed.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"] + ["out"] * (
        mistake == "there"
    )
