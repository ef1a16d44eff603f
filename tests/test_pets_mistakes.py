"""Damaged sources and mistakes in tools/prepare_pets.py."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from pets_folder import drawn, out, root  # noqa: F401 (fixtures)
from pets_source import (
    BREEDS,
    assert_one_line,
    boxed_names,
    draw_trimap,
    everything,
    members,
    run,
    write_box,
)
from PIL import Image

from dataload import H5Dataset
from tools import prepare_pets


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


IMAGE, TRIMAP = "images/{}.jpg", "annotations/trimaps/{}.png"
PIXEL_DAMAGE = {  # what: (file, damage, message)
    "cut image": (IMAGE, cut, "expected a readable image and trimap"),
    "no image at all": (IMAGE, lambda path: path.write_text("x"), "{}.jpg"),
    "missing image": (IMAGE, Path.unlink, "images/{}.jpg"),
    "missing trimap": (TRIMAP, Path.unlink, "trimaps/{}.png"),
    "cut trimap": (TRIMAP, cut, "expected a readable trimap"),
    "small trimap": (
        TRIMAP,
        lambda path: Image.fromarray(draw_trimap()[:, 1:]).save(path),
        "expected a trimap of (40, 20) with values 1, 2, 3, found (39, 20)",
    ),
    "mask as trimap": (
        TRIMAP,
        lambda path: Image.fromarray(draw_trimap() * 80).save(path),
        "values 1, 2, 3, found (40, 20) and [ 80 160 240]",
    ),
}
BOX_DAMAGE = {  # what: (damage, message)
    "missing": (Path.unlink, "no such file"),
    "cut": (cut, "expected a box"),
    "no box": (lambda path: path.write_text("<a/>"), "expected a box"),
    "half a box": (
        lambda path: path.write_text("<a><object><bndbox><xmin>1</xmin></bndbox></object></a>"),
        "expected a box at object/bndbox",
    ),
    "empty": (lambda path: write_box(path, ("", 5, 30, 20)), "NoneType"),
    "a folder": (lambda path: path.unlink() or path.mkdir(), "directory"),
    "words": (lambda path: write_box(path, ("a", 5, 30, 20)), "'a'"),
}
WRONG_BOXES = {
    "left and right exchanged": (30, 5, 5, 20),
    "top and bottom exchanged": (5, 15, 30, 5),
    "no width": (6, 5, 5, 20),
    "beyond the left": (-1, 5, 30, 20),
    "beyond the top": (5, -1, 30, 20),
    "beyond the right": (5, 5, 41, 20),
    "beyond the bottom": (5, 5, 30, 21),
    "not a number": ("nan", 5, 30, 20),
}
for what, box in WRONG_BOXES.items():
    BOX_DAMAGE[what] = partial(write_box, box=box), "expected a box inside 40 x 20"


def spoil(root, damages):
    """Damage one image after the other; {its name: (breed, number)}, the boxed ones in turn."""
    spoilt = {}
    for (breed, number), (name, damage) in zip(boxed_names()[5:], damages, strict=False):
        image = f"{BREEDS[breed]}_{number}"
        damage(root / "oxford-iiit-pet" / name.format(image))
        spoilt[image] = breed, number
    return spoilt


@pytest.mark.parametrize("flags", [(), ("--add-unboxed",)])
def test_unusable_pixels_are_named_counted_and_left_out(root, out, capsys, flags):
    spoilt = spoil(root, [(name, damage) for name, damage, _ in PIXEL_DAMAGE.values()])
    assert run(root, out, *flags) == 0
    printed, errors = capsys.readouterr()
    lines = dict(zip(spoilt, errors.splitlines(), strict=True))
    for (image, line), (_, _, message) in zip(lines.items(), PIXEL_DAMAGE.values(), strict=True):
        assert line.startswith(f"{image}: ") and message.format(image) in line
    assert f"image or trimap unusable: {len(spoilt)};" in printed
    left = set(everything(out))
    assert not left & set(spoilt.values()) and left | set(spoilt.values()) >= set(boxed_names())


@pytest.mark.parametrize("keeps", [False, True])
def test_an_unusable_box_is_left_out_or_on_request_unboxed(root, out, capsys, keeps):
    spoilt = spoil(root, [("annotations/xmls/{}.xml", damage) for damage, _ in BOX_DAMAGE.values()])
    assert run(root, out, *["--add-unboxed"] * keeps) == 0
    printed, errors = capsys.readouterr()
    lines = dict(zip(spoilt, errors.splitlines(), strict=True))
    for (image, line), (_, message) in zip(lines.items(), BOX_DAMAGE.values(), strict=True):
        assert line.startswith(f"{image}: ") and message in line and f"{image}.xml" in line
    count = len(spoilt)
    assert f"xml missing: 1, xml or box unusable: {count - 1}; left out: " in printed
    if not keeps:  # the ten without a box in the first place, too
        assert f"left out: {count + 10} of 54" in printed
        assert everything(out) == sorted(set(boxed_names()) - set(spoilt.values()))
        return
    assert "left out: 0 of 54" in printed
    dataset, found = H5Dataset("train", out), members(out, "train")
    assert not any(dataset.known["bbox"][found.index(member)] for member in spoilt.values())


# Mistakes


WRONG_FLAGS = {  # flags: what the line says, in its order
    "--size 0": "--size: expected a whole number from 1 to 8192, found '0'",
    "--size -32": "--size ... found '-32'",
    "--size large": "--size ... found 'large'",
    "--size 8193": "--size ... found '8193'",
    "--seed -1": "--seed: expected a whole number from 0 to 4294967295, found",
    "--val-fraction 0.5 --test-fraction 0.5": "--val-fraction ... 0.5 and 0.5",
    "--val-fraction 0": "--val-fraction ... above 0 ... found 0.0",
    "--test-fraction -0.1": "--test-fraction ... above 0 ... found 0.2 and -0.1",
    "--test-fraction nan": "--test-fraction ... found 0.2 and nan",
    "--val-fraction 0.49 --test-fraction 0.5": "image in train, found none of 44",
    "--val-fraction 0.01": "at least one image in val, found none of 44; change the fr",
    "--test-fraction 0.01": "--out: expected at least one image in test, found none",
    "--colour": "--colour",
    "--mask-share 0": "--mask-share: expected a share above 0, at most 1, found 0.0",
    "--box-share 1.5": "--box-share: expected a share above 0, at most 1, found 1.5",
    "--label-share nan": "--label-share: expected a share above 0,  ... found nan",
    "--folds 2 --fold 0": "--folds: expected a whole number from 3 up, found 2",
    "--folds 5": "--fold: expected a whole number from 0 to 4, found None",
    "--folds 5 --fold 5": "--fold: expected a whole number from 0 to 4, found 5",
    "--fold 1": "--folds: expected a whole number from 3 up, found None",
    "--folds 5 --fold 0 --val-fraction 0.2": "--val-fraction, --test-fraction: expected none "
    "beside --folds, found 0.2",
    "--folds 60 --fold 59": "--out: expected at least one image in ... or the folds",
    "--border cat": "--border ... 'cat'",
    "--root=": "--root ... expected a path, found an empty one",
}


@pytest.mark.parametrize("flags", WRONG_FLAGS)
def test_wrong_flags(drawn, out, capsys, flags):
    assert run(drawn, out, *flags.split()) == 2
    assert_one_line(capsys, *WRONG_FLAGS[flags].split(" ... "))
    assert list(out.parent.iterdir()) == []


def test_missing_flags(capsys):
    assert prepare_pets.main([]) == 2
    assert_one_line(capsys, "--root, --out")


def test_missing_root(tmp_path, out, capsys):
    assert run(tmp_path / "nowhere", out) == 2
    assert_one_line(capsys, "--root", "nowhere", "oxford-iiit-pet/", "no such folder")


def test_root_without_pets(drawn, out, capsys):
    assert run(drawn / "oxford-iiit-pet", out) == 2  # one level too deep
    assert_one_line(capsys, "--root", "oxford-iiit-pet/ in it", "['annotations', 'images']")


def emptied(path):
    shutil.rmtree(path)
    path.mkdir()


def replace(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new))


DAMAGED_ROOTS = {  # what: (file or folder, damage, what the line says, in its order)
    "no folder": ("annotations", shutil.rmtree, "pet: expected images/ and annotations/"),
    "no image": ("images", emptied, "pet/images: expected the files ... found none"),
    "no trimap": ("annotations/trimaps", emptied, "/trimaps: expected the files ... found none"),
    "no box": ("annotations/xmls", emptied, "/xmls: expected the files ... found none"),
    "no list": ("annotations/test.txt", Path.unlink, "annotations/test.txt"),
    "two words": ("annotations/test.txt", replace(" 2 1", ""), "pet: expected ... not enough val"),
    "in both": ("annotations/test.txt", replace("pug_10", "pug_0"), "expected pug_0 once, found 2"),
    "species": ("annotations/trainval.txt", replace("4 2 1", "4 7 1"), "binary.h5: expected 0, 1"),
}


@pytest.mark.parametrize("what", DAMAGED_ROOTS)
def test_a_damaged_root(root, out, capsys, what):
    name, damage, message = DAMAGED_ROOTS[what]
    damage(root / "oxford-iiit-pet" / name)
    assert run(root, out) == 2
    assert_one_line(capsys, *message.split(" ... "))
    assert list(out.parent.iterdir()) == []


def test_no_usable_box(root, out, capsys):
    for path in (root / "oxford-iiit-pet/annotations/xmls").iterdir():
        path.write_text("")
    assert run(root, out, "--add-unboxed") == 2
    assert "image in val, found none of 54" in capsys.readouterr().err  # all others are in train
    assert run(root, out) == 2
    assert "image in train, found none of 0" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []
