"""`tools/check_data.py FOLDER`, and data of another kind from the check to the last epoch."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import engine
from dataload import SPLITS, H5Dataset
from tools.check_data import main

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--epochs", "1", "--batch-size", "4", "--widths", "8", "8", "8", "8", "--units", "1"]


@pytest.fixture
def leaves(tmp_path):
    """Leaves, sound or ill: 96 x 160, float64, compressed, boxes in the first half of a split."""
    random = np.random.default_rng(0)
    count = 6
    for split in SPLITS:
        (tmp_path / "leaves" / split).mkdir(parents=True)
        boxes = np.tile([20.0, 10.0, 120.5, 80.0], (count, 1))
        boxes[count // 2 :] = np.nan
        masks = np.zeros((count, 96, 160))
        masks[:, 20:68, 40:120] = 1  # a quarter
        arrays = {
            "images": random.uniform(3, 250, (count, 96, 160, 3)),
            "masks": masks,
            "bboxes": boxes,
            "binary": np.array([[0.0], [0], [1], [1], [1], [np.nan]]),
        }
        for name, array in arrays.items():
            with h5py.File(tmp_path / "leaves" / split / f"{name}.h5", "w") as file:
                file.create_dataset(name, data=array, compression="gzip")
                file[name].attrs["class_names"] = ["sound", "ill"]
    return tmp_path / "leaves"


def test_report_of_usable_data(leaves, capsys):
    assert main([str(leaves)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 6 samples, 96 pixels high, 160 wide"
    assert lines[1].startswith("  images  float64  values 3 to 250, mean 126.")
    assert lines[2:5] == [
        "  masks   float64  foreground 25.0%, pixels unknown 0.0%, masks 0 unknown (0.0%)",
        "  bboxes  float64  mean area 45.8%, 3 unknown (50.0%)",
        "  binary  float64  2 sound, 3 ill, 1 unknown (16.7%)",
    ]
    assert lines[5].startswith("val: ") and lines[10].startswith("test: ")
    assert lines[15:] == [f"{leaves}: usable"]


def test_report_of_what_is_unknown(leaves, capsys):
    with h5py.File(leaves / "val" / "masks.h5", "r+") as file:
        file["masks"][:3] = 255
        file["masks"][3, :48] = np.nan  # with it the upper 28 of 48 rows of the leaf
    for split in SPLITS:
        with h5py.File(leaves / split / "breeds.h5", "w") as file:
            file["breeds"] = np.array([4.0, 4, 36, -1, np.nan, 0])
    assert main([str(leaves)]) == 0
    lines = capsys.readouterr().out.splitlines()
    known = (2 * 48 * 80 + 20 * 80) / (2.5 * 96 * 160)  # of the foreground: 24.2 %
    assert lines[8] == (
        f"  masks   float64  foreground {known:.1%}, pixels unknown 58.3%, masks 3 unknown (50.0%)"
    )
    assert lines[11] == "  breeds  float64  3 of 37, 2 unknown (33.3%)"


def test_splits_that_do_not_fit_are_a_problem(leaves, capsys):
    with h5py.File(leaves / "test" / "binary.h5", "r+") as file:
        file["binary"].attrs["class_names"] = ["ill", "sound"]
    assert main([str(leaves)]) == 2
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"problem: {leaves}/test/binary.h5: expected the class_names of {leaves}/train/binary.h5, "
        "('sound', 'ill'), found ('ill', 'sound')",
        f"{leaves}: 1 problem(s)",
    ]


def test_every_problem_is_named(leaves, capsys):
    def change(split, name, position, value):
        with h5py.File(leaves / split / f"{name}.h5", "r+") as file:
            file[name][position] = value

    change("train", "images", (5, 0, 0, 0), 300)
    change("train", "masks", 4, 0.5)
    change("train", "bboxes", 0, [5, 5, 5, 9])
    change("train", "binary", 1, 7)
    (leaves / "val" / "images.h5").unlink()
    change("val", "binary", 2, 0.5)
    change("test", "binary", slice(None), 1)
    assert main([str(leaves)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["train: not usable", "val: not usable", lines[2]]
    assert lines[-8:] == [
        f"warning: {leaves}/test/binary.h5: expected both classes, found only 'ill'",
        f"problem: {leaves}/train/images.h5: expected values 0-255, found 300.0 in sample 5",
        f"problem: {leaves}/train/masks.h5: expected 0, 1 or 255, found 0.5 in sample 4",
        f"problem: {leaves}/train/bboxes.h5: expected xmin < xmax and ymin < ymax inside 160 x 96, "
        "or four NaN, found [5.0, 5.0, 5.0, 9.0] in sample 0",
        f"problem: {leaves}/train/binary.h5: expected 0, 1, -1 or NaN, found 7.0 in sample 1",
        f"problem: {leaves}/val/images.h5: no such file",
        f"problem: {leaves}/val/binary.h5: expected 0, 1, -1 or NaN, found 0.5 in sample 2",
        f"{leaves}: 6 problem(s)",
    ]


def test_a_folder_without_any_split(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    printed = capsys.readouterr()
    lines = [f"problem: {tmp_path / split}: no such folder; expected" for split in SPLITS]
    found = printed.out.splitlines()[3:6]
    assert all(map(str.startswith, found, lines)) and printed.err == ""


def test_sides_that_do_not_fit(leaves, capsys):
    for split, side in {"train": 40, "test": 64}.items():
        for name, shape in {"images": (6, side, side, 3), "masks": (6, side, side)}.items():
            with h5py.File(leaves / split / f"{name}.h5", "w") as file:
                file[name] = np.ones(shape, np.uint8)
        with h5py.File(leaves / split / "bboxes.h5", "w") as file:
            file["bboxes"] = np.full((6, 4), np.nan)
    assert main([str(leaves)]) == 2
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem")]
    assert problems == [
        f"problem: {leaves}/val/images.h5: expected the side of {leaves}/train/images.h5, "
        "(40, 40), found (96, 160)",
        f"problem: {leaves}: expected sides that are multiples of 32, found 40 x 40",
    ]


def test_the_command(leaves):
    (leaves / "test" / "masks.h5").write_text("x")
    command = [sys.executable, str(ROOT / "tools/check_data.py"), str(leaves)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=leaves, check=False)
    assert done.returncode == 2 and done.stderr == ""
    assert done.stdout.count("problem: ") == 1 and "masks.h5: not a readable" in done.stdout


@pytest.fixture
def train(tmp_path):
    """A function that runs MTL_main in this process and returns its output folder."""

    def run(data):
        out = tmp_path / "out"
        paths = ["--h5-save-path", str(data), "--file-save-path", str(out), "--device", "cpu"]
        engine.main(ROOT / "MTL_main.py", [*paths, *TINY, "--quiet"])
        return out

    return run


def test_data_of_another_kind_trains_after_a_warning(leaves, train, capsys):
    with h5py.File(leaves / "train" / "images.h5") as file:
        image = file["images"][4]
    with h5py.File(leaves / "test" / "images.h5", "r+") as file:
        file["images"][1] = image
    out = train(leaves)
    assert capsys.readouterr().err == (
        f"warning: {leaves}/test/images.h5: expected images of this split alone, found 1 that "
        "another split has too, or nearly so: sample 1 of test is sample 4 of train\n"
    )
    record = torch.load(out / "main_history.pt", weights_only=True)
    assert list(record["side"]) == [96, 160]
    assert record["test"]["seg_iou"] >= 0 and 0 <= record["test"]["bbox_iou"] <= 1


def test_damage_that_a_worker_meets_is_one_line(data_folder, train, capsys, monkeypatch):
    """Images too many for the memory are first read where they are needed."""
    monkeypatch.setattr(H5Dataset.__init__, "__defaults__", (0,))
    monkeypatch.setattr("engine.run.warnings", lambda datasets: ())  # would meet it first
    path = data_folder / "train" / "images.h5"
    with h5py.File(path, "r+") as file:
        images = file["images"][()]
        del file["images"]
        file.create_dataset("images", data=images, chunks=(1, 32, 32, 3), fletcher32=True)
        chunk = file["images"].id.get_chunk_info(11)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"damage")
    with pytest.raises(SystemExit) as stop:
        train(data_folder)
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert printed.startswith(f"MTL_main.py: {path}: not a readable HDF5 file (")
    assert printed.count("\n") == 1
