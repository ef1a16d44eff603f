"""tools/prepare_pets.py on a drawn folder in the layout of Oxford-IIIT Pet.

Every image is 40 x 20 pixels, red = 40 x breed and green = 18 x number, so that a sample read back
tells which file it came from; blue is noise, so that no image is a near-duplicate of another.
"""

import hashlib
import io
import shutil
import tarfile
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from dataload import SPLITS, H5Dataset
from parts.targets import PETS, Label, PixelClasses
from tools import prepare_pets
from tools.shared import splitting

BREEDS = ("Abyssinian", "Bengal", "beagle", "pug", "shiba_inu")  # two cats, three dogs
BOXED = (10, 10, 10, 10, 4)  # images of each breed in trainval.txt
UNBOXED = 2  # of each breed in test.txt
BOX = (6, 6, 30, 20)  # the first and last pixels inside, from 1
SIZE = 8
FILES = ("images", "masks", "bboxes", "binary")
BREED = {"breed": Label("breeds", len(BREEDS))}
SCALED_BOX = [1, 2, 6, 8]  # edges 5, 5, 30, 20; x: 8 / 40, y: 8 / 20


def draw_trimap():
    """uint8 (20, 40): background above, below it pet on the left and border on the right."""
    trimap = np.full((20, 40), 2, np.uint8)
    trimap[10:, :20], trimap[10:, 20:] = 1, 3
    return trimap


def draw_image(breed, number):
    """A PIL image of 40 x 20 pixels as the docstring of this module describes them."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 40 * breed, 18 * number
    noise = np.random.default_rng([breed, number]).integers(0, 256, (10, 20), np.uint8)
    pixels[..., 2] = noise.repeat(2, 0).repeat(2, 1)
    return Image.fromarray(pixels)


def write_box(path, box):
    keys = ("xmin", "ymin", "xmax", "ymax")
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box, strict=True))
    path.write_text(f"<annotation><object><bndbox>{inner}</bndbox></object></annotation>")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    folder = root / "oxford-iiit-pet"
    for name in ("images", "annotations/trimaps", "annotations/xmls"):
        (folder / name).mkdir(parents=True)
    lists = {"trainval": [], "test": []}
    for breed, (stem, boxed) in enumerate(zip(BREEDS, BOXED, strict=True)):
        for number in range(boxed + UNBOXED):
            name = f"{stem}_{number}"
            draw_image(breed, number).save(folder / f"images/{name}.jpg", format="PNG")
            Image.fromarray(draw_trimap()).save(folder / f"annotations/trimaps/{name}.png")
            part = "trainval" if number < boxed else "test"
            lists[part].append(f"{name} {breed + 1} {1 if breed < 2 else 2} 1\n")
            if part == "trainval":
                write_box(folder / f"annotations/xmls/{name}.xml", BOX)
    for part, lines in lists.items():
        (folder / f"annotations/{part}.txt").write_text("".join(lines))
    return root


@pytest.fixture
def root(drawn, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(drawn, tmp_path / "root")


@pytest.fixture
def out(tmp_path):
    """Where the tool shall write; nothing else is in the parent, so leftovers are seen."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "data"


def run(root, out, *flags):
    arguments = ("--root", root, "--out", out, "--size", SIZE, *flags)
    return prepare_pets.main([str(argument) for argument in arguments])


def whole(out, split, targets=PETS):
    """Images (N, 3, S, S) and targets of a split, in its order."""
    dataset = H5Dataset(split, out, targets)
    return dataset[list(range(len(dataset)))]


