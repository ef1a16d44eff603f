"""Files of one's own: leaves with outlines and a table become a data set that trains."""

import csv
import errno
import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image
from running import history, run

from dataload import H5Dataset
from parts.targets import Label
from tools import check_data
from tools.prepare_folder import main
from tools.shared import splitting
from tools.shared.pictures import list_pictures

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
    assert all(dataset.class_names["bin"] == ("ill", "sound") for dataset in data.values())
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
    write_table(files / "known.csv", [*rows, ["leaf4", 1, 2, 30, 20, "ill", ""]])
    Image.new("L", (9, 9)).save(files / "outlines" / "leaf2.png")
    Image.new("L", (9, 9)).save(files / "outlines" / "nobody.png")
    (files / "photos" / "leaf3.png").write_text("no picture")
    (files / "outlines" / "leaf4.png").write_text("no picture")
    assert main(flags(files)) == 0
    printed = capsys.readouterr()
    assert "leaf0.png: box not used: expected a box inside 80 x 40, found [5.0, 5.0" in printed.err
    assert (
        "leaf1.png: box not used: expected 4 numbers, found 1, 2, 3, nothing (known.csv line"
        in (printed.err)
    )
    assert "leaf2.png: mask not used: expected a mask of (80, 40), found (9, 9)" in printed.err
    assert "leaf3.png: picture not used: cannot identify image file\n" in printed.err
    assert "leaf4.png: mask not used: cannot identify image file\n" in printed.err
    assert "row not used: no picture has that name: 1 (other)" in printed.err
    assert "mask not used: no picture has that name: 1 (nobody.png)" in printed.err
    assert printed.out.splitlines()[-1].startswith(
        "not used: box: 2, mask: 2, picture: 1, row without a picture: 1, mask without a picture: 1"
    )
    assert sum(int(d.known["bbox"].sum()) for d in read(files / "DATA").values()) == 1


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


# What people have: each test makes it in a folder and looks at the data that come of it.


def read(folder):
    return {split: H5Dataset(split, folder) for split in ("train", "val", "test")}


def total(data, what):
    return sum(int(dataset.known[what].sum()) for dataset in data.values())


def prepare(folder, *more):
    """The H5Datasets of the pictures in a folder, at 32 x 32, without anything but the flags."""
    words = ["--images", folder, "--out", folder.parent / "DATA", "--size", "32", *more]
    assert main(list(map(str, words))) == 0
    return read(folder.parent / "DATA")


def refused(capsys, folder, *more):
    """The one line with which the command ends."""
    capsys.readouterr()
    words = ["--images", folder, "--out", folder.parent / "DATA", "--size", "32", *more]
    assert main(list(map(str, words))) == 2
    assert not list(folder.parent.glob("DATA*"))
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "lines",
    [
        ["filename,width,height,class,xmin,ymin,xmax,ymax", "photos/{}.jpg,80,40,ill,8,4,40,24"],
        ["Image;X;Y;W;H;Label", "{}.PNG;8;4;32;20;ill"],
        ["# by hand", "path\tx1\ty1\tx2\ty2\tspecies", "C:\\data\\{}.png\t0.1\t0.1\t0.5\t0.6\till"],
    ],
)
def test_tables_of_other_tools(files, capsys, lines):
    *heading, row = lines
    rows = [row.format(name) for name in ("leaf1", "leaf2", "leaf3")]
    (files / "known.csv").write_text("\n".join([*heading, *rows]))
    data = prepare(files / "photos", "--table", files / "known.csv", "--val-fraction", ".3")
    assert capsys.readouterr().out.startswith("known.csv: 3 rows")
    assert data["val"][0][1]["bbox"].tolist() == pytest.approx([0.1, 0.1, 0.5, 0.6])
    assert total(data, "bbox") == total(data, "bin") == 3
    assert data["val"].class_names["bin"] == ("ill", "class 1")


