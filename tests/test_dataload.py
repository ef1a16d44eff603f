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
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset, random_split
from torchvision.transforms import v2

from dataload import (
    Augment,
    DataError,
    H5Dataset,
    affine_grid,
    check_splits,
    move_boxes,
    near_duplicates,
    thumbnails,
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
    images, targets = dataset[[4, 0, 9]]
    assert images.is_contiguous(memory_format=torch.channels_last)
    for row, index in enumerate([4, 0, 9]):
        image, target = H5Dataset("train", shared_data)[index]
        assert torch.equal(images[row], image)
        assert all(torch.equal(targets[task][row], target[task]) for task in target)


WRAPPED = {
    "plain": lambda dataset: dataset,
    "subset": lambda dataset: Subset(dataset, range(12)),
    "concatenated": lambda dataset: ConcatDataset(
        [Subset(dataset, range(5)), Subset(dataset, range(5, 12))]
    ),
    "split": lambda dataset: ConcatDataset(
        random_split(dataset, [7, 5], torch.Generator().manual_seed(0))
    ),
}


@pytest.mark.parametrize("memory_limit", [0, 2**30])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_a_plain_loader_works_on_it_and_on_what_wraps_it(shared_data, wrapper, memory_limit):
    wrapped = WRAPPED[wrapper](H5Dataset("train", shared_data, memory_limit))
    batches = list(DataLoader(wrapped, batch_size=8))
    assert [images.shape for images, _ in batches] == [(8, 3, 32, 32), (4, 3, 32, 32)]
    images = torch.cat([images for images, _ in batches]).permute(0, 2, 3, 1)
    labels = torch.cat([targets["bin"] for _, targets in batches])
    boxes = torch.cat([targets["bbox"] for _, targets in batches])
    drawn = draw(COUNTS["train"], 0)
    pixels = torch.from_numpy(drawn[0])
    order = [int((pixels == image).all((1, 2, 3)).nonzero()) for image in images]
    assert sorted(order) == list(range(12))
    assert (order == list(range(12))) == (wrapper != "split")
    assert labels.tolist() == drawn[3][order].tolist()
    torch.testing.assert_close(boxes, torch.from_numpy(drawn[2][order] / 32).float())


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_numbers_that_are_no_samples(shared_data, memory_limit):
    dataset = H5Dataset("train", shared_data, memory_limit)
    for wrong in (12, -13, [3, 12], [0, -13], torch.tensor([12]), []):
        with pytest.raises(IndexError):
            dataset[wrong]
    for wrong in (1.0, [0.5], "a", None):
        with pytest.raises(TypeError):
            dataset[wrong]
    for last in (-1, 11, np.int64(-1), torch.tensor(11), [-1], np.array([11]), torch.tensor([-1])):
        image = dataset[last][0]
        assert torch.equal(image.view(3, 32, 32), dataset[11][0])


def test_a_full_memory_is_not_the_files_fault(shared_data, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(np, "concatenate", fail)
    with pytest.raises(MemoryError):
        H5Dataset("train", shared_data, memory_limit=0)[0]


def test_a_split_moves_to_a_device(shared_data, data_folder):
    breeds(data_folder, [3] * 12)
    dataset = H5Dataset("train", data_folder)
    assert dataset.to("meta") is dataset
    images, targets = dataset[[0, 1]]
    assert images.shape == (2, 3, 32, 32) and images.device.type == "meta"
    assert {target.device.type for target in targets.values()} == {"meta"}
    assert dataset.known["seg"].device.type == "cpu"
    on_disk = H5Dataset("train", shared_data, memory_limit=0).to("meta")
    assert on_disk[[0]][0].device.type == "cpu"


def test_breeds_are_an_optional_target(data_folder, shared_data):
    numbers = [0, 36, -1, np.nan] + [7] * 8
    breeds(data_folder, np.array(numbers)[:, None])
    dataset = H5Dataset("train", data_folder)
    breed = dataset[[0, 1, 2, 3]][1]["breed"]
    assert breed.dtype == torch.int64 and breed.tolist() == [0, 36, -1, -1]
    assert dataset[1][1]["breed"].shape == () and dataset[1][1]["breed"] == 36
    assert dataset.known["breed"].tolist() == [True, True, False, False] + [True] * 8
    plain = H5Dataset("train", shared_data)
    assert "breed" not in plain[0][1] and "breed" not in plain.known


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (np.arange(12, dtype=np.uint16) * 3, list(range(0, 36, 3))),
        (np.arange(11), None),
        (np.arange(12.0), None),
        ("lines", None),
        (None, None),
    ],
)
def test_source_lines(data_folder, lines, expected):
    with h5py.File(data_folder / "train" / "images.h5", "r+") as file:
        if lines is not None:
            file.attrs["source_lines"] = lines
    assert H5Dataset("train", data_folder).source_lines == expected


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same_from_disk(shared_data, context):
    dataset = H5Dataset("train", shared_data, memory_limit=0)
    dataset[0]  # opens and closes the files in this process first
    batches = [[0, 1, 2], [3, 4, 5], [11, 10, 9]]
    options = {"num_workers": 2, "multiprocessing_context": multiprocessing.get_context(context)}
    loader = DataLoader(dataset, sampler=batches, batch_size=None, **options)
    for indices, (images, targets) in zip(batches, loader, strict=True):
        assert torch.equal(images, dataset[indices][0])
        assert torch.equal(targets["bbox"], dataset[indices][1]["bbox"])


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
    _, targets = H5Dataset("train", data_folder)[range(4)]
    assert targets["bbox"].isnan().all(1).tolist() == [False, False, True, False]
    assert targets["bin"].tolist() == [-1, -1, 0, 1]


