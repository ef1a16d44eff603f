"""What tools/prepare_pets.py writes."""

from collections import Counter

import numpy as np
import pytest
import torch
from pets_folder import drawn, out, root  # noqa: F401 (fixtures)
from pets_source import (
    BOXED,
    BREEDS,
    FILES,
    SCALED_BOX,
    SIZE,
    assert_one_line,
    boxed_names,
    everything,
    members,
    read,
    run,
    whole,
)
from PIL import Image

from dataload import SPLITS, H5Dataset
from tools import prepare_pets


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
        assert H5Dataset(split, out).known["bbox"].all()
    found, added = members(out, "train"), {(b, n + i) for b, n in enumerate(BOXED) for i in (0, 1)}
    assert [member for member in found if member not in added] == members(without, "train")
    is_known = H5Dataset("train", out).known["bbox"].tolist()
    assert is_known == [member not in added for member in found] and added <= {*found}


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


def test_types_and_shapes(drawn, out):
    run(drawn, out)
    images, masks = read(out, "val", "images")[0], read(out, "val", "masks")[0]
    assert images.dtype == masks.dtype == np.uint8
    assert images.shape == (9, SIZE, SIZE, 3) and masks.shape == (9, SIZE, SIZE, 1)


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