def test_three_classes_go_to_a_file_of_their_own(files, capsys):
    rows = [[f"leaf{i}", *[""] * 4, ("10", "9", "Ill", "ill")[i % 4], ""] for i in range(14)]
    write_table(files / "known.csv", rows)
    assert main(flags(files)) == 0
    line = 'classes: 3, for a task with Label("classes", 3), because binary.h5 takes two'
    assert f"{line} (9, 10, Ill)\n" in capsys.readouterr().out
    counts = []
    for split in ("train", "val", "test"):
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


def test_the_values_of_the_masks_are_shown(files, capsys):
    data = prepare(files / "photos", "--masks", files / "outlines", "--foreground", "77")
    printed = capsys.readouterr()
    assert "masks: 12; values 0 (85.5%), 200 (12.0%), 77 (2.5%); foreground 2.5%\n" in printed.out
    assert (data["val"][0][1]["seg"][0, :, 0] == 1).all() and printed.err == ""
    for path in (files / "outlines").iterdir():
        mask = Image.new("L", (80, 40), 1)
        mask.paste(2, (0, 0, 40, 40))
        mask.save(path)
    prepare(files / "photos", "--masks", files / "outlines", "--force")
    assert capsys.readouterr().err == (
        "warning: masks without background: 12 of 12 (leaf0.png, leaf1.png, leaf10.png, ...); "
        "--foreground chooses among the values 1, 2\n"
    )


def test_masks_beside_their_images_and_half_as_large(files, capsys):
    for path in list((files / "outlines").iterdir()):
        with Image.open(path) as mask:
            mask.resize((40, 20), 0).save(files / "photos" / f"{path.stem}_mask.png")
    data = prepare(files / "photos")
    assert total(data, "seg") == 12 and sum(map(len, data.values())) == COUNT
    printed = capsys.readouterr().out
    assert (
        "masks, by their names: 12 (leaf0_mask.png, leaf10_mask.png, leaf11_mask.png, ...)"
        in printed
    )
    assert (
        "masks: scaled to their picture's size: 12 (leaf0.png, leaf1.png, leaf10.png, ...)"
        in printed
    )
    again = prepare(files / "photos", "--masks", files / "photos", "--force")
    assert total(again, "seg") == 12


def test_images_with_neither_mask_nor_split_go_to_train(files):
    rows = [[f"leaf{i}", *[""] * 5, ("train", "val", "test")[i % 3]] for i in range(12)]
    write_table(files / "known.csv", rows)
    assert main(flags(files)) == 0
    sizes = {split: len(dataset) for split, dataset in read(files / "DATA").items()}
    assert sizes == {"train": 4 + 3, "val": 4, "test": 4}


def test_links_to_one_file_each_count(files):
    """Six empty masks are one file; and a picture has a second name."""
    empty, masks = files / "outlines" / "leaf0.png", files / "outlines"
    Image.new("L", (80, 40)).save(empty)
    for i in range(1, 7):
        (masks / f"leaf{i}.png").unlink()
        (masks / f"leaf{i}.png").hardlink_to(empty) if i % 2 else (
            masks / f"leaf{i}.png"
        ).symlink_to(empty)
    (files / "photos" / "other.png").symlink_to(files / "photos" / "leaf14.png")
    data = prepare(files / "photos", "--masks", masks)
    assert total(data, "seg") == 12 and sum(map(len, data.values())) == COUNT + 1
    found = list_pictures([masks, masks / "leaf0.png"], files / "out")
    assert len(found) == 12 and list_pictures([empty, masks / "leaf2.png"], files).keys() == {
        empty,
        masks / "leaf2.png",
    }


