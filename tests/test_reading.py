"""How each kind of target is read, and what of it is known."""

import numpy as np
import pytest
import torch
from conftest import drawn, rewrite

from dataload import DataError, H5Dataset
from parts.errors import UserError
from parts.h5array import H5Array
from parts.targets import PETS, Box, Derived, Label, PixelClasses, PixelValues, Values, with_sources

NAN = np.nan
on_disk_or_not = pytest.mark.parametrize("memory_limit", [0, 2**30])


def table(rows, **options):
    """Twelve samples: the given ones, then repetitions of the last."""
    array = np.array(rows, **options)
    return np.concatenate([array, np.repeat(array[-1:], 12 - len(array), 0)])


def planes(values, dtype):
    """(12, 32, 32): sample i has the values[i] everywhere, or in the upper and the lower half."""
    halves = [np.broadcast_to(np.atleast_1d(value), (2,)) for value in values]
    array = np.stack([np.repeat(half, 16)[:, None].repeat(32, 1) for half in halves])
    return table(array).astype(dtype)


BOXES = [[8, 16, 16, 32], [NAN] * 4, [-0.0005, 0, 32.0005, 8]]
DEPTHS = [100, (7, 300), 7]  # as stored; times 0.01 m, 7 means unknown
CM = {"scale_factor": np.float32(0.01), "_FillValue": np.uint16(7)}
KINDS = {  # kind, what is stored, its attributes, the first three targets, dtype of the targets
    "label of 3": (Label("x", 3), table([[2.0], [-1], [NAN]]), {}, [2, -1, -1], torch.int64),
    "label of 2": (Label("x"), table([1, NAN, 0]), {}, [1.0, -1.0, 0.0], torch.float32),
    "value": (Values("x"), table([[0.5], [NAN], [-2]]), {}, [[0.5], [NAN], [-2.0]], torch.float32),
    "flat value": (Values("x"), table([3, 4, 5]), {}, [[3.0], [4.0], [5.0]], torch.float32),
    "vector": (
        Values("x", 2), table([[1.0, 2], [NAN, 2], [NAN, NAN]]), {},
        [[1.0, 2.0], [NAN, 2.0], [NAN, NAN]], torch.float32,
    ),
    "box": (
        Box("x"), table(BOXES), {},
        [[0.25, 0.5, 0.5, 1.0], [NAN] * 4, [0.0, 0.0, 1.0, 0.25]], torch.float32,
    ),
    "classes": (
        PixelClasses("x", 4), planes([3, (255, 1), 255], "u1"), {}, [3, (255, 1), 255],
        torch.uint8,
    ),
    "classes as floats": (
        PixelClasses("x", 254), planes([253, (NAN, 1), 255], "f4"), {}, [253, (255, 1), 255],
        torch.uint8,
    ),
    "mask": (
        PixelClasses("x"), planes([1, (0, NAN), NAN], "f8")[..., None], {}, [1, (0, 255), 255],
        torch.uint8,
    ),
    "mask of bits": (PixelClasses("x"), planes([1, (0, 1), 0], "?"), {}, [1, (0, 1), 0],
        torch.uint8,
    ),
    "depth": (
        PixelValues("x"), planes(DEPTHS, "u2"), CM, [1.0, (NAN, 3.0), NAN], torch.float32,
    ),
    "depth in floats": (
        PixelValues("x"), planes([0.5, (NAN, -2), NAN], "f8")[..., None], {},
        [0.5, (NAN, -2.0), NAN], torch.float32,
    ),
    "normals": (
        PixelValues("x", 3), np.stack([planes(DEPTHS, "i2")] * 3, -1), {"scale_factor": 2},
        [200.0, (14.0, 600.0), 14.0], torch.float32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
@on_disk_or_not
def test_a_target_is_read_as_its_kind_says(data_folder, case, memory_limit):
    kind, stored, attributes, first, dtype = KINDS[case]
    rewrite(data_folder, "x", stored, attributes=attributes)
    dataset = H5Dataset("train", data_folder, {"it": kind}, memory_limit)
    _, targets = dataset[[0, 1, 2]]
    assert targets.keys() == {"it"} and targets["it"].dtype == dtype
    if kind.per_pixel:
        channels = getattr(kind, "channels", 1)
        expected = torch.from_numpy(planes(first, "f8")[:3])
        expected = expected[:, None].expand(-1, channels, -1, -1).to(dtype)
    else:
        expected = torch.tensor(first, dtype=dtype)
    torch.testing.assert_close(targets["it"], expected, equal_nan=True)
    known = kind.known(expected).tolist()
    assert dataset.known["it"][:3].tolist() == known
    one = dataset[1][1]["it"]
    torch.testing.assert_close(one, expected[1], equal_nan=True)
    assert ("it" in dataset.complete) == (case in ("mask of bits", "normals"))


@pytest.mark.parametrize("case", KINDS)
@on_disk_or_not
def test_without_its_file_nothing_of_a_target_is_known(data_folder, case, memory_limit):
    kind, stored, attributes, *_ = KINDS[case]
    missing = H5Dataset("train", data_folder, {"it": kind}, memory_limit)
    assert missing.known["it"].tolist() == [False] * 12 and "it" not in missing.complete
    assert not kind.known(missing[range(12)][1]["it"]).any()
    rewrite(data_folder, "x", stored, attributes=attributes)
    there = H5Dataset("train", data_folder, {"it": kind}, memory_limit)
    for index in (3, [3, 4]):
        one, other = (dataset[index][1]["it"] for dataset in (missing, there))
        assert one.shape == other.shape and one.dtype == other.dtype


def test_a_box_may_leave_the_image_by_rounding_alone(data_folder):
    """By less than a thousandth of a pixel."""
    for row in ([-0.002, 0, 8, 8], [0, 0, 8, 32.002]):
        rewrite(data_folder, "x", table([[0, 0, 8, 8], row]))
        with pytest.raises(
            DataError, match=r"ymax inside 32 x 32, or four NaN, found .* sample 1$"
        ):
            H5Dataset("train", data_folder, {"it": Box("x")})


def test_only_the_files_that_the_targets_name_are_opened(data_folder):
    for name in ("bboxes", "binary", "breeds"):
        (data_folder / "train" / f"{name}.h5").write_text("damaged")
    dataset = H5Dataset("train", data_folder, {"seg": PETS["seg"]})
    assert dataset.arrays.keys() == {"images", "seg"} and dataset[0][1].keys() == {"seg"}
    with pytest.raises(DataError, match=r"bboxes\.h5: not a readable HDF5 file"):
        H5Dataset("train", data_folder)


def test_names_of_classes_are_those_of_the_file_or_else_of_the_kind(data_folder):
    kinds = {
        "a": PixelClasses("a", 3), "b": PixelClasses("b", 3, ("sky", "road", "car")),
        "c": Label("c", 3), "d": Box("bboxes"), "e": PixelClasses("a", 3, ("x", "y", "z")),
    }  # fmt: skip
    rewrite(data_folder, "a", planes([0, 1, 2], "u1"), attributes={"class_names": ["o", "p", "q"]})
    assert H5Dataset("train", data_folder, kinds).class_names == {
        "a": ("o", "p", "q"),
        "b": ("sky", "road", "car"),
        "c": ("class 0", "class 1", "class 2"),
        "d": (),
        "e": ("o", "p", "q"),
    }


def share(seg):
    return (seg == 1).flatten(1).float().mean(1).masked_fill((seg == 255).flatten(1).any(1), NAN)


AREA = Derived(share, seg=PETS["seg"])


@on_disk_or_not
@pytest.mark.parametrize("names", [["area"], ["area", "seg"], ["seg", "area"], ["twice"]])
def test_a_derived_target_brings_its_sources(data_folder, names, memory_limit):
    masks = drawn()["masks"]
    masks[5, 0, 0] = 255
    rewrite(data_folder, "masks", masks)
    kinds = {"seg": PETS["seg"], "area": AREA, "twice": Derived(lambda area: 2 * area, area=AREA)}
    dataset = H5Dataset("train", data_folder, {n: kinds[n] for n in names}, memory_limit)
    expected = torch.from_numpy(masks == 1).float().mean((1, 2, 3))
    expected[5] = NAN
    _, targets = dataset[range(12)]
    assert list(targets)[: len(names)] == names and {"seg", "area"} <= targets.keys()
    torch.testing.assert_close(targets["area"], expected, equal_nan=True)
    if "twice" in names:
        torch.testing.assert_close(targets["twice"], 2 * expected, equal_nan=True)
    for name in set(names) - {"seg"}:
        assert dataset.known[name].tolist() == [i != 5 for i in range(12)]
    assert dataset[5][1]["area"].isnan() and dataset[4][1]["area"].shape == ()


def test_sources_by_the_name_of_another_target_are_refused():
    with pytest.raises(
        UserError,
        match="TASKS: expected 'area' to be computed from the target of 'seg', found another",
    ):
        with_sources({"area": AREA, "seg": PixelClasses("masks", 3)})
    assert with_sources({"area": AREA}).keys() == {"area", "seg"}


def test_a_split_that_stays_on_disk_is_read_sample_by_sample_only_where_it_must(
    shared_data, monkeypatch
):
    """Which takes long, for masks of gigabytes."""
    read, rows = [], H5Array.rows
    monkeypatch.setattr(
        H5Array, "rows", lambda self, *given: read.append(self.name) or rows(self, *given)
    )
    dataset = H5Dataset("train", shared_data, memory_limit=0)
    assert dataset.known["bin"].all() and read == []
    H5Dataset("train", shared_data, {**PETS, "area": AREA}, memory_limit=0)
    assert read == ["masks"]