@pytest.mark.parametrize("memory_limit", [0, 2**30])
@pytest.mark.parametrize(("dtype", "unknown"), [("u1", 255), ("f4", 255), ("f8", np.nan)])
def test_unknown_pixels(data_folder, dtype, unknown, memory_limit):
    masks = draw(COUNTS["train"], 0)[1].astype(dtype)
    expected = masks[..., 0].astype(np.uint8)
    for where in (1, (slice(4, 6), 3), (7, 0, 0)):  # a whole mask, a row of two, a pixel
        masks[where], expected[where] = unknown, 255
    rewrite(data_folder, "masks", masks)
    dataset = H5Dataset("train", data_folder, memory_limit)
    assert np.array_equal(dataset[range(12)][1]["seg"][:, 0].numpy(), expected)
    assert dataset.known["seg"].tolist() == [i != 1 for i in range(12)]
    assert dataset.known["bbox"].all() and dataset.known["bin"].all()


def test_known(data_folder):
    _, _, boxes, labels = draw(COUNTS["train"], 0)
    boxes[2], labels = np.nan, labels.astype(float)
    labels[:2] = -1, np.nan
    rewrite(data_folder, "bboxes", boxes)
    rewrite(data_folder, "binary", labels)
    known = H5Dataset("train", data_folder).known
    assert known["bbox"].tolist() == [i != 2 for i in range(12)]
    assert known["bin"].tolist() == [i > 1 for i in range(12)]


def test_written_splits_are_read_as_they_were(tmp_path):
    images, masks, boxes, labels = draw(3, 0)
    masks[1], masks[2, 0] = 255, 255
    names = ("Kätzchen", "犬")
    lines = {"source_lines": np.arange(3)}
    write_split(tmp_path / "train", images, masks, boxes, labels, names, lines, breeds=[5, -1, 36])
    dataset = H5Dataset("train", tmp_path)
    assert torch.equal(dataset.masks, torch.from_numpy(masks[..., 0]))
    assert dataset.class_names == names and dataset.source_lines == [0, 1, 2]
    assert dataset.breeds.tolist() == [5, -1, 36]
    with h5py.File(tmp_path / "train" / "binary.h5") as file:  # no heap that could be damaged
        assert file["binary"].attrs.get_id("class_names").dtype.kind == "S"