def test_what_else_is_in_the_folders_is_named(files, capsys):
    photos = files / "photos"
    for name in ("a.heic", "b.HEIC", "c.pdf", "d.npy", "a.jpg.json", ".hidden", "Thumbs.db"):
        (photos / name).write_text("{}")
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    for split in ("train", "valid", "test"):
        (photos / split).mkdir()
        for path in list(photos.glob("leaf*")):
            shutil.copy(path, photos / split / f"{split}_{path.name}")
    prepare(photos)
    kinds = ".heic: 2 (a.heic, b.HEIC), .json: 1 (a.jpg.json), .pdf: 1 (c.pdf), .npy: 1 (d.npy)"
    folders = "sub-folders: 3 (test, train, valid); --recursive reads sub-folders"
    line = f"{photos}: not read: {kinds}, broken links: 1 (gone.jpg), {folders}\n"
    assert line in capsys.readouterr().out
    data = prepare(photos, "--recursive", "--force", "--no-grouping")
    assert sum(map(len, data.values())) == 4 * COUNT
    printed = capsys.readouterr().out
    assert "broken links: 1 (gone.jpg)\n" in printed and "sub-folders" not in printed
    assert "images whose split is the name of their sub-folder: 45 (" in printed
    assert len(data["val"]) == COUNT + 3


def test_a_folder_without_pictures_says_what_it_holds(files, capsys):
    (files / "empty" / "raw").mkdir(parents=True)
    (files / "empty" / "a.heic").write_text("")
    line = refused(capsys, files / "empty")
    assert line.endswith(
        "expected pictures (.jpg, .png, ...), found .heic: 1 (a.heic), sub-folders: 1 (raw)"
        "; --recursive reads sub-folders"
    )


def frames(folder, ground):
    """40 frames of one ground with a red square at another place, and their masks."""
    random = np.random.default_rng(0)
    for name in ("frames", "squares"):
        (folder / name).mkdir()
    for i in range(40):
        x, y = random.integers(0, (60, 40))
        pixels = (ground + random.integers(0, 4, ground.shape)).astype(np.uint8)
        pixels[y : y + 8, x : x + 8] = (200, 0, 0)
        mask = np.zeros(ground.shape[:2], np.uint8)
        mask[y : y + 8, x : x + 8] = 255
        Image.fromarray(pixels).save(folder / "frames" / f"{i:02}.png")
        Image.fromarray(mask).save(folder / "squares" / f"{i:02}.png")
    return folder / "frames", folder / "squares"


def test_frames_of_a_fixed_camera_are_dealt_one_by_one(tmp_path, capsys):
    ground = np.random.default_rng(1).integers(0, 250, (6, 8, 3)).repeat(8, 0).repeat(8, 1)
    images, masks = frames(tmp_path, ground)
    shutil.copy(images / "00.png", images / "40.png")  # identical ones stay together
    shutil.copy(masks / "00.png", masks / "40.png")
    data = prepare(images, "--masks", masks)
    printed = capsys.readouterr().out
    line = "near-duplicates: 41 of 41 are alike, too many to keep in one split; train and test may"
    assert (
        line in printed
        and "identical images: 2 kept together, groups: 1; left out of train: 0\n" in printed
    )
    assert all(len(dataset) >= 8 for dataset in data.values())
    again = prepare(images, "--masks", masks, "--no-grouping", "--force")
    assert "alike" not in capsys.readouterr().out and sum(map(len, again.values())) == 41


def test_copies_of_one_picture_do_not_empty_a_split(tmp_path):
    images, masks = frames(tmp_path, np.zeros((48, 64, 3)))
    for path in (*images.iterdir(), *masks.iterdir()):
        shutil.copy(path.with_name("00.png"), path) if path.name != "00.png" else None
    data = prepare(images, "--masks", masks)
    assert [len(dataset) for dataset in data.values()] == [24, 8, 8]


def test_a_class_for_each_image_does_not_empty_a_split(files):
    write_table(files / "known.csv", [[f"leaf{i}", *[""] * 4, f"c{i}", ""] for i in range(COUNT)])
    assert main(flags(files)) == 0
    assert min(map(len, read(files / "DATA").values())) > 1


def test_too_few_images_are_an_error(files, capsys):
    for path in list((files / "photos").iterdir())[2:]:
        path.unlink()
    line = refused(capsys, files / "photos")
    assert (
        "expected at least one image in test, found none; of 2 images, 2 without a split were"
        in line
    )


