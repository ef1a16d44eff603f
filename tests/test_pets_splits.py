"""Folds, near-duplicates, and what is known, in tools/prepare_pets.py."""

import io
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from pets_folder import drawn, out, root  # noqa: F401 (fixtures)
from pets_source import BREED, BREEDS, boxed_names, everything, members, run, whole, write_box
from PIL import Image

from dataload import SPLITS, H5Dataset
from parts.targets import PETS, Label, PixelClasses
from tools.shared import splitting


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


def test_groups_are_joined_by_way_of_others():
    pairs = [(0, 1), (2, 3), (1, 2), (5, 6)]
    groups = splitting.group(range(7), lambda *_: pairs).tolist()
    assert [groups.index(group) for group in groups] == [0, 0, 0, 0, 4, 5, 5]


SHARES = np.array([0.6, 0.2, 0.2])


def test_parts_are_filled_by_stratum_and_then_over_all():
    """Strata of two samples each. The first sample goes to part 0, the largest share. The second
    finds all parts equally full in its stratum, so the total decides: part 1, then 2, then 0."""
    in_order = SimpleNamespace(permutation=lambda numbers: numbers)
    strata = [0, 0, 1, 1, 2, 2]
    found = splitting.distribute(strata, np.arange(6), SHARES, in_order)
    assert found.tolist() == [0, 1, 0, 2, 0, 0]


def test_groups_are_placed_whole_where_most_is_missing():
    in_order = SimpleNamespace(permutation=lambda numbers: numbers)
    groups = np.array([0, 0, 0, 1, 2, 2])
    found = splitting.distribute([0] * 6, groups, SHARES, in_order)
    assert found.tolist() == [0, 0, 0, 1, 2, 2]


def test_every_stratum_has_its_shares_and_every_seed_another_choice():
    strata, found = np.arange(40) % 2, set()
    for seed in range(4):
        generator = np.random.default_rng(seed)
        parts = splitting.distribute(strata, np.arange(40), SHARES, generator)
        assert all(np.bincount(parts[strata == k]).tolist() == [12, 4, 4] for k in (0, 1))
        found.add(tuple(parts))
    assert len(found) == 4


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
