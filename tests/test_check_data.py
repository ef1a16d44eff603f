"""`tools/check_data.py FOLDER`, and data of another kind from the check to the last epoch."""

import h5py
import numpy as np
import pytest
from conftest import rewrite
from running import changed, history, run

from dataload import SPLITS
from tools.check_data import main


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
                if name == "binary":
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
    assert main([str(leaves)]) == 0
    lines = capsys.readouterr().out.splitlines()
    known = (2 * 48 * 80 + 20 * 80) / (2.5 * 96 * 160)  # of the foreground: 24.2 %
    assert lines[7] == (
        f"  masks   float64  foreground {known:.1%}, pixels unknown 58.3%, masks 3 unknown (50.0%)"
    )


def test_every_problem_is_named(leaves, capsys):
    def change(split, name, position, value):
        with h5py.File(leaves / split / f"{name}.h5", "r+") as file:
            file[name][position] = value

    change("train", "images", (5, 0, 0, 0), 300)
    change("train", "masks", 4, 0.5)
    change("train", "bboxes", 0, [5, 5, 5, 9])
    change("train", "binary", 1, 7)
    (leaves / "val" / "images.h5").unlink()
    change("test", "binary", slice(None), 1)
    assert main([str(leaves)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["train: not usable", "val: not usable", lines[2]]
    assert lines[-7:] == [
        f"warning: {leaves}/test/binary.h5: expected both classes, found only 'ill'",
        f"problem: {leaves}/train/images.h5: expected values 0-255, found 300.0 in sample 5",
        f"problem: {leaves}/train/masks.h5: expected 0, 1 or 255, found 0.5 in sample 4",
        f"problem: {leaves}/train/bboxes.h5: expected xmin < xmax and ymin < ymax inside 160 x 96, "
        "or four NaN, found [5.0, 5.0, 5.0, 9.0] in sample 0",
        f"problem: {leaves}/train/binary.h5: expected 0, 1, -1 or NaN, found 7.0 in sample 1",
        f"problem: {leaves}/val/images.h5: no such file",
        f"{leaves}: 5 problem(s)",
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


SCRIPT = """
import torch

from MTL_Utils import SEG, Task, value_loss, value_metrics
from parts.targets import PETS, Derived, Label, PixelClasses, PixelValues, Values

TASKS = {
    name: Task(target, value_loss, value_metrics, "absolute_error")
    for name, target in {
        "share": Derived(lambda seg: seg.float().mean((1, 2, 3)), seg=PETS["seg"]),
        "veins": PixelClasses("veins", 3),
        "height": PixelValues("height"),
        "kind": Label("kinds", 37),
        "age": Values("ages"),
    }.items()
}


class Network(torch.nn.Module):
    stride = 7
"""


def test_a_script_says_which_files_are_checked(leaves, tmp_path, capsys):
    script = tmp_path / "MTL leaves.py"
    script.write_text(SCRIPT)
    veins = np.zeros((6, 98, 161), np.uint8)
    veins[:, :, :23], veins[5] = 2, 255
    for split in SPLITS:
        rewrite(leaves, "images", np.full((6, 98, 161, 3), 9, np.uint8), split)
        rewrite(leaves, "masks", np.ones((6, 98, 161), bool), split)
        names = {"class_names": ["leaf", "vein", "rim"]}
        rewrite(leaves, "veins", veins, split, attributes=names)
        heights = {"scale_factor": 0.5, "_FillValue": 0}
        rewrite(leaves, "height", veins + 1, split, attributes=heights)
        rewrite(leaves, "kinds", [3, 3, 36, -1, 0, 0], split)
        (leaves / split / "binary.h5").write_text("damaged")
    assert main([str(leaves), "--script", str(script)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:8] == [
        "train: 6 samples, 98 pixels high, 161 wide",
        "  images  uint8    values 9 to 9, mean 9.0",
        "  share   no file  0 unknown (0.0%)",
        "  veins   uint8    vein 0.0%, rim 14.3%, pixels unknown 16.7%, masks 1 unknown (16.7%)",
        "  height  uint8    values 0.5 to 1.5, maps 1 unknown (16.7%)",
        "  kinds   int64    3 of 37 classes, 1 unknown (16.7%)",
        "  ages    no file  6 unknown (100.0%)",
        "  masks   bool     foreground 100.0%, pixels unknown 0.0%, masks 0 unknown (0.0%)",
    ]
    assert lines[24:] == [
        *(
            f"warning: {leaves}/{split}/{line}"
            for split in SPLITS
            for line in (
                "veins.h5: expected all classes, found no pixel of 'vein'",
                "ages.h5: expected targets of 'age', found no such file; none is known",
            )
        ),
        f"{leaves}: usable",
    ]
    rewrite(leaves, "veins", veins + 1, "val")
    rewrite(leaves, "height", veins[:, :, :5], "test")
    assert main([str(leaves), "--script", str(script)]) == 2
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"problem: {leaves}/val/veins.h5: expected 0-2 or 255, found 3 in sample 0",
        f"problem: {leaves}/test/height.h5: expected (6, 98, 161, 1), found (6, 98, 5)",
        f"{leaves}: 2 problem(s)",
    ]


REFUSAL = """
    def __init__(self):
        from parts.errors import SettingError

        raise SettingError("depth: expected 3, found 4")
"""


@pytest.mark.parametrize(
    "change, message",
    [
        (("TASKS = {", "JOBS = {"), "expected a definition TASKS, found none"),
        (("class Network", "class Net"), "expected a definition Network, found none"),
        (("for name, target in {", "for name, target in {} and {"), "TASKS: expected {name: Task}"),
        (("Task(target, value_loss", "(target, value_loss"), "TASKS: expected a Task for 'share'"),
        (('seg=PETS["seg"]', 'veins=PETS["seg"]'), "TASKS: expected 'share' to be computed from"),
        (("    stride = 7\n", "    step = 7\n"), "Network: expected a whole number above 0"),
        (("    stride = 7\n", REFUSAL), "--depth: expected 3, found 4"),
    ],
)
def test_a_script_that_cannot_run_is_one_line(leaves, tmp_path, capsys, change, message):
    script = tmp_path / "MTL_leaves.py"
    script.write_text(changed(SCRIPT, change))
    assert main([str(leaves), "--script", str(script)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"check_data.py: {script}: {message}")
    assert printed.out == "" and printed.err.count("\n") == 1


def test_data_of_another_kind_trains_after_a_warning(leaves, tmp_path):
    with h5py.File(leaves / "train" / "images.h5") as file:
        image = file["images"][4]
    with h5py.File(leaves / "test" / "images.h5", "r+") as file:
        file["images"][1] = image
    printed = run("MTL_main", leaves, tmp_path / "out", "--epochs", "1", "--quiet")
    assert printed == (
        f"warning: {leaves}/test/images.h5: expected images of this split alone, found 1 that "
        "repeat those of another: sample 1 of test is sample 4 of train\n"
    )
    record = history(tmp_path / "out")
    assert list(record["side"]) == [96, 160]
    assert record["test"]["seg_iou"] >= 0 and 0 <= record["test"]["bbox_iou"] <= 1