CHANGES = {
    "pixel": ("images", (11, 31, 31, 2), 7),
    "mask": ("masks", (6, 0, 0, 0), 255),
    "box": ("bboxes", (5, 0), 0.25),
    "no box": ("bboxes", 5, np.nan),
    "label": ("binary", 9, 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_fingerprint_sees_every_value(data_folder, change):
    before = H5Dataset("train", data_folder).fingerprint()
    assert before.startswith("12 samples of checksum ")
    assert H5Dataset("train", data_folder, memory_limit=0).fingerprint() == before
    name, position, value = CHANGES[change]
    arrays = dict(zip(("images", "masks", "bboxes", "binary"), draw(12, 0), strict=True))
    array = arrays[name].astype(np.float64)
    rewrite(data_folder, name, array)
    assert H5Dataset("train", data_folder).fingerprint() == before  # whatever the dtype
    array[position] = value
    rewrite(data_folder, name, array)
    assert H5Dataset("train", data_folder).fingerprint() != before
    assert H5Dataset("train", data_folder, memory_limit=0).fingerprint() != before


def test_a_fingerprint_covers_the_breeds(data_folder):
    prints = {H5Dataset("train", data_folder).fingerprint()}
    for last in (1, 2):
        breeds(data_folder, [0] * 11 + [last])
        prints.add(H5Dataset("train", data_folder).fingerprint())
    assert len(prints) == 3


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


def blosc(folder):
    """A chunk that says it went through a filter of which HDF5 has no copy."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((12, 32, 32, 3))
    properties.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, (2, 2, 1))
    with h5py.File(folder / "train" / "images.h5", "w") as file:
        space = h5py.h5s.create_simple((12, 32, 32, 3))
        dataset = h5py.h5d.create(file.id, b"images", h5py.h5t.NATIVE_UINT8, space, properties)
        dataset.write_direct_chunk((0, 0, 0, 0), b"compressed")


def breeds(folder, numbers):
    rewrite(folder, "breeds", numbers)


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
    "negative": (damaged("images", put(0, -1)), "images.h5.* found -1.0 in sample 0"),
    "mask of 2": (
        damaged("masks", put(4, 2)),
        "masks.h5: expected 0, 1 or 255, found 2.0 in sample 4",
    ),
    "soft mask": (damaged("masks", put(4, 0.4)), "masks.h5: expected 0, 1 or 255, found 0.4 in"),
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
    "values elsewhere": (
        virtual,
        "masks.h5: expected the values in the file itself, found a virtual .* in 'gone.h5'",
    ),
    "missing filter": (
        blosc,
        r"images.h5: expected a filter of HDF5 \(pip install hdf5plugin\), found number 32999",
    ),
    "breed 37": (
        lambda f: breeds(f, [37] + [-1] * 11),
        "breeds.h5: expected 0-36, -1 or NaN, found 37.0 in sample 0",
    ),
    "breeds too few": (lambda f: breeds(f, [1]), r"breeds.h5: expected \(12, 1\), found \(1,\)"),
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


def with_heap(folder, places=()):
    """A file whose class names lie in a heap of strings, with other bytes at places in it."""
    with h5py.File(folder / "train" / "binary.h5", "w") as file:
        file["binary"] = draw(12, 0)[3]
        file["binary"].attrs["class_names"] = ["blue", "red"]
    path = folder / "train" / "binary.h5"
    data = bytearray(path.read_bytes())
    start = data.index(b"GCOL")
    for place, value in places:
        data[start + place] = value
    path.write_bytes(data)


@pytest.mark.parametrize("reserved", [0, 7])  # bytes that HDF5 does not look at
def test_a_damaged_heap_is_refused_and_no_endless_loop(data_folder, reserved):
    with_heap(data_folder)
    assert H5Dataset("train", data_folder).class_names == ("blue", "red")
    with_heap(data_folder, [(5, reserved), (48, 0), (56, 0)])  # a free rest of no bytes
    with pytest.raises(DataError, match=r"binary.h5: expected a sound heap of strings"):
        H5Dataset("train", data_folder)


def test_letters_in_a_picture_are_no_heap(data_folder):
    """All arrays may lie in one file, so there are pixels beside the labels."""
    images, masks, boxes, labels = draw(12, 0)
    images[0, 0, :8] = np.frombuffer(b"GCOL\0" * 4 + bytes(4), np.uint8).reshape(8, 3)
    arrays = {"images": images, "masks": masks, "bboxes": boxes, "binary": labels}
    for name in arrays:
        (data_folder / "train" / f"{name}.h5").unlink()
        (data_folder / "train" / f"{name}.h5").symlink_to(data_folder / "all.h5")
    with h5py.File(data_folder / "all.h5", "w") as file:
        file.update(arrays)
        file["binary"].attrs["class_names"] = ["blue", "red"]
    assert H5Dataset("train", data_folder).class_names == ("blue", "red")


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
    options = {"num_workers": num_workers, "batch_size": None}
    with pytest.raises(DataError) as error:
        list(DataLoader(dataset, sampler=batches, **options))
    assert str(error.value).startswith(f"{data_folder}/train/images.h5: not a readable HDF5 file (")
    assert "\n" not in str(error.value)


def test_another_file_in_the_place_of_the_first_is_refused(data_folder):
    dataset = H5Dataset("train", data_folder, memory_limit=0)
    rewrite(data_folder, "masks", np.zeros((12, 64, 64)))
    with pytest.raises(
        DataError,
        match=r"masks.h5: expected shape \(12, 32, 32, 1\) of dtype uint8 as at the start, found",
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


def opened(folder, memory_limit=2**30):
    return {split: H5Dataset(split, folder, memory_limit) for split in COUNTS}


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_pictures_of_another_split_are_a_warning(data_folder, memory_limit):
    assert list(warnings(opened(data_folder, memory_limit))) == []
    images = draw(COUNTS["val"], 1)[0]
    images[3:] = draw(COUNTS["train"], 0)[0][7:9]
    images[4] = images[4, :, ::-1]  # mirrored
    rewrite(data_folder, "images", images.astype(np.float64), split="val")
    assert list(warnings(opened(data_folder, memory_limit))) == [
        f"{data_folder}/val/images.h5: expected images of this split alone, found 2 that another "
        "split has too, or nearly so: sample 3 of val is sample 7 of train"
    ]


UNLIKELY = {
    "one class": (
        lambda f: rewrite(
            f, "binary", [-1, 1, np.nan] + [1] * 9, attributes={"class_names": ["cat", "dog"]}
        ),
        "binary.h5: expected both classes, found only 'dog'",
    ),
    "floats up to 1": (
        damaged("images", lambda a: a / a.max()),
        "images.h5: expected values 0-255, found none above 1",
    ),
    "integers up to 1": (
        lambda f: rewrite(f, "images", (draw(12, 0)[0] > 90).astype("i2")),
        "images.h5: expected values 0-255, found none above 1",
    ),
    "boxes as fractions": (
        damaged("bboxes", lambda a: a / 32),
        "bboxes.h5: expected boxes in pixels, found none beyond 1",
    ),
    "no boxes": (
        damaged("bboxes", lambda a: a * np.nan),
        "bboxes.h5: expected boxes, found no known one",
    ),
    "no pet": (
        damaged("masks", lambda a: a * 0),
        "masks.h5: expected foreground, found no pixel of value 1",
    ),
    "pet as 255": (
        damaged("masks", lambda a: a * 255),
        "masks.h5: expected foreground, found no pixel of value 1",
    ),
}


@pytest.mark.parametrize("case", UNLIKELY)
def test_what_is_probably_a_mistake_is_a_warning(data_folder, case):
    change, message = UNLIKELY[case]
    change(data_folder)
    assert list(warnings({"train": H5Dataset("train", data_folder)})) == [
        f"{data_folder}/train/{message}"
    ]


def test_splits_that_fit_together(data_folder):
    check_splits(opened(data_folder))


def other_side(folder):
    shutil.rmtree(folder / "val")
    shutil.copytree(folder / "test", folder / "val")
    count = COUNTS["test"]
    rewrite(folder, "images", np.full((count, 32, 64, 3), 9), split="val")
    rewrite(folder, "masks", np.ones((count, 32, 64)), split="val")


def no_masks(split):
    def change(folder):
        rewrite(folder, "masks", np.full((COUNTS[split], 32, 32), 255), split=split)

    return change


TOGETHER = {
    "sides": (
        other_side,
        r"val/images.h5: expected the side of .*/train/images.h5, \(32, 32\), found \(32, 64\)",
    ),
    "names": (
        lambda f: rewrite(
            f, "binary", draw(7, 2)[3], split="test", attributes={"class_names": ["red", "blue"]}
        ),
        "test/binary.h5: expected the class_names of .*/train/binary.h5, "
        r"\('blue', 'red'\), found \('red', 'blue'\)",
    ),
    "breeds in train alone": (
        lambda f: breeds(f, [0] * 12),
        "val/breeds.h5: expected a file like .*/train/breeds.h5, found none",
    ),
    "breeds in val alone": (
        lambda f: rewrite(f, "breeds", [0] * 5, split="val"),
        "train/breeds.h5: expected a file like .*/val/breeds.h5, found none",
    ),
    "no masks to learn from": (
        no_masks("train"),
        "train/masks.h5: expected at least one known target in train, found none",
    ),
    "no masks to test on": (
        no_masks("test"),
        "test/masks.h5: expected at least one known target in test, found none",
    ),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_splits_that_do_not_fit_together(data_folder, case):
    change, message = TOGETHER[case]
    change(data_folder)
    with pytest.raises(DataError, match=message) as error:
        check_splits(opened(data_folder))
    assert "\n" not in str(error.value)


def test_only_the_tasks_asked_for_must_be_known(data_folder):
    no_masks("val")(data_folder)
    check_splits(opened(data_folder), tasks=("bbox", "bin"))
    rewrite(data_folder, "bboxes", np.full((5, 4), np.nan), split="val")
    with pytest.raises(DataError, match=r"val/bboxes.h5: expected at least one known target"):
        check_splits(opened(data_folder), tasks=("bbox", "bin"))


def photo(seed, side=200):
    """Something with large and small structures, as photos have: uint8 (side, side, 3)."""
    random = np.random.default_rng(seed)
    picture = np.zeros((side, side, 3))
    for cells in (3, 6, 12, 24, 50):
        noise = random.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        picture += np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))
    return (picture / 5).astype(np.uint8)


def small(pictures):
    pictures = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]
    return torch.cat([thumbnails(picture[None]) for picture in pictures])


def test_copies_are_near_duplicates_and_other_photos_are_not(tmp_path):
    photos = [Image.fromarray(photo(seed)) for seed in range(300)]
    copies = [
        photos[7].resize((130, 90)),
        photos[290].transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        photos[1].point(lambda value: value * 0.7 + 20),
        photos[3].crop((4, 2, 199, 198)).resize((64, 64)),
    ]
    photos[4].save(tmp_path / "copy.jpg", quality=30)
    copies.append(Image.open(tmp_path / "copy.jpg"))
    found = list(near_duplicates(small(photos), small(copies)))
    assert found == [(1, 2), (3, 3), (4, 4), (7, 0), (290, 1)]
    blank = torch.full((2, 3, 24, 24), 9, dtype=torch.uint8)
    assert list(near_duplicates(blank, blank)) == []


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
    images, targets = dataset[range(8)]
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


MOVES = {"degrees": 40.0, "scale": (0.6, 1.4), "stretch": 1.3, "shift": 0.2}


@pytest.mark.parametrize("side", [None, (24, 48)])
def test_unknown_pixels_move_like_any_others(shared_data, side):
    """Where only the discs are unknown, they arrive where discs of pet would."""
    images, targets = H5Dataset("train", shared_data)[range(8)]
    augment = Augment(**NO_CHANGE | MOVES)

    def moved(masks):
        generator = torch.Generator().manual_seed(1)
        return augment(images, {**targets, "seg": masks}, generator, side)[1]["seg"]

    pet = moved(targets["seg"])
    assert pet.any() and torch.equal(moved(targets["seg"] * 255), pet * 255)


def test_unknown_pixels_are_not_mixed_with_others(shared_data):
    """Half of the pixels are unknown, the others all the same: no third value may come up."""
    images, targets = H5Dataset("train", shared_data)[range(8)]
    mask = torch.zeros(8, 1, 32, 32, dtype=torch.uint8)
    mask[..., 16:] = 255
    augment = Augment(**NO_CHANGE | MOVES)
    targets["seg"] = mask
    for side in (None, (20, 44)):
        _, moved = augment(images, targets, torch.Generator().manual_seed(0), side)
        assert set(moved["seg"].unique().tolist()) == {0, 255}
    targets["seg"] = mask.clamp(min=1)  # and nothing from outside the frame
    augment = Augment(**NO_CHANGE | {"degrees": 20.0, "scale": (1.5, 2.0)})
    _, moved = augment(images, targets, torch.Generator().manual_seed(0))
    assert set(moved["seg"].unique().tolist()) == {1, 255}


def test_outside_the_frame_is_known_background(shared_data):
    images, targets = H5Dataset("train", shared_data)[range(8)]
    targets["seg"] = torch.full((8, 1, 32, 32), 255, dtype=torch.uint8)
    expected = torch.nn.functional.pad(targets["seg"][..., :16, :16], (8, 8, 8, 8))
    targets["seg"][:, :, 0] = 0  # too little to be seen, and yet these images have a mask
    augment = Augment(**NO_CHANGE | {"scale": (0.5, 0.5)})
    _, moved = augment(images, targets, torch.Generator().manual_seed(0))
    assert torch.equal(moved["seg"], expected)


def test_unknown_pixels_are_resized_as_such(shared_data):
    images, targets = H5Dataset("train", shared_data)[range(8)]
    blocks = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 255], (8, 1, 8, 8)))
    blocks = blocks.to(torch.uint8)
    targets["seg"] = blocks.repeat_interleave(4, -1).repeat_interleave(4, -2)
    augment = Augment(**NO_CHANGE)
    _, moved = augment(images, targets, torch.Generator().manual_seed(3), side=(16, 16))
    expected = blocks.repeat_interleave(2, -1).repeat_interleave(2, -2)
    for got, mask in zip(moved["seg"], expected, strict=True):
        assert torch.equal(got, mask) or torch.equal(got, mask.flip(-1))


def test_the_known_part_of_a_pixel_decides(shared_data):
    """Half as wide, every other pixel shows 3/8 pet, 3/8 unknown and 1/4 background."""
    images, targets = H5Dataset("train", shared_data)[range(8)]
    targets["seg"] = torch.tensor([1, 255, 0, 0], dtype=torch.uint8).repeat(8, 1, 32, 8)
    augment = Augment(**NO_CHANGE)
    _, moved = augment(images, targets, torch.Generator().manual_seed(3), side=(16, 16))
    expected = torch.tensor([1, 0], dtype=torch.uint8).repeat(1, 16, 8)
    for mask in moved["seg"]:
        assert torch.equal(mask, expected) or torch.equal(mask, expected.flip(-1))


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
    images, targets = dataset[range(8)]
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
