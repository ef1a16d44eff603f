"""H5Dataset: what it returns."""

import multiprocessing
import pickle

import h5py
import numpy as np
import pytest
import torch
from conftest import COUNTS, drawn, rewrite
from torch.utils.data import ConcatDataset, DataLoader, Subset

from dataload import DataError, H5Dataset, check_splits, likely_mistakes, write_split
from parts.h5array import H5Array
from parts.targets import PETS, Derived, Label, PixelValues

NAN = np.nan
on_disk_or_not = pytest.mark.parametrize("memory_limit", [0, 2**30])


def test_a_sample_has_the_documented_form(shared_data):
    arrays = drawn()
    dataset = H5Dataset("train", shared_data)
    assert len(dataset) == COUNTS["train"] and dataset.side == (32, 32)
    assert dataset.class_names == {
        "seg": ("background", "foreground"),
        "bbox": (),
        "bin": ("blue", "red"),
    }
    assert dataset.complete == {"seg"}
    image, targets = dataset[3]
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(arrays["images"][3]).permute(2, 0, 1))
    assert torch.equal(targets["seg"], torch.from_numpy(arrays["masks"][3]).permute(2, 0, 1))
    assert targets["bbox"].tolist() == pytest.approx((arrays["bboxes"][3] / 32).tolist())
    assert targets["bin"].item() == arrays["binary"][3] == 1
    assert torch.equal(dataset[-1][0], dataset[len(dataset) - 1][0])
    with pytest.raises(IndexError, match="sample 12 of a split of 12"):
        dataset[12]


@on_disk_or_not
def test_a_batch_is_its_samples(shared_data, memory_limit):
    dataset = H5Dataset("train", shared_data, memory_limit=memory_limit)
    assert dataset.in_memory == bool(memory_limit)
    images, targets = dataset[[4, 0, 9]]
    assert images.is_contiguous(memory_format=torch.channels_last)
    for row, index in enumerate([4, 0, 9]):
        image, target = H5Dataset("train", shared_data)[index]
        assert torch.equal(images[row], image)
        assert all(torch.equal(targets[task][row], target[task]) for task in PETS)


