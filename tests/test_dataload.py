"""H5Dataset: what it returns, and every complaint it can make."""

import math
import multiprocessing
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from conftest import COUNTS, draw
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from dataload import (
    Augment,
    DataError,
    H5Dataset,
    affine_grid,
    first,
    move_boxes,
    warnings,
    write_split,
)


def rewrite(folder, name, array, key=None, split="train", attributes=None, **options):
    """Replace one file of a split."""
    with h5py.File(folder / split / f"{name}.h5", "w") as file:
        dataset = file.create_dataset(key or name, data=array, **options)
        dataset.attrs.update(attributes or {})


def test_a_sample_has_the_documented_form(shared_data):
    images, masks, boxes, labels = draw(COUNTS["train"], 0)
    dataset = H5Dataset("train", shared_data)
    assert len(dataset) == COUNTS["train"]
    assert dataset.class_names == ("blue", "red")
    image, targets = dataset[3]
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(images[3]).permute(2, 0, 1))
    assert torch.equal(targets["seg"], torch.from_numpy(masks[3]).permute(2, 0, 1))
    assert targets["bbox"].tolist() == pytest.approx((boxes[3] / 32).tolist())
    assert targets["bin"].item() == labels[3] == 1
    assert torch.equal(dataset[-1][0], dataset[len(dataset) - 1][0])
    with pytest.raises(IndexError, match="sample 12 of a split of 12"):
        dataset[12]


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_a_batch_is_its_samples(shared_data, memory_limit):
    dataset = H5Dataset("train", shared_data, memory_limit)
    assert dataset.in_memory == bool(memory_limit)
    images, targets = dataset.batch([4, 0, 9])
    assert images.is_contiguous(memory_format=torch.channels_last)
    for row, index in enumerate([4, 0, 9]):
        image, target = H5Dataset("train", shared_data)[index]
        assert torch.equal(images[row], image)
        assert all(torch.equal(targets[task][row], target[task]) for task in target)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same_from_disk(shared_data, context):
    dataset = H5Dataset("train", shared_data, memory_limit=0)
    dataset[0]  # opens and closes the files in this process first
    batches = [[0, 1, 2], [3, 4, 5], [11, 10, 9]]
    options = {"num_workers": 2, "multiprocessing_context": multiprocessing.get_context(context)}
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=first, **options)
    for indices, (images, targets) in zip(batches, loader, strict=True):
        assert torch.equal(images, dataset.batch(indices)[0])
        assert torch.equal(targets["bbox"], dataset.batch(indices)[1]["bbox"])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8, np.int16])
def test_every_real_dtype_reads_alike(data_folder, dtype):
    images, masks, boxes, labels = draw(COUNTS["train"], 0)
    rewrite(data_folder, "images", images.astype(dtype), key="anything", chunks=(5, 7, 32, 3))
    rewrite(data_folder, "masks", masks[..., 0].astype(dtype))
    rewrite(data_folder, "bboxes", boxes.astype(np.float64))
    rewrite(data_folder, "binary", labels.astype(dtype))
    dataset = H5Dataset("train", data_folder)
    assert torch.equal(dataset.images, torch.from_numpy(images))
    assert torch.equal(dataset.masks, torch.from_numpy(masks[..., 0]))
    assert dataset.class_names == ("class 0", "class 1")


def test_unknown_labels(data_folder):
    _, _, boxes, labels = draw(COUNTS["train"], 0)
    boxes[2], labels = np.nan, labels.astype(float)
    labels[:2] = -1, np.nan
    rewrite(data_folder, "bboxes", boxes)
    rewrite(data_folder, "binary", labels)
    _, targets = H5Dataset("train", data_folder).batch(range(4))
    assert targets["bbox"].isnan().all(1).tolist() == [False, False, True, False]
    assert targets["bin"].tolist() == [-1, -1, 0, 1]


