"""Data that are valid but probably a mistake, and splits that do not fit together."""

import numpy as np
import pytest
import torch
from conftest import COUNTS, KINDS, added, damaged, drawn, rewrite

from dataload import DataError, H5Dataset, check_splits, likely_mistakes
from parts.targets import PETS, Derived

NAN = np.nan


def opened(folder, targets=PETS, memory_limit=2**30):
    return {split: H5Dataset(split, folder, targets, memory_limit) for split in COUNTS}


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_pictures_of_another_split_are_a_warning(data_folder, memory_limit):
    assert list(likely_mistakes(opened(data_folder, PETS, memory_limit))) == []
    images = drawn("val")["images"]
    images[3:] = drawn()["images"][7:9]
    images[4] = images[4, :, ::-1]  # mirrored
    rewrite(data_folder, "images", images.astype(np.float64), split="val")
    assert list(likely_mistakes(opened(data_folder, PETS, memory_limit))) == [
        f"{data_folder}/val/images.h5: expected images of this split alone, found 2 that repeat "
        "those of another: sample 3 of val is sample 7 of train"
    ]


def one_class(folder):
    labels = [-1, 1, NAN] + [1] * 9
    rewrite(folder, "binary", labels, attributes={"class_names": ["cat", "dog"]})


UNLIKELY = {
    "one class": (one_class, "binary.h5: expected both classes, found only 'dog'"),
    "one breed": (
        added("breeds", 12), "breeds.h5: expected several classes, found only 'class 0'",
    ),
    "floats up to 1": (
        damaged("images", lambda a: a / a.max()),
        "images.h5: expected values 0-255, found none above 1",
    ),
    "integers up to 1": (
        lambda f: rewrite(f, "images", (drawn()["images"] > 90).astype("i2")),
        "images.h5: expected values 0-255, found none above 1",
    ),
    "boxes as fractions": (
        damaged("bboxes", lambda a: a / 32),
        "bboxes.h5: expected boxes in pixels, found none beyond 1",
    ),
    "no boxes": (
        damaged("bboxes", lambda a: a * NAN), "bboxes.h5: expected boxes, found no known one",
    ),
    "no pet": (
        damaged("masks", lambda a: a * 0),
        "masks.h5: expected foreground, found no pixel of value 1",
    ),
    "pet as 255": (
        damaged("masks", lambda a: a * 255),
        "masks.h5: expected foreground, found no pixel of value 1",
    ),
    "no border": (
        added("border", (12, 32, 32), 0, 1, class_names=["ground", "pet", "rim"]),
        "border.h5: expected all classes, found no pixel of 'rim'",
    ),
    "no binary": (
        lambda f: (f / "train/binary.h5").unlink(),
        "binary.h5: expected targets of 'bin', found no such file; none is known",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNLIKELY)
def test_what_is_probably_a_mistake_is_a_warning(data_folder, case):
    change, message = UNLIKELY[case]
    change(data_folder)
    file = message.partition(".h5")[0]
    kinds = PETS | {name: kind for name, kind in KINDS.items() if kind.file == file}
    dataset = H5Dataset("train", data_folder, kinds)
    assert list(likely_mistakes({"train": dataset})) == [f"{data_folder}/train/{message}"]


def test_nothing_known_of_classes_is_no_warning(data_folder):
    for name in ("masks", "border"):
        rewrite(data_folder, name, np.full((12, 32, 32), 255))
    rewrite(data_folder, "binary", np.full(12, -1))
    kinds = {name: KINDS[name] for name in ("seg", "bin", "border")}
    assert list(likely_mistakes({"train": H5Dataset("train", data_folder, kinds)})) == []


def test_warnings_are_about_what_the_targets_name(data_folder):
    """Not about a file that is missing or odd and that no task asks for."""
    for split in COUNTS:
        (data_folder / split / "bboxes.h5").unlink()
    one_class(data_folder)
    assert list(likely_mistakes(opened(data_folder, {"seg": PETS["seg"]}))) == []
    derived = {"area": Derived(lambda seg: seg.float().mean((1, 2, 3)), seg=PETS["seg"])}
    assert list(likely_mistakes(opened(data_folder, derived))) == []
    assert len(list(likely_mistakes(opened(data_folder)))) == 4


# ------------------------------------------------------------------------- splits fit together


def other_side(folder):
    count = COUNTS["val"]
    rewrite(folder, "images", np.full((count, 32, 64, 3), 9), split="val")
    rewrite(folder, "masks", np.ones((count, 32, 64)), split="val")


def no_masks(split):
    return lambda f: rewrite(f, "masks", np.full((COUNTS[split], 32, 32), 255), split=split)


def other_names(folder):
    for split, names in {"train": ["a", "b", "c"], "val": ["a", "c", "b"]}.items():
        array = np.zeros((COUNTS[split], 32, 32), "u1")
        rewrite(folder, "border", array, split, attributes={"class_names": names})


TOGETHER = {
    "sides": (
        other_side, "val/images.h5: expected the side of {}/train/images.h5, (32, 32), found "
        "(32, 64)",
    ),
    "names of labels": (
        lambda f: rewrite(
            f, "binary", drawn("test")["binary"], "test", attributes={"class_names": ["r", "b"]}
        ),
        "test/binary.h5: expected the class_names of {}/train/binary.h5, ('blue', 'red'), found "
        "('r', 'b')",
    ),
    "names of pixels": (
        other_names,
        "val/border.h5: expected the class_names of {}/train/border.h5, ('a', 'b', 'c'), found "
        "('a', 'c', 'b')",
    ),
    "no masks to learn from": (
        no_masks("train"),
        "train/masks.h5: expected at least one known target in train, found none",
    ),
    "no masks to test on": (
        lambda f: (f / "test/masks.h5").unlink(),
        "test/masks.h5: expected at least one known target in test, found no such file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TOGETHER)
def test_splits_that_do_not_fit_together(data_folder, case):
    change, message = TOGETHER[case]
    kinds = PETS | {"border": KINDS["border"]}
    check_splits(opened(data_folder, kinds), ["seg"])
    change(data_folder)
    with pytest.raises(DataError) as error:
        check_splits(opened(data_folder, kinds), ["seg"])
    assert str(error.value) == f"{data_folder}/{message.format(data_folder)}"


def test_only_the_targets_asked_for_must_be_known(data_folder):
    no_masks("val")(data_folder)
    check_splits(opened(data_folder), ["bbox", "bin"])
    (data_folder / "val" / "binary.h5").unlink()
    check_splits(opened(data_folder), ["bbox"])
    unknown = Derived(lambda seg: torch.full((len(seg),), torch.nan), seg=PETS["seg"])
    with pytest.raises(DataError, match="train: area: expected at least one known target in"):
        check_splits(opened(data_folder, {"area": unknown}), ["area"])
