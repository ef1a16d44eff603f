"""Data that are damaged or wrong: every line that H5Dataset can refuse them with."""

import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import KINDS, added, damaged, drawn, named, put, rewrite
from torch.utils.data import DataLoader

from dataload import DataError, H5Dataset

NAN, BIG = np.nan, 1e39  # too big for 32 bits


def truncate(folder):
    path = folder / "train" / "images.h5"
    os.truncate(path, path.stat().st_size // 2)


def declare(name, count, written=0, chunks=True):
    """A file that promises `count` samples and holds the first `written`, one to a chunk."""
    row = {"images": (32, 32, 3), "masks": (32, 32, 1), "bboxes": (4,)}[name]

    def apply(folder):
        with h5py.File(folder / "train" / f"{name}.h5", "w") as file:
            size = (1, *row) if chunks else None
            dataset = file.create_dataset(name, (count, *row), dtype="f8", chunks=size)
            for sample in range(written):
                dataset[sample] = 1

    return apply


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


def no_values(folder):
    with h5py.File(folder / "train" / "binary.h5", "w") as file:
        file["binary"] = h5py.Empty("f4")


def two_keys(folder):
    with h5py.File(folder / "train" / "masks.h5", "w") as file:
        file["a"], file["b"] = [1], [2]


NAMES = "binary: expected two class_names, found"
COMPLAINTS = {  # (change, "file: what follows its path")
    "no images": (lambda f: (f / "train/images.h5").unlink(), "images: no such file"),
    "not hdf5": (lambda f: (f / "train/binary.h5").write_text("x"), "binary: not a readable HDF5"),
    "truncated": (truncate, "images: not a readable HDF5 file"),
    "two keys": (two_keys, "masks: expected a dataset 'masks', found ['a', 'b']"),
    "strings": (lambda f: rewrite(f, "binary", ["a"] * 12), "binary: expected real numbers, found"),
    "no values": (no_values, "binary: expected real numbers, found shape None of dtype float32"),
    # shapes
    "boxes": (damaged("bboxes", lambda a: a[:5]), "bboxes: expected (12, 4), found (5, 4)"),
    "labels": (damaged("binary", lambda a: a[:5]), "binary: expected (12, 1), found (5,)"),
    "empty": (
        damaged("images", lambda a: a[:0]),
        "images: expected (N, H, W, 3) with N, H and W above 0, found (0, 32, 32, 3)",
    ),
    "grey": (damaged("images", lambda a: a[..., :1]), "images: expected (N, H, W, 3) with"),
    "rank": (damaged("images", lambda a: a[0]), "images: expected (N, H, W, 3) with"),
    "mask side": (
        damaged("masks", lambda a: a[:, :16]),
        "masks: expected one mask for each image, (12, 32, 32, 1), found (12, 16, 32, 1)",
    ),
    "few classes": (added("border", (1, 32, 32)), "border: expected one mask for each image"),
    "logits": (added("border", (12, 32, 32, 3)), "border: expected one mask for each image"),
    "few depths": (
        added("depth", (11, 32, 32)), "depth: expected (12, 32, 32, 1), found (11, 32, 32)",
    ),
    "flat normals": (
        added("normals", (12, 32, 32)), "normals: expected (12, 32, 32, 3), found (12, 32, 32)",
    ),
    "few breeds": (added("breeds", 1), "breeds: expected (12, 1), found (1,)"),
    "two ages": (added("age", (12, 2)), "age: expected (12, 1), found (12, 2)"),
    "flat pose": (added("pose", 12), "pose: expected (12, 4), found (12,)"),
    # values
    "nan": (
        damaged("images", put((7, 3, 2, 1), NAN)),
        "images: expected values 0-255, found nan in sample 7",
    ),
    "too big": (damaged("images", put(8, 256)), "images: expected values 0-255, found 256.0 in"),
    "negative": (damaged("images", put(0, -1)), "images: expected values 0-255, found -1.0 in"),
    "mask of 2": (
        damaged("masks", put(4, 2)), "masks: expected 0, 1 or 255, found 2.0 in sample 4",
    ),
    "soft mask": (damaged("masks", put(4, 0.4)), "masks: expected 0, 1 or 255, found 0.4 in sam"),
    "class 3 of 3": (
        added("border", (12, 32, 32), (4, 0, 0), 3, "u1"),
        "border: expected 0-2 or 255, found 3 in sample 4",
    ),
    "half a class": (
        added("border", (12, 32, 32), (11, 0, 0), 1.5), "border: expected 0-2 or 255, found 1.5 in",
    ),
    "endless depth": (
        added("depth", (12, 32, 32, 1), (3, 0, 0), np.inf),
        "depth: expected numbers of 32 bits or NaN, found inf in sample 3",
    ),
    "scaled over the top": (
        added("normals", (12, 32, 32, 3), (9, 0, 0, 2), 1e38, scale_factor=10),
        "normals: expected numbers of 32 bits or NaN, found 1e+38 in sample 9",
    ),
    "scale of two": (
        added("depth", (12, 32, 32), scale_factor=[1, 2]),
        "depth: expected a number as scale_factor, found [1 2]",
    ),
    "word as fill": (
        added("depth", (12, 32, 32), _FillValue="none"),
        "depth: expected a number as _FillValue, found none",
    ),
    "endless age": (added("age", 12, 3, BIG), "age: expected numbers of 32 bits or NaN, found 1e"),
    "inverted": (
        damaged("bboxes", put(5, [9, 1, 3, 8])),
        "bboxes: expected xmin < xmax and ymin < ymax inside 32 x 32, or four NaN, found "
        "[9.0, 1.0, 3.0, 8.0] in sample 5",
    ),
    "no area": (damaged("bboxes", put(5, [3, 1, 3, 8])), "bboxes: expected xmin < xmax and"),
    "no area in 32 bits": (
        damaged("bboxes", put(5, [3, 1, 3 + 1e-9, 8])), "bboxes: expected xmin < xmax and",
    ),
    "on the edge": (
        damaged("bboxes", put(5, [32, 1, 32.0005, 8])), "bboxes: expected xmin < xmax and",
    ),
    "outside": (damaged("bboxes", put(5, [1, 1, 33, 8])), "bboxes: expected xmin < xmax and"),
    "half nan": (damaged("bboxes", put((5, 0), NAN)), "bboxes: expected xmin < xmax and"),
    "class 2 of 2": (
        damaged("binary", put(3, 2)), "binary: expected 0, 1, -1 or NaN, found 2.0 in sample 3",
    ),
    "class 3 of 3 labels": (
        added("breeds", 12, 1, 3), "breeds: expected 0-2, -1 or NaN, found 3.0 in sample 1",
    ),
    "three names": (named("a", "b", "c"), f"{NAMES} ['a', 'b', 'c']"),
    "numbers for names": (named(3, 4), f"{NAMES} [3, 4]"),
    "a word for names": (
        added("binary", 12, class_names="ab"), f"{NAMES} ['ab']",
    ),
    "two names of three": (
        added("border", (12, 32, 32), class_names=["a", "b"]),
        "border: expected 3 class_names, found ['a', 'b']",
    ),
    # storage
    "a hole": (declare("masks", 12, 1), "masks: expected values for all of (12, 32, 32, 1), found"),
    "a file of nothing": (declare("images", 10**9), "images: expected values for all of (1000000"),
    "one great hole": (
        declare("bboxes", 10**9, chunks=False),
        "bboxes: expected values for all of (1000000000, 4), found some never written",
    ),
    "values elsewhere": (
        virtual,
        "masks: expected the values in the file itself, found a virtual dataset of values in 'gone",
    ),
    "missing filter": (
        blosc, "images: expected a filter of HDF5 (pip install hdf5plugin), found number 32999",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPLAINTS)
@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_a_complaint_is_one_line_that_names_the_file(data_folder, case, memory_limit):
    change, message = COMPLAINTS[case]
    change(data_folder)
    file, _, words = message.partition(": ")
    with pytest.raises(DataError) as error:
        H5Dataset("train", data_folder, KINDS, memory_limit)
    assert str(error.value).startswith(f"{data_folder}/train/{file}.h5: {words}")
    assert "\n" not in str(error.value)


def test_a_split_without_a_folder(data_folder):
    with pytest.raises(DataError, match="data/tests: no such folder; expected the split 'tests'"):
        H5Dataset("tests", data_folder)


def with_heap(folder, places=()):
    """A file whose class names lie in a heap of strings, with other bytes at places in it."""
    named("blue", "red")(folder)
    path = folder / "train" / "binary.h5"
    data = bytearray(path.read_bytes())
    start = data.index(b"GCOL")
    for place, value in places:
        data[start + place] = value
    path.write_bytes(data)


@pytest.mark.parametrize("reserved", [0, 7])  # bytes that HDF5 does not look at
def test_a_damaged_heap_is_refused_and_no_endless_loop(data_folder, reserved):
    with_heap(data_folder)
    assert H5Dataset("train", data_folder).class_names["bin"] == ("blue", "red")
    with_heap(data_folder, [(5, reserved), (48, 0), (56, 0)])  # a free rest of no bytes
    with pytest.raises(DataError, match=r"binary\.h5: expected a sound heap of strings, found a"):
        H5Dataset("train", data_folder)


def test_letters_in_a_picture_are_no_heap(data_folder):
    """All arrays may lie in one file, so there are pixels beside the labels."""
    arrays = drawn()
    letters = np.frombuffer(b"GCOL\0" * 4 + bytes(4), np.uint8)
    arrays["images"][0, 0, :8] = letters.reshape(8, 3)
    for name in arrays:
        (data_folder / "train" / f"{name}.h5").unlink()
        (data_folder / "train" / f"{name}.h5").symlink_to(data_folder / "all.h5")
    with h5py.File(data_folder / "all.h5", "w") as file:
        file.update(arrays)
        file["binary"].attrs["class_names"] = ["blue", "red"]
    assert H5Dataset("train", data_folder).class_names["bin"] == ("blue", "red")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damage_that_shows_when_read_is_one_line(data_folder, num_workers):
    """The compressed bytes of one image are zero, which the headers do not tell."""
    rewrite(data_folder, "images", drawn()["images"], chunks=(1, 32, 32, 3), compression="gzip")
    path = data_folder / "train" / "images.h5"
    with h5py.File(path) as file:
        chunk = file["images"].id.get_chunk_info(7)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        H5Dataset("train", data_folder)
    dataset = H5Dataset("train", data_folder, memory_limit=0)
    options = {"num_workers": num_workers, "batch_size": None}
    with pytest.raises(DataError) as error:
        list(DataLoader(dataset, sampler=[[0, 1], [6, 7], [8, 9]], **options))
    assert str(error.value).startswith(f"{path}: not a readable HDF5 file (")
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
        _, targets = H5Dataset("train", data_folder)[range(12)]
        assert targets["bin"].tolist() == [0, 1] * 6
        with pytest.raises(DataError, match=r"val/binary.h5: not a readable.*open for write"):
            H5Dataset("val", data_folder)  # this format knows that it is not complete
        writer.stdin.close()
    assert len(H5Dataset("val", data_folder)) == 12