def test_read_only_folder_stays_as_it_is(data_folder):
    for path in sorted(data_folder.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted((p, p.stat().st_mtime_ns) for p in data_folder.rglob("*"))
    hold = (
        "import h5py, sys; f = h5py.File(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(data_folder / "train" / "images.h5")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout.readline() == b"open\n"  # another process holds a lock
        H5Dataset("train", data_folder)[0]
        reader.stdin.close()
    assert sorted((p, p.stat().st_mtime_ns) for p in data_folder.rglob("*")) == before


def damaged(name, change):
    """A change of one array of the training split."""

    def apply(folder):
        arrays = dict(zip(("images", "masks", "bboxes", "binary"), draw(12, 0), strict=True))
        array = arrays[name].astype(np.float64)
        changed = change(array)
        rewrite(folder, name, array if changed is None else changed)

    return apply


def put(position, value):
    def change(array):
        array[position] = value

    return change


def truncate(folder):
    path = folder / "train" / "images.h5"
    os.truncate(path, path.stat().st_size // 2)


def declare(folder, name, count, written=0, chunks=True):
    """A file that promises `count` samples and holds the first `written`, one to a chunk."""
    row = {"images": (32, 32, 3), "masks": (32, 32, 1), "bboxes": (4,)}[name]
    with h5py.File(folder / "train" / f"{name}.h5", "w") as file:
        chunks = (1, *row) if chunks else None
        dataset = file.create_dataset(name, (count, *row), dtype="f8", chunks=chunks)
        for sample in range(written):
            dataset[sample] = 1


def virtual(folder):
    """HDF5 reads zeros from a virtual dataset whose source is gone, and says nothing."""
    layout = h5py.VirtualLayout((12, 32, 32, 1), "u1")
    layout[:] = h5py.VirtualSource("gone.h5", "masks", (12, 32, 32, 1))
    with h5py.File(folder / "train" / "masks.h5", "w") as file:
        file.create_virtual_dataset("masks", layout)


def no_values(folder):
    with h5py.File(folder / "train" / "binary.h5", "w") as file:
        file["binary"] = h5py.Empty("f4")


def two_keys(folder):
    with h5py.File(folder / "train" / "masks.h5", "w") as file:
        file["a"], file["b"] = [1], [2]


COMPLAINTS = {
    "no file": (lambda f: (f / "train/masks.h5").unlink(), "masks.h5: no such file"),
    "no split": (lambda f: (f / "train").rename(f / "other"), "train: no such folder"),
    "not hdf5": (lambda f: (f / "train/binary.h5").write_text("x"), "binary.h5: not a readable"),
    "truncated": (truncate, "images.h5: not a readable HDF5 file"),
    "two keys": (two_keys, r"masks.h5: expected a dataset 'masks', found \['a', 'b'\]"),
    "strings": (lambda f: rewrite(f, "binary", ["a"] * 12), "binary.h5: expected real numbers"),
    "lengths": (damaged("bboxes", lambda a: a[:5]), r"bboxes.h5: expected \(12, 4\), found \(5, 4"),
    "labels": (damaged("binary", lambda a: a[:5]), r"binary.h5: expected \(12, 1\), found \(5,\)"),
    "empty": (damaged("images", lambda a: a[:0]), r"images.h5: .*above 0, found \(0, 32, 32, 3\)"),
    "grey": (damaged("images", lambda a: a[..., :1]), r"images.h5: expected \(N, H, W, 3\)"),
    "rank": (damaged("images", lambda a: a[0]), r"images.h5: expected \(N, H, W, 3\)"),
    "mask side": (damaged("masks", lambda a: a[:, :16]), "masks.h5: expected one mask for each"),
    "nan": (
        damaged("images", put((7, 3, 2, 1), np.nan)),
        "images.h5.*0-255, found nan in sample 7",
    ),
    "too big": (damaged("images", put(8, 256)), "images.h5.* found 256.0 in sample 8"),
    "scaled": (damaged("images", lambda a: a / a.max()), "images.h5.*values 0-1; multiply by 255"),
    "negative": (damaged("images", put(0, -1)), "images.h5.* found -1.0 in sample 0"),
    "mask of 2": (
        damaged("masks", put(4, 2)),
        "masks.h5: expected values 0-1, found 2.0 in sample 4",
    ),
    "soft mask": (damaged("masks", put(4, 0.4)), "masks.h5: expected values 0 or 1, found 0.4 in"),
    "inverted": (damaged("bboxes", put(5, [9, 1, 3, 8])), "bboxes.h5.*in sample 5"),
    "no area": (damaged("bboxes", put(5, [3, 1, 3, 8])), "bboxes.h5.*in sample 5"),
    "no area in float32": (damaged("bboxes", put(5, [3, 1, 3 + 1e-9, 8])), "bboxes.h5.* sample 5"),
    "on the edge": (damaged("bboxes", put(5, [32, 1, 32.0005, 8])), "bboxes.h5.* sample 5"),
    "outside": (damaged("bboxes", put(5, [1, 1, 33, 8])), "bboxes.h5.*inside 32 x 32"),
    "half nan": (damaged("bboxes", put((5, 0), np.nan)), "bboxes.h5.*or four NaN, found"),
    "class 2": (damaged("binary", put(3, 2)), "binary.h5: expected 0, 1, -1 or NaN, found 2.0 in"),
    "three names": (
        lambda f: rewrite(f, "binary", draw(12, 0)[3], attributes={"class_names": ["a", "b", "c"]}),
        r"binary.h5: expected two class_names, found \['a', 'b', 'c'\]",
    ),
    "a word for names": (
        lambda f: rewrite(f, "binary", draw(12, 0)[3], attributes={"class_names": "ab"}),
        r"binary.h5: expected two class_names, found \['ab'\]",
    ),
    "numbers for names": (
        lambda f: rewrite(f, "binary", draw(12, 0)[3], attributes={"class_names": [3, 4]}),
        r"binary.h5: expected two class_names, found \[3, 4\]",
    ),
    "a hole": (lambda f: declare(f, "masks", 12, written=1), "masks.h5.*all of .*some never writt"),
    "a file of nothing": (lambda f: declare(f, "images", 10**9, written=0), "some never written"),
    "one great hole": (
        lambda f: declare(f, "bboxes", 10**9, chunks=None),
        r"bboxes.h5: expected values for all of \(1000000000, 4\), found some never written",
    ),
    "values elsewhere": (virtual, "masks.h5: expected values for all .* found some never written"),
    "no values": (no_values, "binary.h5: expected real numbers, found shape None of dtype float32"),
}


@pytest.mark.parametrize("case", COMPLAINTS)
@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_complaints_name_the_file(data_folder, case, memory_limit):
    change, message = COMPLAINTS[case]
    change(data_folder)
    with pytest.raises(DataError, match=message) as error:
        H5Dataset("train", data_folder, memory_limit)
    assert "\n" not in str(error.value)


def break_a_chunk(folder, split, sample):
    """Zero the compressed bytes of one image, which the headers do not tell."""
    images = draw(COUNTS[split], 0)[0]
    rewrite(folder, "images", images, split=split, chunks=(1, 32, 32, 3), compression="gzip")
    path = folder / split / "images.h5"
    with h5py.File(path) as file:
        chunk = file["images"].id.get_chunk_info(sample)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_that_shows_when_read_is_one_line(data_folder, num_workers):
    break_a_chunk(data_folder, "train", sample=7)
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        H5Dataset("train", data_folder)
    dataset = H5Dataset("train", data_folder, memory_limit=0)
    batches = [[0, 1], [6, 7], [8, 9]]
    options = {"num_workers": num_workers, "collate_fn": first}
    with pytest.raises(DataError) as error:
        list(DataLoader(dataset, batch_sampler=batches, **options))
    assert str(error.value).startswith(f"{data_folder}/train/images.h5: not a readable HDF5 file (")
    assert "\n" not in str(error.value)


def test_another_file_in_the_place_of_the_first_is_refused(data_folder):
    dataset = H5Dataset("train", data_folder, memory_limit=0)
    rewrite(data_folder, "masks", np.zeros((12, 64, 64)))
    with pytest.raises(
        DataError, match=r"masks.h5: expected the file of the start, \(12, 32, 32, 1"
    ):
        dataset[0]


WRITER = """
import h5py, sys
for path, version in zip(sys.argv[1:], ("earliest", "latest")):
    file = h5py.File(path, "w", libver=version)
    file["binary"] = [0, 1] * 6
    file.flush()
    globals()[version] = file
print("open", flush=True)
sys.stdin.read()
"""


def test_a_file_that_another_process_writes_is_read_or_refused(data_folder):
    shutil.copytree(data_folder / "train", data_folder / "val", dirs_exist_ok=True)
    paths = [data_folder / split / "binary.h5" for split in ("train", "val")]
    command = [sys.executable, "-c", WRITER, *map(str, paths)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"open\n"
        assert H5Dataset("train", data_folder).binary.tolist() == [0, 1] * 6
        with pytest.raises(DataError, match=r"val/binary.h5: not a readable.*open for write"):
            H5Dataset("val", data_folder)  # this format knows that it is not complete
        writer.stdin.close()
    assert len(H5Dataset("val", data_folder)) == 12


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_warnings(data_folder, memory_limit):
    def lines():
        splits = {split: H5Dataset(split, data_folder, memory_limit) for split in COUNTS}
        return list(warnings(splits))

    assert lines() == []
    images = draw(COUNTS["val"], 1)[0]
    images[3:] = draw(COUNTS["train"], 0)[0][7:9]
    rewrite(data_folder, "images", images.astype(np.float64), split="val")
    labels, names = [-1, 1, np.nan, 1, 1, 1, 1], ["cat", "dog"]
    rewrite(data_folder, "binary", labels, split="test", attributes={"class_names": names})
    shared, single = lines()
    assert shared == (
        f"{data_folder}/val/images.h5: expected images of this split alone, "
        "found 2 that another has too, the first: sample 3 of val is sample 7 of train"
    )
    assert single == f"{data_folder}/test/binary.h5: expected both classes, found only 'dog'"


NO_CHANGE = {
    "degrees": 0.0,
    "scale": (1.0, 1.0),
    "stretch": 1.0,
    "shift": 0.0,
    "colour": 0.0,
    "erase": 0.0,
}


def augmented(dataset, **settings):
    augment = Augment(**NO_CHANGE | settings)
    images, targets = dataset.batch(range(8))
    generator = torch.Generator().manual_seed(3)
    return augment, images, targets, augment(images, targets, generator)


def test_augmentation_switched_off_only_flips(shared_data):
    _, images, targets, (moved, moved_targets) = augmented(H5Dataset("train", shared_data))
    flips = 0
    for i in range(8):
        flipped = not torch.allclose(moved[i], images[i].float(), atol=1e-3)
        flips += flipped
        image = v2.functional.horizontal_flip(images[i]) if flipped else images[i]
        mask = targets["seg"][i].flip(-1) if flipped else targets["seg"][i]
        x0, y0, x1, y1 = targets["bbox"][i].tolist()
        box = [1 - x1, y0, 1 - x0, y1] if flipped else [x0, y0, x1, y1]
        torch.testing.assert_close(moved[i], image.float(), atol=1e-3, rtol=0)
        assert torch.equal(moved_targets["seg"][i], mask)
        assert moved_targets["bbox"][i].tolist() == pytest.approx(box, abs=1e-6)
    assert 0 < flips < 8


def test_geometry_agrees_with_torchvision(shared_data):
    """Our map, taken apart into torchvision's angle, scale and shift, gives the same picture."""
    settings = {"degrees": 20.0, "scale": (0.8, 1.2), "shift": 0.1}
    augment, images, _, (moved, _) = augmented(H5Dataset("train", shared_data), **settings)
    maps = augment.draw_affine(8, 1.0, torch.Generator().manual_seed(3))
    for i in range(8):
        flip = torch.linalg.det(maps[i, :2, :2]) < 0
        image = v2.functional.horizontal_flip(images[i]) if flip else images[i]
        expected = v2.functional.affine(
            image.float(),
            angle=math.degrees(math.atan2(maps[i, 1, 0] * (-1 if flip else 1), maps[i, 1, 1])),
            scale=float(maps[i, :2, :2].det().abs().sqrt()),
            translate=(maps[i, :2, 2] * 16).tolist(),
            shear=[0.0, 0.0],
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=[128.0] * 3,
        )
        inner = (slice(None), slice(4, -4), slice(4, -4))
        assert (moved[i] - expected)[inner].abs().median() < 0.5


def test_colour_agrees_with_torchvision(shared_data):
    augment, images, _, _ = augmented(H5Dataset("train", shared_data), colour=0.3)
    colour, brightness = augment.draw_colour(8, torch.Generator().manual_seed(3))
    assert brightness.abs().max() <= 0.3 * 128
    grey = torch.full((3, 1), 50.0)
    contrast = colour[0] @ grey / 50  # (3, 1), with the gains of the channels
    assert ((contrast >= 0.7 * 0.85) & (contrast <= 1.3 * 1.15)).all()
    assert contrast.std() > 0.01
    saturation = (
        1 + (torch.rand(6, 8, generator=torch.Generator().manual_seed(3))[1, 0] * 2 - 1) * 0.3
    )
    pixels = images[0].float()
    ours = ((colour[0] / contrast) @ pixels.flatten(1)).view_as(pixels)
    oracle = v2.functional.adjust_saturation(pixels / 255, float(saturation)) * 255
    torch.testing.assert_close(ours.clamp(0, 255), oracle, atol=0.2, rtol=0)


def test_erased_is_a_grey_rectangle_of_a_tenth_of_the_area(shared_data):
    *_, (moved, _) = augmented(H5Dataset("train", shared_data), erase=0.5)
    *_, (kept, _) = augmented(H5Dataset("train", shared_data))
    changed = (moved != kept).any(1)  # (B, H, W)
    assert 0 < changed.any((1, 2)).sum() < 8
    assert (moved.permute(0, 2, 3, 1)[changed] == 128).all()
    for mask in changed[changed.any((1, 2))]:
        ys, xs = mask.nonzero(as_tuple=True)
        rectangle = (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
        assert rectangle == mask.sum()
        assert rectangle <= 0.15 * 32 * 32  # of a tenth, by whole pixels; less at the frame


def test_stretch_is_bounded(shared_data):
    augment = augmented(H5Dataset("train", shared_data), stretch=1.5)[0]
    maps = augment.draw_affine(200, 1.0, torch.Generator().manual_seed(0))
    ratio = maps[:, 0, 0].abs() / maps[:, 1, 1]
    assert 1 / 1.5 <= ratio.min() < 0.75 and 1.33 < ratio.max() <= 1.5
    torch.testing.assert_close(maps[:, :2, :2].det().abs(), torch.ones(200))


def test_same_generator_same_batch(shared_data):
    settings = {"degrees": 20.0, "scale": (0.8, 1.2), "shift": 0.1, "colour": 0.4, "erase": 0.5}
    first_run, second_run = (
        augmented(H5Dataset("train", shared_data), **settings)[3] for _ in "ab"
    )
    assert torch.equal(first_run[0], second_run[0])
    assert first_run[0].min() >= 0 and first_run[0].max() <= 255
    assert set(first_run[1]["seg"].unique().tolist()) == {0, 1}


def test_images_and_masks_are_resized_together(shared_data):
    augment, images, targets, _ = augmented(H5Dataset("train", shared_data))
    generator = torch.Generator().manual_seed(3)
    moved, moved_targets = augment(images, targets, generator, side=(16, 16))
    assert moved.shape == (8, 3, 16, 16) and moved_targets["seg"].shape == (8, 1, 16, 16)
    means = targets["seg"].float().mean((1, 2, 3)), moved_targets["seg"].float().mean((1, 2, 3))
    torch.testing.assert_close(*means, atol=0.03, rtol=0)
    means = images.float().mean((1, 2, 3)), moved.mean((1, 2, 3))
    torch.testing.assert_close(*means, atol=3.0, rtol=0)


def test_boxes_by_hand():
    boxes = torch.tensor([[0.25, 0.5, 0.5, 0.75]]).repeat(4, 1)
    maps = torch.eye(3).repeat(4, 1, 1)
    maps[1, :2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # a quarter turn: (x, y) -> (-y, x)
    maps[2, 0, 2] = -1.25  # 0.625 of the width to the left: out of the frame
    maps[3, 0, 2] = -0.6  # 0.3 to the left: 80 % of the width stays
    moved = move_boxes(boxes, maps, min_visible=0.7)
    assert moved[0].tolist() == pytest.approx([0.25, 0.5, 0.5, 0.75])
    assert moved[1].tolist() == pytest.approx([0.25, 0.25, 0.5, 0.5])
    assert moved[2].isnan().all()
    assert moved[3].tolist() == pytest.approx([0.0, 0.5, 0.2, 0.75], abs=1e-6)
    assert move_boxes(boxes[3:], maps[3:], min_visible=0.9).isnan().all()


def test_a_box_follows_its_pixels(shared_data):
    """The box of a mapped disc agrees with torchvision's box of its mapped mask."""
    dataset = H5Dataset("train", shared_data)
    images, targets = dataset.batch(range(8))
    boxes = [
        torch.cat([m.nonzero().flip(1).min(0)[0], m.nonzero().flip(1).max(0)[0] + 1])
        for m in targets["seg"][:, 0]
    ]
    targets["bbox"] = torch.stack(boxes) / 32
    augment = Augment(**NO_CHANGE | {"degrees": 30.0, "scale": (0.7, 1.0), "stretch": 1.2})
    _, moved = augment(images, targets, torch.Generator().manual_seed(0))
    for mask, box in zip(moved["seg"], moved["bbox"], strict=True):
        ys, xs = mask[0].nonzero(as_tuple=True)
        found = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 32
        torch.testing.assert_close(box, found, atol=0.06, rtol=0)


def test_the_grid_is_torchs():
    maps = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(maps, (5, 1, 6, 8), align_corners=False)
    torch.testing.assert_close(affine_grid(maps, 6, 8), expected)


def test_a_rotation_of_an_oblong_image_stays_a_rotation():
    augment = Augment(**NO_CHANGE | {"degrees": 30.0})
    maps = augment.draw_affine(8, 128 / 64, torch.Generator().manual_seed(0))
    pixels = torch.diag(torch.tensor([64.0, 32.0]))  # [-1, 1] -> pixels of 128 x 64
    linear = pixels @ maps[:, :2, :2] @ torch.linalg.inv(pixels)
    torch.testing.assert_close(linear @ linear.mT, torch.eye(2).expand(8, 2, 2))


def test_a_file_that_cannot_be_written_is_named_in_one_line(tmp_path):
    images, masks, boxes, labels = draw(2, 0)
    arguments = (images, masks, boxes, labels, ("a", "b"), {})
    write_split(tmp_path, *arguments)
    with pytest.raises(DataError, match=r"images\.h5: cannot be written \(") as failed:
        write_split(tmp_path, *arguments)  # never over another one
    assert "\n" not in str(failed.value)