@pytest.mark.parametrize("turn", [1, 3, 6])
@pytest.mark.parametrize("has_own", [False, True])
def test_photos_turn_with_their_masks(tmp_path, capsys, turn, has_own):
    """The photo is black but for a white corner, and so is its mask."""
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:20, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = turn
    for name in ("photos", "masks"):
        (tmp_path / name).mkdir()
    for i in range(4):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.jpg", exif=exif, quality=95)
        own = {"exif": exif} if has_own else {}
        Image.fromarray(pixels[..., 0]).save(tmp_path / "masks" / f"{i}.png", **own)
    data = prepare(tmp_path / "photos", "--masks", tmp_path / "masks", "--no-grouping")
    image, targets = data["val"][0]
    corner = {1: np.s_[:16, :8], 3: np.s_[16:, 24:], 6: np.s_[:8, 16:]}[turn]
    wanted = np.zeros((32, 32), bool)
    wanted[corner] = True
    assert ((image[0].numpy() > 128) == wanted).all()
    assert ((targets["seg"][0].numpy() == 1) == wanted).all()
    said = "images turned upright by their EXIF rotation: 4 (0.jpg, 1.jpg, 2.jpg, ...)"
    assert (said in capsys.readouterr().out) == (turn > 1)


def test_annotations_beside_the_images_are_masks_boxes_and_classes(files, capsys):
    shapes = [{"label": "leaf", "points": [[8, 4], [40, 4], [40, 24], [8, 24]]}]
    for i in range(6):
        text = json.dumps({"shapes": shapes, "imageWidth": 80, "imageHeight": 40})
        (files / "photos" / f"leaf{i}.json").write_text(text)
    (files / "photos" / "leaf6.json").write_text("{")
    data = prepare(files / "photos")
    printed = capsys.readouterr()
    assert printed.out.startswith("photos: 6 .json files; 6 boxes, 6 outlines")
    assert printed.err.startswith("leaf6.json: annotation not used: Expecting property name")
    assert "not used: annotation: 1;" in printed.out and data["val"].class_names["bin"][0] == "leaf"
    assert total(data, "seg") == total(data, "bbox") == total(data, "bin") == 6
    seg = data["val"][0][1]["seg"][0].float()
    assert seg[4:18, 4:15].mean() == 1 and seg.mean() == pytest.approx(0.4 * 0.5, abs=0.03)
    # with a table, they are read where it names them
    write_table(files / "known.csv", [["leaf9", *[""] * 4, "sound", ""]])
    words = ["--force", "--annotations", files / "known.csv"]
    assert total(prepare(files / "photos", *words), "seg") == 0
    assert "not read: .json: 7 (leaf0.json" in capsys.readouterr().out
    both = prepare(files / "photos", *words, files / "photos" / "leaf1.json", files / "photos")
    assert total(both, "seg") == 6 and both["val"].class_names["bin"] == ("leaf", "sound")


def test_several_rows_of_an_image(files, capsys):
    rows = [["leaf1", 0, 0, 8, 8, "ill", ""], ["leaf1", 8, 4, 40, 24, "sound", "val"]]
    write_table(files / "known.csv", rows)
    assert main(flags(files)) == 0
    data = read(files / "DATA")
    assert data["val"].known["bbox"].sum() == 1 and data["val"].class_names["bin"] == (
        "sound",
        "class 1",
    )
    boxes = data["val"].kept("bbox")[data["val"].known["bbox"]]
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


def test_a_full_disk_is_one_line_before_anything_is_written(files, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    assert main(flags(files)) == 2
    line = f"prepare_folder.py: {files}: expected 0.1 MB of free space, found less\n"
    assert capsys.readouterr().err == line and not list(files.glob("DATA*"))
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: fail_otherwise())
    assert main(flags(files)) == 0


def fail_otherwise():
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")
