"""Pictures, masks and annotations as people have them, and the data that come of them."""

import json
import shutil

import numpy as np
import pytest
from leaves import COUNT, files, prepare, refused, total, write_table  # noqa: F401 (a fixture)
from PIL import Image

from tools.shared.pictures import list_pictures


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
    for line in (
        "masks, by their names: 12 (leaf0_mask.png, leaf10_mask.png, leaf11_mask.png, ...)",
        "masks: scaled to their picture's size: 12 (leaf0.png, leaf1.png, leaf10.png, ...)",
    ):
        assert line in printed
    again = prepare(files / "photos", "--masks", files / "photos", "--force")
    assert total(again, "seg") == 12


def test_links_to_one_file_each_count(files):
    """Six empty masks are one file; and a picture has a second name."""
    empty, masks = files / "outlines" / "leaf0.png", files / "outlines"
    Image.new("L", (80, 40)).save(empty)
    for i in range(1, 7):
        (path := masks / f"leaf{i}.png").unlink()
        path.hardlink_to(empty) if i % 2 else path.symlink_to(empty)
    (files / "photos" / "other.png").symlink_to(files / "photos" / "leaf14.png")
    data = prepare(files / "photos", "--masks", masks)
    assert total(data, "seg") == 12 and sum(map(len, data.values())) == COUNT + 1
    found = list_pictures([masks, masks / "leaf0.png"], files / "out")
    two = [empty, masks / "leaf2.png"]
    assert len(found) == 12 and list_pictures(two, files).keys() == {*two}


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
    kept = "identical images: 2 kept together, groups: 1; left out of train: 0\n"
    assert line in printed and kept in printed
    assert all(len(dataset) >= 8 for dataset in data.values())
    again = prepare(images, "--masks", masks, "--no-grouping", "--force")
    assert "alike" not in capsys.readouterr().out and sum(map(len, again.values())) == 41


def test_copies_of_one_picture_do_not_empty_a_split(tmp_path):
    images, masks = frames(tmp_path, np.zeros((48, 64, 3)))
    for path in (*images.iterdir(), *masks.iterdir()):
        shutil.copy(path.with_name("00.png"), path) if path.name != "00.png" else None
    data = prepare(images, "--masks", masks)
    assert [len(dataset) for dataset in data.values()] == [24, 8, 8]


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