def members(out, split):
    """(breed, number) of every sample of a split, in its order."""
    colours = whole(out, split)[0][:, :, SIZE // 2, SIZE // 2].float()
    return [(round(red / 40), round(green / 18)) for red, green, _ in colours.tolist()]


def everything(out):
    return sorted(member for split in SPLITS for member in members(out, split))


def boxed_names():
    return [(breed, number) for breed, count in enumerate(BOXED) for number in range(count)]


def contents(folder):
    """Every file below, by relative path, as a digest."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def assert_one_line(capsys, *fragments):
    error = capsys.readouterr().err
    assert error.startswith("prepare_pets.py: ") and error.endswith("\n") and error.count("\n") == 1
    for fragment in fragments:
        assert fragment in error


def read(out, split, name):
    with h5py.File(out / split / f"{name}.h5") as file:
        assert list(file) == [name]
        return file[name][()], dict(file.attrs)


# What is written


def test_splits_are_stratified_disjoint_and_complete(drawn, out):
    assert run(drawn, out) == 0
    counts = {split: Counter(breed for breed, _ in members(out, split)) for split in SPLITS}
    assert counts["train"] == {0: 6, 1: 6, 2: 6, 3: 6, 4: 2}
    assert counts["val"] == counts["test"] == {0: 2, 1: 2, 2: 2, 3: 2, 4: 1}
    assert everything(out) == boxed_names()


def test_fractions_are_those_asked_for(drawn, out):
    assert run(drawn, out, "--val-fraction", 0.1, "--test-fraction", 0.5) == 0
    assert [len(H5Dataset(split, out)) for split in SPLITS] == [18, 4, 22]  # breed of 4: 2, 0, 2


def test_splits_are_not_sorted_by_breed(drawn, out):
    run(drawn, out, "--add-unboxed")
    for split in SPLITS:
        breeds = [breed for breed, _ in members(out, split)]
        assert breeds != sorted(breeds)
    assert H5Dataset("train", out).known["bbox"][: 2 * len(BREEDS)].any()


def test_a_seed_repeats_and_another_differs(drawn, out):
    first, again, other = (out.with_name(name) for name in ("first", "again", "other"))
    run(drawn, first, "--seed", 3)
    run(drawn, again, "--seed", 3)
    run(drawn, other, "--seed", 4)
    for split in SPLITS:
        for name in FILES:
            assert np.array_equal(read(first, split, name)[0], read(again, split, name)[0])
        assert set(members(first, split)) != set(members(other, split))


def test_images_without_a_box_change_the_training_split_only(drawn, out):
    """So that runs with and without them can be compared."""
    without = out.with_name("without")
    run(drawn, out, "--add-unboxed")
    run(drawn, without)
    for split in ("val", "test"):
        for name in FILES:
            assert np.array_equal(read(out, split, name)[0], read(without, split, name)[0])
    kept = [member for member in members(out, "train") if member in members(without, "train")]
    assert kept == members(without, "train")


def test_listed_names_are_split_alike_whatever_else_is_there(drawn, root, out, tmp_path):
    """So that a subset can be repeated from the full set, whose lists have another order."""
    lists = [root / f"oxford-iiit-pet/annotations/{part}.txt" for part in ("trainval", "test")]
    lines = [line for path in lists for line in path.read_text().splitlines(keepends=True)]
    wanted = [line for line in lines if "_3 " not in line and "_11 " not in line]
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{line.split()[0]}\n" for line in wanted))
    run(drawn, out, "--names", names, "--add-unboxed")
    for path in lists:  # the same images in the opposite order
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    run(root, out.with_name("reversed"), "--names", names, "--add-unboxed")
    assert len(everything(out)) == len(wanted) < len(lines)
    for split in SPLITS:
        assert members(out, split) == members(out.with_name("reversed"), split)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"pug_1 pug_99", "--names {}: expected names of images, each once, found pug_99\n"),
        (b"pug_1 pug_2 pug_1", "--names {}: expected names of images, each once, found pug_1\n"),
        (b"\xff", "--names {}: expected names of images, each once, found \ufffd\n"),
        (None, "prepare_pets.py: {}: No such file or directory\n"),
        (b"", "--out: expected at least one image in train, found none of 0; change"),
    ],
)
def test_wrong_names(drawn, out, tmp_path, capsys, content, message):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    assert run(drawn, out, "--names", path) == 2
    assert_one_line(capsys, message.format(path))
    assert list(out.parent.iterdir()) == []


def test_types_shapes_and_masks(drawn, out):
    run(drawn, out)
    images, masks = read(out, "val", "images")[0], read(out, "val", "masks")[0]
    assert images.dtype == masks.dtype == np.uint8
    assert images.shape == (9, SIZE, SIZE, 3) and masks.shape == (9, SIZE, SIZE, 1)
    assert (masks[:, :4] == 0).all() and (masks[:, 4:] == 1).all()  # border counts as pet


def test_boxes_are_scaled_along_each_axis(drawn, out):
    run(drawn, out)
    assert read(out, "test", "bboxes")[0].tolist() == [SCALED_BOX] * 9
    assert H5Dataset("test", out)[0][1]["bbox"].tolist() == [0.125, 0.25, 0.75, 1.0]


def test_images_are_antialiased_and_masks_nearest(root, out):
    striped = np.zeros((20, 40, 3), np.uint8)
    striped[:, 4::5] = 255  # bilinear alone would look at columns 2, 7, 12, ... and see black
    Image.fromarray(striped).save(root / "oxford-iiit-pet/images/pug_0.jpg", format="PNG")
    trimap = np.full((20, 40), 2, np.uint8)
    trimap[:, 2::5] = 1  # those columns are all that nearest looks at
    Image.fromarray(trimap).save(root / "oxford-iiit-pet/annotations/trimaps/pug_0.png")
    run(root, out)
    line = sum(BOXED[:3])
    for split in SPLITS:
        images, attributes = read(out, split, "images")
        for row in np.flatnonzero(attributes["source_lines"] == line):
            assert (np.abs(images[row, :, 1:-1].astype(int) - 255 // 5) <= 2).all()
            assert (read(out, split, "masks")[0][row] == 1).all()
            return
    pytest.fail("pug_0 is in no split")


@pytest.mark.parametrize("size", [1, 7, 64])
def test_any_size(drawn, out, size):
    assert run(drawn, out, "--size", size) == 0
    images, targets = whole(out, "train")
    assert images.shape[2:] == (size, size)
    assert torch.allclose(targets["bbox"], torch.tensor([0.125, 0.25, 0.75, 1.0]))


def test_species_fit_the_class_names(drawn, out):
    run(drawn, out)
    for split in SPLITS:
        assert H5Dataset(split, out).class_names["bin"] == ("cat", "dog")
        species = whole(out, split)[1]["bin"].tolist()
        assert species == [int(breed >= 2) for breed, _ in members(out, split)]


def test_provenance(drawn, out):
    run(drawn, out, "--seed", 5, "--add-unboxed", "--val-fraction", 0.3)
    lists = [drawn / f"oxford-iiit-pet/annotations/{part}.txt" for part in ("trainval", "test")]
    names = [line.split()[0] for path in lists for line in path.read_text().splitlines()]
    for split in SPLITS:
        for file in FILES:
            about = read(out, split, file)[1]
            lines = about.pop("source_lines")
            expected = [f"{BREEDS[breed]}_{number}" for breed, number in members(out, split)]
            assert [names[line] for line in lines] == expected
            assert about.pop("source").startswith("Oxford-IIIT Pet")
            assert "CVPR 2012" in about.pop("citation")
            assert about == {
                "licence": "CC BY-SA 4.0",
                "tool": "tools/prepare_pets.py",
                "seed": 5,
                "size": SIZE,
                "val_fraction": 0.3,
                "test_fraction": 0.2,
                "add_unboxed": True,
                "border": "pet",
                "mask_share": 1.0,
                "box_share": 1.0,
                "label_share": 1.0,
                "split": split,
            }


def test_unboxed_images_go_to_train_only(drawn, out):
    boxed = out.with_name("boxed")
    run(drawn, boxed)
    run(drawn, out, "--add-unboxed")
    for split in ("val", "test"):
        assert set(members(out, split)) == set(members(boxed, split))
        assert H5Dataset(split, out).known["bbox"].all()
    added = set(members(out, "train")) - set(members(boxed, "train"))
    assert added == {(b, count + i) for b, count in enumerate(BOXED) for i in range(UNBOXED)}
    is_known = H5Dataset("train", out).known["bbox"].tolist()
    assert is_known == [member not in added for member in members(out, "train")]


def test_the_summary_counts_what_is_there(drawn, out, capsys, monkeypatch):
    monkeypatch.chdir(out.parent)
    assert prepare_pets.main(["--root", str(drawn), "--out", "data", "--size", "64"]) == 0
    assert "left out: 10 of 54 images, 0 of them near-dup" in capsys.readouterr().out
    assert run(drawn, out, "--size", 64, "--add-unboxed", "--force", "--breeds") == 0
    printed, errors = capsys.readouterr()
    rows = [line.split() for line in printed.splitlines()]
    assert errors == "" and rows[0] == ["split", "samples", "masks", "boxes", "cat", "dog", "MB"]
    assert rows[1][:6] == ["train", "36", "36", "26", "16", "20"]
    assert rows[2][:6] == ["val", "9", "9", "9", "4", "5"]
    assert rows[3][:6] == ["test", "9", "9", "9", "4", "5"]
    assert float(rows[1][6]) == pytest.approx(36 * 64 * 64 * 4 / 1e6, abs=0.1)
    assert "defects: none; left out: 0 of 54 images" in printed
    assert printed.splitlines()[-1].endswith(f"s, written to {out}")


# Folds, near-duplicates, what is known


def test_every_boxed_image_is_tested_once_over_the_folds(drawn, out):
    tested, validated = [], []
    for fold in range(5):
        flags = ("--folds", 5, "--fold", fold, "--add-unboxed")
        assert run(drawn, out.with_name(f"{fold}"), *flags) == 0
        here = out.with_name(f"{fold}")
        assert everything(here) == everything(out.with_name("0"))
        assert 8 <= len(members(here, "test")) <= 9
        breeds = Counter(breed for breed, _ in members(here, "test"))
        assert [breeds[breed] for breed in range(4)] == [2, 2, 2, 2]
        assert set(boxed_names()) >= {*members(here, "test"), *members(here, "val")}
        tested.append(set(members(here, "test")))
        validated.append(set(members(here, "val")))
    assert sorted(member for fold in tested for member in fold) == boxed_names()
    assert validated == tested[1:] + tested[:1]
    for flags in (("--size", 16), ("--mask-share", 0.5)):
        run(drawn, out, "--folds", 5, "--fold", 1, *flags)
        other = H5Dataset("test", out).source_lines
        assert other == H5Dataset("test", out.with_name("1")).source_lines
        shutil.rmtree(out)


def copy_image(root, name, other, change):
    """Put a changed copy of the image `other` in the place of `name`."""
    with Image.open(root / f"oxford-iiit-pet/images/{other}.jpg") as image:
        changed = change(image.convert("RGB"))
    changed.save(root / f"oxford-iiit-pet/images/{name}.jpg", format="PNG")


def split_of(out, names):
    """The split in which each of these lines of the lists is; None if in none."""
    lines = {split: H5Dataset(split, out).source_lines for split in SPLITS}
    return [next((s for s in SPLITS if name in lines[s]), None) for name in names]


def mirrored(image):
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def compressed(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file)


@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_stay_in_one_split(root, out, seed):
    copy_image(root, "pug_1", "pug_0", mirrored)
    copy_image(root, "pug_2", "pug_1", compressed)  # the same picture as pug_0 too
    copy_image(root, "beagle_5", "Bengal_5", lambda image: image)  # of another breed
    start = {"Bengal": 10, "beagle": 20, "pug": 30}
    for flags in (("--seed", seed), ("--seed", seed, "--folds", 4, "--fold", 1)):
        assert run(root, out, *flags) == 0
        splits = split_of(out, [start["pug"], start["pug"] + 1, start["pug"] + 2])
        assert len(set(splits)) == 1 and splits[0]
        assert len(set(split_of(out, [start["Bengal"] + 5, start["beagle"] + 5]))) == 1
        shutil.rmtree(out)


def test_groups_are_joined_by_way_of_others(monkeypatch):
    pairs = [(0, 1), (2, 3), (1, 2), (5, 6)]
    monkeypatch.setattr(splitting, "copies", lambda *_: pairs)
    groups = splitting.group(range(7)).tolist()
    assert [groups.index(group) for group in groups] == [0, 0, 0, 0, 4, 5, 5]


def test_unboxed_copies_of_tested_images_are_left_out(root, out, capsys):
    run(root, out)
    test, train = (H5Dataset(split, out).source_lines[0] for split in ("test", "train"))
    lists = [root / f"oxford-iiit-pet/annotations/{part}.txt" for part in ("trainval", "test")]
    names = [line.split()[0] for path in lists for line in path.read_text().splitlines()]
    copy_image(root, "pug_10", names[test], mirrored)
    copy_image(root, "pug_11", names[train], mirrored)
    capsys.readouterr()
    assert run(root, out, "--add-unboxed", "--force") == 0
    assert "left out: 1 of 54 images, 1 of them near-dup" in capsys.readouterr().out
    assert split_of(out, [names.index("pug_10"), names.index("pug_11")]) == [None, "train"]


@pytest.mark.parametrize(
    ("flag", "task"), [("mask", "seg"), ("box", "bbox"), ("label", "bin"), ("label", "breed")]
)
def test_shares_are_nested_stratified_and_of_train_alone(drawn, out, flag, task):
    known = {}
    for share in (1, 0.5, 0.25):
        run(drawn, out, "--breeds", f"--{flag}-share", share, "--force")
        dataset = H5Dataset("train", out, PETS | BREED)
        assert len(dataset) == 26
        lines, is_known = np.array(dataset.source_lines), dataset.known[task].numpy()
        known[share] = set(lines[is_known])
        for other in {"seg", "bbox", "bin", "breed"} - {task}:
            assert dataset.known[other].all() or {other, task} == {"bin", "breed"}
        for split in ("val", "test"):
            others = H5Dataset(split, out, PETS | BREED).known
            assert all(is_known.all() for is_known in others.values())
    assert known[0.25] < known[0.5] < known[1]
    assert [len(known[share]) for share in (1, 0.5, 0.25)] == [26, 13, 6]
    for breed in range(4):  # six of each in train
        lines = set(range(10 * breed, 10 * breed + 10))
        assert len(known[0.5] & lines) == 3 and 1 <= len(known[0.25] & lines) <= 2


def test_shares_choose_different_images(drawn, out):
    flags = [f for name in ("mask", "box", "label") for f in (f"--{name}-share", 0.5)]
    run(drawn, out, *flags, "--add-unboxed")
    known = H5Dataset("train", out).known
    assert known["seg"].sum() == known["bin"].sum() == 18 and known["bbox"].sum() == 13
    assert (known["seg"] != known["bin"]).any() and (known["seg"] & ~known["bbox"]).any()
    assert (~known["seg"] & known["bbox"]).any()


@pytest.mark.parametrize(("border", "value"), [("pet", 1), ("ignore", 255), ("class", 2)])
def test_the_border_is_pet_unknown_or_a_class(drawn, out, border, value):
    run(drawn, out, "--border", border)
    kind = PixelClasses("masks", classes=3 if border == "class" else 2)
    masks = whole(out, "val", {"seg": kind})[1]["seg"]  # (N, 1, S, S)
    assert (masks[:, :, :4] == 0).all()
    assert (masks[:, :, 4:, :4] == 1).all() and (masks[:, :, 4:, 4:] == value).all()
    names = H5Dataset("val", out, {"seg": kind}).class_names["seg"]
    wanted = ("background", "pet", "border") if border == "class" else ("background", "foreground")
    assert names == wanted


def test_breeds_are_written_on_request(drawn, out):
    run(drawn, out, "--breeds")
    kind = {"breed": Label("breeds", classes=len(BREEDS))}
    for split in SPLITS:
        breeds = whole(out, split, kind)[1]["breed"].tolist()
        assert breeds == [breed for breed, _ in members(out, split)]
        names = H5Dataset(split, out, kind).class_names["breed"]
        assert names == ("Abyssinian", "Bengal", "Beagle", "Pug", "Shiba Inu")
    run(drawn, out, "--force")  # breeds.h5 is one of the tool's files
    assert not (out / "train" / "breeds.h5").exists()


def test_a_byte_order_mark_is_no_part_of_a_name(drawn, out, tmp_path):
    names = [f"{stem}_{number}" for stem in BREEDS for number in range(4)]
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "names.txt").write_text("\n".join(names), encoding=encoding)
        flags = ("--val-fraction", 0.25, "--test-fraction", 0.25)
        assert run(drawn, out, "--names", tmp_path / "names.txt", *flags, "--force") == 0
        assert len(everything(out)) == 20


def test_a_box_of_one_pixel(root, out):
    write_box(root / "oxford-iiit-pet/annotations/xmls/pug_3.xml", (1, 20, 1, 20))
    run(root, out)
    for split in SPLITS:
        dataset = H5Dataset(split, out)
        if 33 in dataset.source_lines:
            box = dataset[dataset.source_lines.index(33)][1]["bbox"].tolist()
    assert box == pytest.approx([0, 19 / 20, 1 / 40, 1])


def test_home_folder(drawn, out, monkeypatch):
    monkeypatch.setenv("HOME", str(out.parent))
    assert run(drawn, "~/data") == 0 and (out / "val" / "images.h5").exists()


# Damaged sources


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


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (["--size", "0"], ["--size: expected a whole number from 1 to 8192, found '0'"]),
        (["--size", "-32"], ["--size", "found '-32'"]),
        (["--size", "large"], ["--size", "found 'large'"]),
        (["--seed", "-1"], ["--seed: expected a whole number from 0 to 4294967295, found"]),
        (["--val-fraction", "0.5", "--test-fraction", "0.5"], ["--val-fraction", "0.5 and 0.5"]),
        (["--val-fraction", "0"], ["--val-fraction", "above 0", "found 0.0"]),
        (["--test-fraction", "-0.1"], ["--test-fraction", "above 0", "found 0.2 and -0.1"]),
        (["--test-fraction", "nan"], ["--test-fraction", "found 0.2 and nan"]),
        (
            ["--val-fraction", "0.49", "--test-fraction", "0.5"],
            ["image in train, found none of 44"],
        ),
        (
            ["--val-fraction", "0.01"],
            ["at least one image in val, found none of 44; change the fr"],
        ),
        (["--test-fraction", "0.01"], ["--out: expected at least one image in test, found none"]),
        (["--size", "8193"], ["--size", "found '8193'"]),
        (["--colour"], ["--colour"]),
        (["--mask-share", "0"], ["--mask-share: expected a share above 0, at most 1, found 0.0"]),
        (["--box-share", "1.5"], ["--box-share: expected a share above 0, at most 1, found 1.5"]),
        (["--label-share", "nan"], ["--label-share: expected a share above 0, ", "found nan"]),
        (["--folds", "2", "--fold", "0"], ["--folds: expected a whole number from 3 up, found 2"]),
        (["--folds", "5"], ["--fold: expected a whole number from 0 to 4, found None"]),
        (["--folds", "5", "--fold", "5"], ["--fold: expected a whole number from 0 to 4, found 5"]),
        (["--fold", "1"], ["--folds: expected a whole number from 3 up, found None"]),
        (
            ["--folds", "5", "--fold", "0", "--val-fraction", "0.2"],
            ["--val-fraction, --test-fraction: expected none beside --folds, found 0.2"],
        ),
        (
            ["--folds", "60", "--fold", "59"],
            ["--out: expected at least one image in", "or the folds"],
        ),
        (["--border", "cat"], ["--border", "'cat'"]),
        (["--root", ""], ["--root", "expected a path, found an empty one"]),
    ],
)
def test_wrong_flags(drawn, out, capsys, flags, fragments):
    assert run(drawn, out, *flags) == 2
    assert_one_line(capsys, *fragments)
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


def test_pets_without_annotations(root, out, capsys):
    shutil.rmtree(root / "oxford-iiit-pet/annotations")
    assert run(root, out) == 2
    assert_one_line(capsys, "oxford-iiit-pet: expected images/ and annotations/")


@pytest.mark.parametrize("name", ["images", "annotations/trimaps", "annotations/xmls"])
def test_empty_folder(root, out, capsys, name):
    shutil.rmtree(root / "oxford-iiit-pet" / name)
    (root / "oxford-iiit-pet" / name).mkdir()
    assert run(root, out) == 2
    assert_one_line(capsys, f"oxford-iiit-pet/{name}: expected the files", "found none")


def test_missing_list(root, out, capsys):
    (root / "oxford-iiit-pet/annotations/test.txt").unlink()
    assert run(root, out) == 2
    assert_one_line(capsys, "annotations/test.txt")


def test_damaged_list(root, out, capsys):
    (root / "oxford-iiit-pet/annotations/test.txt").write_text("pug_10 4\n")
    assert run(root, out) == 2
    assert_one_line(capsys, "oxford-iiit-pet: expected", "not enough values")


def test_name_in_both_lists(root, out, capsys):
    with (root / "oxford-iiit-pet/annotations/test.txt").open("a") as file:
        file.write("pug_0 4 2 1\n")
    assert run(root, out) == 2
    assert_one_line(capsys, "expected pug_0 once, found 2")


def test_impossible_species_is_not_published(root, out, capsys):
    path = root / "oxford-iiit-pet/annotations/trainval.txt"
    path.write_text(path.read_text().replace("pug_0 4 2 1", "pug_0 4 7 1"))
    assert run(root, out) == 2
    assert_one_line(capsys, "binary.h5: expected 0, 1")
    assert list(out.parent.iterdir()) == []


def test_no_usable_box(root, out, capsys):
    for path in (root / "oxford-iiit-pet/annotations/xmls").iterdir():
        path.write_text("")
    assert run(root, out, "--add-unboxed") == 2
    assert "image in val, found none of 54" in capsys.readouterr().err  # all others are in train
    assert run(root, out) == 2
    assert "image in train, found none of 0" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


# Output is complete or absent


def test_existing_output_is_refused_and_kept(drawn, out, capsys):
    run(drawn, out)
    before = contents(out)
    capsys.readouterr()
    assert run(drawn, out, "--seed", 1) == 2
    assert_one_line(capsys, "--out", str(out), "--force")
    assert contents(out) == before and list(out.parent.iterdir()) == [out]


def test_force_replaces(drawn, out):
    run(drawn, out)
    (out / "val/masks.h5").unlink()  # an incomplete one may be replaced as well
    assert run(drawn, out, "--size", 16, "--force") == 0
    assert [H5Dataset(split, out).side for split in SPLITS] == [(16, 16)] * 3
    assert list(out.parent.iterdir()) == [out]


def test_force_without_an_old_output(drawn, out):
    assert run(drawn, out, "--force") == 0
    assert everything(out) == boxed_names()


def test_force_follows_a_link(drawn, out):
    link = out.with_name("link")
    run(drawn, out)
    link.symlink_to(out)
    assert run(drawn, link, "--size", 16, "--force") == 0
    assert link.is_symlink() and H5Dataset("val", out).side == (16, 16)


@pytest.mark.parametrize("name", ["thesis.tex", "train/notes.txt"])
def test_force_spares_foreign_files(drawn, out, capsys, name):
    run(drawn, out)
    (out / name).write_text("mine")
    before = contents(out)
    assert run(drawn, out, "--force") == 2
    assert_one_line(capsys, "--force", name)
    assert contents(out) == before


def test_force_spares_a_file(drawn, out, capsys):
    out.write_text("mine")
    assert run(drawn, out, "--force") == 2
    assert_one_line(capsys, "--force", str(out))
    assert out.read_text() == "mine"


def fail_at_val(monkeypatch, error):
    """Make the tool fail after one split is on disk, as a signal or a full disk would."""
    opened, tried = h5py.File, []

    def fail(path, mode="r", **options):
        place = Path(getattr(path, "name", path))  # of an open file or a path
        if mode != "r" and place.parent.name == "val":
            tried.append(place)
            raise error
        return opened(path, mode, **options)

    monkeypatch.setattr(h5py, "File", fail)
    return tried


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left\non device"), 2, "No space left on device"),
    ],
)
@pytest.mark.parametrize("has_old", [False, True])
def test_interrupted_write(drawn, out, capsys, monkeypatch, error, code, message, has_old):
    if has_old:
        run(drawn, out)
    before = contents(out)
    tried = fail_at_val(monkeypatch, error)
    assert run(drawn, out, "--seed", 1, "--force") == code
    assert tried[0].parents[2] == out.parent  # a sibling, so that renaming is atomic
    assert_one_line(capsys, message)
    assert contents(out) == before and list(out.parent.iterdir()) == [out] * has_old


def test_a_bug_leaves_no_partial_output_either(drawn, out, monkeypatch):
    fail_at_val(monkeypatch, KeyError("bug"))
    with pytest.raises(KeyError, match="bug"):
        run(drawn, out)
    assert list(out.parent.iterdir()) == []


def test_a_failed_exchange_brings_the_old_output_back(drawn, out, capsys, monkeypatch):
    run(drawn, out)
    before = contents(out)
    rename = Path.rename

    def fail(path, target):
        if ".partial-" in path.name:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    assert run(drawn, out, "--seed", 1, "--force") == 2
    assert_one_line(capsys, "Input/output error")
    assert contents(out) == before and list(out.parent.iterdir()) == [out]


def test_output_that_appears_meanwhile_is_kept(drawn, out, capsys, monkeypatch):
    opened = h5py.File

    def appear(path, mode="r", **options):
        out.mkdir(exist_ok=True)
        (out / "other").write_text("of another run")
        return opened(path, mode, **options)

    monkeypatch.setattr(h5py, "File", appear)
    assert run(drawn, out) == 2
    assert_one_line(capsys, str(out))
    assert [path.name for path in out.iterdir()] == ["other"]
    assert list(out.parent.iterdir()) == [out]


# Download, from a server on this machine in place of the real one


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def archives(drawn, tmp_path, monkeypatch):
    """The folder of the two archives that torchvision will fetch."""
    folder = tmp_path / "archives"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    resources = []
    for name in ("images", "annotations"):
        archive = folder / f"{name}.tar.gz"
        with tarfile.open(archive, "w:gz") as file:
            file.add(drawn / "oxford-iiit-pet" / name, arcname=name)
        url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        resources.append((url, hashlib.md5(archive.read_bytes()).hexdigest()))
    monkeypatch.setattr(prepare_pets.OxfordIIITPet, "_RESOURCES", resources)
    yield folder
    server.shutdown()
    server.server_close()


def test_download(archives, out, tmp_path):
    assert run(tmp_path / "new", out, "--download") == 0
    assert everything(out) == boxed_names()


def test_failed_download(archives, out, tmp_path, capsys):
    (archives / "images.tar.gz").unlink()
    assert run(tmp_path / "new", out, "--download") == 2
    assert_one_line(capsys, "--download to", "oxford-iiit-pet: expected images/", "404")
    assert list(out.parent.iterdir()) == []


def test_damaged_download(archives, out, tmp_path, capsys):
    (archives / "images.tar.gz").write_text("something else")
    assert run(tmp_path / "new", out, "--download") == 2
    last = capsys.readouterr().err.splitlines()[-1]  # after torchvision's progress bar
    assert last.startswith("prepare_pets.py: --download to") and "corrupted" in last
    assert list(out.parent.iterdir()) == []
