"""Files of one's own: leaves with outlines and a table become a data set that trains."""

import csv

import numpy as np
import pytest
from PIL import Image
from running import history, run

from dataload import H5Dataset
from tools import check_data
from tools.prepare_folder import main

COUNT = 15


@pytest.fixture
def files(tmp_path):
    """15 pictures of a bright leaf, 80 x 40, each at another place in front of other squares; masks
    for 12, 10 rows."""
    random = np.random.default_rng(0)
    for folder in ("photos", "outlines"):
        (tmp_path / folder).mkdir()
    rows = []
    for i in range(COUNT):
        squares = random.integers(0, 140, (5, 10, 1), np.uint8)
        pixels = squares.repeat(8, axis=0).repeat(8, axis=1).repeat(3, axis=2)
        left, top = int(random.integers(0, 50)), int(random.integers(0, 20))
        pixels[top : top + 16, left : left + 24] = random.integers(200, 255, 3)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"leaf{i}.png")
        mask = np.zeros((40, 80), np.uint8)
        mask[top : top + 16, left : left + 24] = 200
        mask[:, :2] = 77
        if i < 12:
            Image.fromarray(mask).save(tmp_path / "outlines" / f"leaf{i}.png")
        if i < 10:
            box = (left, top, left + 24, top + 16) if i else ("", "", "", "")
            rows.append([f"leaf{i}", *box, ("sound", "ill", "")[i % 3], ""])
    write_table(tmp_path / "known.csv", rows)
    return tmp_path


def write_table(path, rows, heading=("name", "xmin", "ymin", "xmax", "ymax", "class", "split")):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([heading, *rows])


def flags(folder, *more):
    names = {"--images": "photos", "--masks": "outlines", "--table": "known.csv", "--out": "DATA"}
    paths = (word for flag, name in names.items() for word in (flag, str(folder / name)))
    return [*paths, "--size", "32", "--ignore", "77", *more]


def test_what_is_known_arrives_and_what_is_missing_is_unknown(files, capsys):
    assert main(flags(files)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"not used: nothing; written to {files / 'DATA'}"
    data = {split: H5Dataset(split, files / "DATA") for split in ("train", "val", "test")}
    assert sum(map(len, data.values())) == COUNT
    assert all(dataset.class_names == ("ill", "sound") for dataset in data.values())
    for what, count in {"seg": 12, "bbox": 9, "bin": 7}.items():
        assert sum(int(d.known[what].sum()) for d in data.values()) == count
    assert data["val"].known["seg"].all() and data["test"].known["seg"].all()
    image, targets = data["val"][0]
    bright = image.float().mean(0) > 160  # the leaf, in a picture squeezed to a square
    seg = targets["seg"][0]
    assert (seg[:, 0] == 255).all() and {*seg.unique().tolist()} == {0, 1, 255}
    assert ((seg == 1) == bright)[:, 2:].float().mean() > 0.93


def test_a_box_scales_with_its_picture(files):
    rows = [[f"leaf{i}", 8, 4, 40, 24, "", "val" if i < 4 else ""] for i in range(COUNT)]
    write_table(files / "known.csv", rows)
    assert main(flags(files)) == 0
    data = H5Dataset("val", files / "DATA")
    assert len(data) >= 4 and data[0][1]["bbox"].tolist() == pytest.approx([0.1, 0.1, 0.5, 0.6])


def test_what_does_not_fit_is_named_counted_and_left_unknown(files, capsys):
    rows = [["leaf0", 5, 5, 99, 9, "", ""], ["leaf1", 1, 2, 3, "", "", ""], ["other", *[""] * 6]]
    write_table(files / "known.csv", rows)
    Image.new("L", (9, 9)).save(files / "outlines" / "leaf2.png")
    Image.new("L", (9, 9)).save(files / "outlines" / "nobody.png")
    (files / "photos" / "leaf3.png").write_text("no picture")
    assert main(flags(files)) == 0
    printed = capsys.readouterr()
    assert "leaf0.png: box not used: expected a box inside 80 x 40, found [5.0, 5.0" in printed.err
    assert "leaf1.png: box not used: could not convert string to float" in printed.err
    assert "leaf2.png: mask not used: expected a mask of (80, 40), found (9, 9)" in printed.err
    assert "leaf3.png: picture not used: " in printed.err
    assert printed.out.splitlines()[-1].startswith(
        "not used: box: 2, mask: 1, picture: 1, row without a picture: 1, mask without a picture: 1"
    )


def test_copies_of_val_and_test_images_are_left_out_of_train(files, capsys):
    """Every picture comes a second time, mirrored and without a mask."""
    for i in range(12):
        with Image.open(files / "photos" / f"leaf{i}.png") as picture:
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(files / f"photos/copy{i}.png")
    write_table(files / "known.csv", [["copy0", *[""] * 5, "train"], ["leaf0", *[""] * 5, "test"]])
    assert main(flags(files)) == 0
    data = {split: H5Dataset(split, files / "DATA") for split in ("train", "val", "test")}
    left_out = len(data["val"]) + len(data["test"]) - 1  # copy0 is where the table says
    printed = capsys.readouterr().out
    assert left_out > 3 and f"near-duplicate of val or test: {left_out};" in printed
    assert sum(map(len, data.values())) == COUNT + 12 - left_out


MISTAKES = {
    "three classes": ([["leaf0", *[""] * 4, kind, ""] for kind in "abc"], "leaf0 once, found it 3"),
    "a class more": (
        [[f"leaf{i}", *[""] * 4, "abc"[i], ""] for i in range(3)],
        "expected two classes at most, found a, b, c",
    ),
    "a split": ([["leaf0", *[""] * 5, "dev"]], "expected train, val, test or nothing as split"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_the_table_are_one_line(files, capsys, case):
    rows, message = MISTAKES[case]
    write_table(files / "known.csv", rows)
    assert main(flags(files)) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1 and not (files / "DATA").exists()


def test_mistakes_in_the_flags_are_one_line(files, capsys):
    write_table(files / "known.csv", [["leaf0", "x"]], ("name", "colour"))
    for change, message in (
        ([], "expected the columns name and any of xmin, ymin"),
        (["--table", str(files / "none.csv")], "none.csv: expected a CSV file, found"),
        (["--images", str(files / "none")], "expected a folder of pictures, found no such folder"),
        (["--val-fraction", "0.9"], "--val-fraction, --test-fraction: expected both above 0"),
    ):
        assert main([*flags(files), *change]) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1
    assert main(["--images", str(files / "photos"), "--out", str(files)]) == 2
    assert "expected a new folder (or --force), found one" in capsys.readouterr().err


def test_data_made_so_trains(files, tmp_path, capsys):
    assert main(flags(files)) == 0
    assert check_data.main([str(files / "DATA")]) == 0
    run("MTL_main", files / "DATA", tmp_path / "out", "--epochs", "1")
    assert history(tmp_path / "out")["class_names"] == ("ill", "sound")