ORDER = [7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 6, 4]
WRAPPED = {
    "plain": lambda dataset: dataset,
    "subset": lambda dataset: Subset(dataset, ORDER),  # as random_split makes them
    "concatenated": lambda dataset: ConcatDataset(
        [Subset(dataset, ORDER[:5]), Subset(dataset, ORDER[5:])]
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_a_plain_loader_works_on_it_and_on_what_wraps_it(shared_data, wrapper):
    wrapped = WRAPPED[wrapper](H5Dataset("train", shared_data))
    batches = list(DataLoader(wrapped, batch_size=8))
    assert [images.shape for images, _ in batches] == [(8, 3, 32, 32), (4, 3, 32, 32)]
    images = torch.cat([images for images, _ in batches]).permute(0, 2, 3, 1)
    labels = torch.cat([targets["bin"] for _, targets in batches])
    arrays, order = drawn(), ORDER if wrapper != "plain" else range(12)
    assert np.array_equal(images, arrays["images"][order])
    assert labels.tolist() == arrays["binary"][order].tolist()


@on_disk_or_not
def test_numbers_that_are_no_samples(shared_data, memory_limit):
    dataset = H5Dataset("train", shared_data, memory_limit=memory_limit)
    for wrong in (12, -13, [3, 12], [0, -13], torch.tensor([12]), []):
        with pytest.raises(IndexError):
            dataset[wrong]
    for wrong in (1.0, [0.5], "a", None):
        with pytest.raises(TypeError):
            dataset[wrong]
    for last in (-1, 11, np.int64(-1), torch.tensor(11), [-1], np.array([11]), torch.tensor([-1])):
        image = dataset[last][0]
        assert torch.equal(image.view(3, 32, 32), dataset[11][0])


@on_disk_or_not
def test_what_is_read_in_slabs_is_put_together_in_order(data_folder, monkeypatch, memory_limit):
    """Five masks at a time, the third slab incomplete, and single images."""
    arrays = drawn()
    arrays["masks"][7], arrays["masks"][10, 3, 4] = 255, 255
    arrays["images"][0, 0, 0, 0] = 250  # the largest of all
    for name in ("images", "masks"):
        rewrite(data_folder, name, arrays[name])
    area = Derived(
        lambda seg: seg.float().mean((1, 2, 3)).where((seg < 2).any(3).any(2)[:, 0], NAN),
        seg=PETS["seg"],
    )
    kinds = PETS | {"area": area}
    before = H5Dataset("train", data_folder, kinds)
    monkeypatch.setattr("parts.h5array.SLAB_BYTES", 5 * 32 * 32)
    monkeypatch.setattr("dataload.SLAB", 5)
    dataset = H5Dataset("train", data_folder, kinds, memory_limit)
    images, targets = dataset[range(12)]
    assert np.array_equal(images.permute(0, 2, 3, 1), arrays["images"])
    assert np.array_equal(targets["seg"][:, 0, :, :, None], arrays["masks"])
    for name in ("seg", "area"):
        assert dataset.known[name].tolist() == [i != 7 for i in range(12)]
    assert dataset.complete == set() and dataset.fingerprint() == before.fingerprint()
    assert torch.equal(dataset.summary.thumbnails, before.summary.thumbnails)
    assert dataset.summary.largest == 250
    for name, array in (("seg", arrays["masks"][..., 0]), ("images", arrays["images"])):
        slabs = [*dataset.slabs(name)]
        assert len(slabs) > 2 and np.array_equal(np.concatenate(slabs), array)
    arrays["masks"][8, 1, 2] = 3
    rewrite(data_folder, "masks", arrays["masks"])
    with pytest.raises(DataError, match="found 3 in sample 8"):
        H5Dataset("train", data_folder, kinds, memory_limit)


def test_a_split_is_in_memory_if_its_images_and_masks_fit(shared_data):
    """Four bytes for every pixel."""
    needed = 12 * 32 * 32 * 4
    assert H5Dataset("train", shared_data, memory_limit=needed).in_memory
    assert not H5Dataset("train", shared_data, memory_limit=needed - 1).in_memory
    only = {"bin": PETS["bin"]}
    assert H5Dataset("train", shared_data, only, memory_limit=needed * 3 // 4).in_memory


def test_a_needed_target_must_be_known_somewhere_in_each_split(data_folder):
    names = {"class_names": ["blue", "red"]}
    rewrite(data_folder, "binary", np.full(5, -1), "val", attributes=names)
    data = {split: H5Dataset(split, data_folder) for split in COUNTS}
    check_splits(data, ["seg", "bbox"])
    message = r"val/binary\.h5: expected at least one known target in val, found none$"
    with pytest.raises(DataError, match=message):
        check_splits(data, ["bin"])


@pytest.mark.parametrize("largest", [1, 2])
def test_images_from_0_to_1_are_probably_a_mistake(data_folder, largest):
    rewrite(data_folder, "images", (drawn()["images"] > 9).astype(np.uint8) * largest)
    lines = [*likely_mistakes({"train": H5Dataset("train", data_folder)})]
    said = f"{data_folder}/train/images.h5: expected values 0-255, found none above 1"
    assert lines == [said] * (2 - largest)


@pytest.mark.parametrize(
    ("chunk", "starts"), [(None, [0, 5, 10]), (2, [0, 6]), (3, [0, 6]), (7, [0, 7]), (12, [0])]
)
def test_no_chunk_is_read_for_two_slabs(data_folder, monkeypatch, chunk, starts):
    """Unless it is more than four times as large as a slab should be."""
    options = {"chunks": (chunk, 32, 32, 1)} if chunk else {}
    rewrite(data_folder, "masks", drawn()["masks"], **options)
    array = H5Array(data_folder / "train", "masks")
    monkeypatch.setattr("parts.h5array.SLAB_BYTES", 5 * 32 * 32)
    assert [start for start, _ in array.slabs(lambda values, start: values)] == starts
    monkeypatch.setattr("parts.h5array.SLAB_BYTES", 2 * 32 * 32)
    if chunk == 12:
        found = [start for start, _ in array.slabs(lambda values, start: values)]
        assert found == [0, 2, 4, 6, 8, 10]


def test_a_wrong_value_that_is_read_later_is_named_by_its_sample(data_folder):
    images = drawn()["images"].astype(np.float32)
    rewrite(data_folder, "images", images)
    dataset = H5Dataset("train", data_folder, memory_limit=0)
    images[9, 0, 0, 0] = 300
    rewrite(data_folder, "images", images)
    with pytest.raises(DataError, match=r"expected values 0-255, found 300.0 in sample 9"):
        dataset[[1, 9]]


def test_a_full_memory_is_not_the_files_fault(shared_data, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(np, "concatenate", fail)
    with pytest.raises(MemoryError):
        H5Dataset("train", shared_data, memory_limit=0)[0]


def test_a_split_moves_to_a_device(shared_data):
    dataset = H5Dataset("train", shared_data)
    assert dataset.to("meta") is dataset and dataset.device.type == "meta"
    images, targets = dataset[[0, 1]]
    assert images.shape == (2, 3, 32, 32) and images.device.type == "meta"
    assert {target.device.type for target in targets.values()} == {"meta"}
    assert dataset.known["seg"].device.type == "cpu"
    on_disk = H5Dataset("train", shared_data, memory_limit=0).to("meta")
    assert on_disk[[0]][0].device.type == "cpu"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (np.arange(12, dtype=np.uint16) * 3, list(range(0, 36, 3))),
        (np.arange(11), None),
        (np.arange(12.0), None),
        ("lines", None),
    ],
)
def test_source_lines(data_folder, lines, expected):
    assert H5Dataset("train", data_folder).source_lines is None
    with h5py.File(data_folder / "train" / "images.h5", "r+") as file:
        file.attrs["source_lines"] = lines
    assert H5Dataset("train", data_folder).source_lines == expected


@pytest.mark.parametrize("context", ["fork", None])
def test_workers_read_the_same_from_disk(shared_data, context):
    """Spawned ones get a pickle of the data set, as here the loop without a context."""
    dataset = H5Dataset("train", shared_data, memory_limit=0)
    dataset[0]  # opens and closes the files in this process first
    batches = [[0, 1, 2], [3, 4, 5], [11, 10, 9]]
    if context:
        context = multiprocessing.get_context(context)
        options = {"num_workers": 2, "multiprocessing_context": context}
        found = DataLoader(dataset, sampler=batches, batch_size=None, **options)
    else:
        found = map(pickle.loads(pickle.dumps(dataset)).__getitem__, batches)
    for indices, (images, targets) in zip(batches, found, strict=True):
        assert torch.equal(images, dataset[indices][0])
        assert torch.equal(targets["bbox"], dataset[indices][1]["bbox"])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8, np.int16])
