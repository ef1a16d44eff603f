"""Files of one's own: leaves with outlines and a table become a data set that trains."""

import os
import signal
from types import SimpleNamespace

import disks
import numpy as np
import pytest
from leaves import COUNT, files, flags, read, refused, total, write_table  # noqa: F401 (a fixture)
from PIL import Image
from running import history, run

from dataload import SPLITS, H5Dataset, shared_pictures
from parts.targets import Label
from tools import check_data
from tools.prepare_folder import main, place
from tools.shared import splitting


def test_what_is_known_arrives_and_what_is_missing_is_unknown(files, capsys):
    assert main(flags(files)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("known.csv: 10 rows")
    assert printed[-1] == f"not used: nothing; written to {files / 'DATA'}"
    data = read(files / "DATA")
    assert sum(map(len, data.values())) == COUNT
    assert all(dataset.class_names["bin"] == ("ill", "sound") for dataset in data.values())
    for what, count in {"seg": 12, "bbox": 9, "bin": 7}.items():
        assert total(data, what) == count
    assert data["val"].known["seg"].all() and data["test"].known["seg"].all()
    image, targets = data["val"][0]
    bright = image.float().mean(0) > 160  # the leaf, in a picture squeezed to a square
    seg = targets["seg"][0]
    assert (seg[:, 0] == 255).all() and {*seg.unique().tolist()} == {0, 1, 255}
    assert ((seg == 1) == bright)[:, 2:].float().mean() > 0.93


def test_what_does_not_fit_is_named_counted_and_left_unknown(files, capsys):
    rows = [["leaf0", 5, 5, 99, 9, "", ""], ["leaf1", 1, 2, 3, "", "", ""], ["other", *[""] * 6]]
    write_table(files / "known.csv", [*rows, ["leaf4", 1, 2, 30, 20, "ill", ""]])
    Image.new("L", (9, 9)).save(files / "outlines" / "leaf2.png")
    Image.new("L", (9, 9)).save(files / "outlines" / "nobody.png")
    (files / "photos" / "leaf3.png").write_text("no picture")
    (files / "outlines" / "leaf4.png").write_text("no picture")
    assert main(flags(files)) == 0
    printed = capsys.readouterr()
    for line in (
        "leaf0.png: box not used: expected a box inside 80 x 40, found [5.0, 5.0",
        "leaf1.png: box not used: expected 4 numbers, found 1, 2, 3, nothing (known.csv line",
        "leaf2.png: mask not used: expected a mask of (80, 40), found (9, 9)",
        "leaf3.png: picture not used: cannot identify image file\n",
        "leaf4.png: mask not used: cannot identify image file\n",
        "row not used: no picture has that name: 1 (other)",
        "mask not used: no picture has that name: 1 (nobody.png)",
    ):
        assert line in printed.err
    assert printed.out.splitlines()[-1].startswith(
        "not used: box: 2, mask: 2, picture: 1, row without a picture: 1, mask without a picture: 1"
    )
    assert total(read(files / "DATA"), "bbox") == 1


def test_copies_of_val_and_test_images_are_left_out_of_train(files, capsys, monkeypatch):
    """Every picture comes a second time, mirrored and without a mask."""
    monkeypatch.delattr(np, "unique_counts", raising=False)  # NumPy 1.26 has none
    for i in range(12):
        with Image.open(files / "photos" / f"leaf{i}.png") as picture:
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(files / f"photos/copy{i}.png")
    write_table(files / "known.csv", [["copy0", *[""] * 5, "train"], ["leaf0", *[""] * 5, "test"]])
    assert main(flags(files)) == 0
    data = read(files / "DATA")
    left_out = len(data["val"]) + len(data["test"]) - 1  # copy0 is where the table says
    printed = capsys.readouterr().out
    assert left_out > 3 and f"near-duplicate of val or test: {left_out};" in printed
    assert sum(map(len, data.values())) == COUNT + 12 - left_out


@pytest.mark.parametrize("split", SPLITS)
def test_a_copy_of_an_image_with_a_split_goes_there_too(files, capsys, split):
    """Four of twelve pictures come a second time, mirrored, and the table places the copy."""
    for i in range(4):
        with Image.open(files / "photos" / f"leaf{i}.png") as picture:
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(files / f"photos/copy{i}.png")
    write_table(files / "known.csv", [[f"copy{i}", *[""] * 5, split] for i in range(4)])
    assert main(flags(files)) == 0
    data = read(files / "DATA")
    assert len(data[split]) >= 8 and not [*shared_pictures(data)]
    assert "near-duplicates: 8 kept together, groups: 4;" in capsys.readouterr().out


def test_mistakes_in_the_flags_are_one_line(files, capsys):
    write_table(files / "known.csv", [["leaf0", "x"]], ("name", "colour"))
    for change, message in (
        ([], "known.csv: expected the columns name and any of xmin, ymin"),
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
    assert history(tmp_path / "out")["class_names"]["bin"] == ("ill", "sound")


def test_three_classes_go_to_a_file_of_their_own(files, capsys):
    rows = [[f"leaf{i}", *[""] * 4, ("10", "9", "Ill", "ill")[i % 4], ""] for i in range(14)]
    write_table(files / "known.csv", rows)
    assert main(flags(files)) == 0
    line = 'classes: 3, for a task with Label("classes", 3), because binary.h5 takes two'
    assert f"{line} (9, 10, Ill)\n" in capsys.readouterr().out
    counts = []
    for split in SPLITS:
        data = H5Dataset(split, files / "DATA", {"kind": Label("classes", 3)})
        assert data.class_names["kind"] == ("9", "10", "Ill")
        counts += data.kept("kind").tolist()
        assert not (files / "DATA" / split / "binary.h5").exists()
    assert sorted(counts) == [-1] + [0] * 4 + [1] * 4 + [2] * 6
    assert main([*flags(files), "--force"]) == 0


def test_nothing_used_is_an_error_that_shows_one_of_each(files, capsys):
    photos, masks, table = files / "photos", files / "outlines", files / "known.csv"
    write_table(table, [["flower1", *[""] * 4, "ill", ""]])
    assert refused(capsys, photos, "--table", table) == (
        f"prepare_folder.py: --table {table}: expected names of the images, such as leaf0.png; "
        "found none, but flower1"
    )
    write_table(table, [["leaf1", 1, 1, 999, 9, "", ""], ["leaf2", *[""] * 6]])
    assert refused(capsys, photos, "--table", table).endswith(
        "--table: expected a box, class, split or outline to use; leaf1.png: box not used: "
        "expected a box inside 80 x 40, found [1.0, 1.0, 999.0, 9.0] (known.csv line 2)"
    )
    for path in list(masks.iterdir()):
        path.write_text("no picture")
    line = refused(capsys, photos, "--masks", masks)
    assert line.startswith("prepare_folder.py: --masks: expected one that can be used; leaf0.png: ")
    for path in list(masks.iterdir()):
        path.rename(masks / f"flower{path.name}")
    line = refused(capsys, photos, "--masks", masks)
    assert line.endswith(
        "masks named like the images, such as leaf0.png; found none, but flowerleaf0.png"
    )
    for path in photos.iterdir():
        path.write_text("no picture")
    line = refused(capsys, photos)
    assert line.startswith("prepare_folder.py: --images: expected a readable picture; leaf0.png: ")


def test_mistakes_in_the_choice_of_values(files, capsys):
    photos, masks = files / "photos", files / "outlines"
    line = refused(capsys, photos, "--ignore", "77")
    assert line.endswith("--foreground, --ignore: expected masks, found none")
    line = refused(capsys, photos, "--masks", masks, "--foreground", "1", "3", "--ignore", "3")
    assert line.endswith("--ignore: expected no value of --foreground, found 3")
    line = refused(capsys, photos, "--masks", masks, "--foreground", "white")
    assert "--foreground: expected a whole number or #rrggbb, found 'white'" in line


def test_images_with_neither_mask_nor_split_go_to_train(files):
    rows = [[f"leaf{i}", *[""] * 5, ("train", "val", "test")[i % 3]] for i in range(12)]
    write_table(files / "known.csv", rows)
    assert main(flags(files)) == 0
    sizes = {split: len(dataset) for split, dataset in read(files / "DATA").items()}
    assert sizes == {"train": 4 + 3, "val": 4, "test": 4}


def test_a_class_for_each_image_does_not_empty_a_split(files):
    write_table(files / "known.csv", [[f"leaf{i}", *[""] * 4, f"c{i}", ""] for i in range(COUNT)])
    assert main(flags(files)) == 0
    assert min(map(len, read(files / "DATA").values())) > 1


def test_too_few_images_are_an_error(files, capsys):
    for path in list((files / "photos").iterdir())[2:]:
        path.unlink()
    expected = "at least one image in test, found none; of 2 images, 2 without a split were"
    assert expected in refused(capsys, files / "photos")


def test_several_rows_of_an_image(files, capsys):
    rows = [["leaf1", 0, 0, 8, 8, "ill", ""], ["leaf1", 8, 4, 40, 24, "sound", "val"]]
    write_table(files / "known.csv", rows)
    assert main(flags(files)) == 0
    val = read(files / "DATA")["val"]
    assert val.known["bbox"].sum() == 1 and val.class_names["bin"] == ("sound", "class 1")
    boxes = val.kept("bbox")[val.known["bbox"]]
    assert boxes[0].tolist() == pytest.approx([0.1, 0.1, 0.5, 0.6])
    line = "images of several objects, of which the largest is used: 1 (leaf1.png)"
    assert line in capsys.readouterr().out


def test_a_termination_leaves_nothing(files, monkeypatch, capsys):
    def stop(*_):
        assert len(list(files.glob("DATA.partial-*"))) == 1
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(splitting, "write_split", stop)
    assert main(flags(files)) == 128 + signal.SIGTERM and not list(files.glob("DATA*"))
    assert capsys.readouterr().err == "prepare_folder.py: interrupted\n"


@pytest.mark.parametrize("room", [0, 10_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(files, monkeypatch, capsys, room):
    disks.fill(monkeypatch, room)
    assert main(flags(files)) == 2
    place = f"{files}/DATA.partial-{os.getpid()}/train/images.h5"
    line = f"prepare_folder.py: {place}: cannot be written (No space left on device)\n"
    assert capsys.readouterr().err == line and not list(files.glob("DATA*"))


def test_each_split_gets_its_share_of_each_class():
    """Of 40 samples of two classes 3/10 are for val, 1/10 for test."""
    mask = np.zeros((1, 1, 1), np.uint8)
    samples = [splitting.Sample(None, None, mask, label=i % 2) for i in range(40)]
    shares = SimpleNamespace(val_fraction=0.3, test_fraction=0.1, seed=0)
    splits = place(samples, range(40), np.arange(40), shares)
    counts = {split: [s.label for s in some].count(1) for split, some in splits.items()}
    assert {split: len(some) for split, some in splits.items()} == {
        "train": 24,
        "val": 12,
        "test": 4,
    }
    assert counts == {"train": 12, "val": 6, "test": 2}