def test_every_real_dtype_reads_alike(data_folder, shared_data, dtype):
    arrays = drawn()
    for name, array in arrays.items():
        stored = array if name == "bboxes" else array.astype(dtype)
        rewrite(data_folder, name, stored, key="anything", chunks=True)
    rewrite(data_folder, "masks", arrays["masks"][..., 0].astype(dtype))
    dataset = H5Dataset("train", data_folder)
    images, targets = dataset[range(12)]
    expected, truth = H5Dataset("train", shared_data)[range(12)]
    assert torch.equal(images, expected)
    assert all(torch.equal(targets[name], truth[name]) for name in PETS)
    assert dataset.class_names["bin"] == ("class 0", "class 1")


def test_written_splits_are_read_as_they_were(tmp_path):
    arrays = {name: array[:3] for name, array in drawn().items()}
    arrays["masks"][1], arrays["masks"][2, 0] = 255, 255
    arrays |= {"breeds": [5, -1, 36], "depth": np.full((3, 32, 32), 1.5)}
    names = {"binary": ("Kätzchen", "犬"), "masks": ("ground", "pet")}
    write_split(tmp_path / "train", arrays, {"source_lines": np.arange(3)}, names)
    kinds = PETS | {"breed": Label("breeds", 37), "depth": PixelValues("depth")}
    dataset = H5Dataset("train", tmp_path, kinds)
    _, targets = dataset[range(3)]
    assert np.array_equal(targets["seg"][:, 0].numpy(), arrays["masks"][..., 0])
    assert targets["breed"].tolist() == [5, -1, 36] and targets["depth"].eq(1.5).all()
    assert dataset.class_names["bin"] == names["binary"]
    assert dataset.class_names["seg"] == names["masks"]
    assert dataset.source_lines == [0, 1, 2]
    with h5py.File(tmp_path / "train" / "binary.h5") as file:  # no heap that could be damaged
        assert file["binary"].attrs.get_id("class_names").dtype.kind == "S"
    with pytest.raises(DataError, match=r"images\.h5: cannot be written \(") as failed:
        write_split(tmp_path / "train", arrays, {}, names)  # never over another one
    assert "\n" not in str(failed.value)


CHANGES = {
    "pixel": ("images", (11, 31, 31, 2), 7),
    "mask": ("masks", (6, 0, 0, 0), 255),
    "box": ("bboxes", (5, 0), 0.25),
    "no box": ("bboxes", 5, NAN),
    "label": ("binary", 9, 0),
    "depth": ("depth", (2, 3, 4), 2.25),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_fingerprint_sees_every_value_of_each_file(data_folder, change):
    derived = Derived(lambda seg: seg.float().mean((1, 2, 3)), seg=PETS["seg"])
    kinds = PETS | {"depth": PixelValues("depth"), "area": derived}
    arrays = drawn() | {"depth": np.where(drawn()["masks"], NAN, 1.5)}
    name, position, value = CHANGES[change]

    def prints(array, dtype=np.float64):
        rewrite(data_folder, name, array.astype(dtype))
        found = [H5Dataset("train", data_folder, kinds, n).fingerprint() for n in (0, 2**30)]
        assert found[0] == found[1]
        return found[0]

    rewrite(data_folder, "depth", arrays["depth"])
    before = prints(arrays[name])
    assert list(before) == ["bboxes", "binary", "depth", "images", "masks"]
    assert all(text.startswith("12 samples of checksum ") for text in before.values())
    assert prints(arrays[name], np.float32) == before  # whatever the dtype
    changed = arrays[name].astype(np.float64)
    changed[position] = value
    after = prints(changed)
    assert [file for file in before if before[file] != after[file]] == [name]
