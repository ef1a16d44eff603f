"""tools/prepare_nyuv2.py on drawn scenes in the layout of NYUv2 as distributed with MTAN."""

import io
import itertools
import shutil

import disks
import h5py
import numpy as np
import pytest
from nyuv2_source import write_distributed
from pets_folder import out  # noqa: F401 (a fixture)

from parts.drawn_rooms import CLASS_NAMES
from tools import prepare_nyuv2

SIDE, COUNTS = (32, 48), {"train": 12, "val": 4}
KINDS, FILES = ("image", "label", "depth", "normal"), ("images", "segments", "depth", "normals")
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "nyuv2"
    write_distributed(folder, COUNTS.values(), SIDE)
    return folder


@pytest.fixture
def root(drawn, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(drawn, tmp_path / "nyuv2")


def run(root, out, *flags):
    arguments = ("--root", root, "--out", out, *flags)
    return prepare_nyuv2.main([str(argument) for argument in arguments])


def stored(out, split, name):
    """The array of a file and its attributes, those of the file and of the dataset together."""
    with h5py.File(out / split / f"{name}.h5") as file:
        assert list(file) == [name]
        return file[name][()], dict(file.attrs) | dict(file[name].attrs)


def values(out, split, name):
    """float64 array as CF conventions say: NaN where it is the fill value, else scaled."""
    array, attributes = stored(out, split, name)
    known = array != attributes["_FillValue"]
    return np.where(known, array * attributes["scale_factor"], np.nan)


def source(root, split, kind, numbers):
    return np.stack([np.load(root / split / kind / f"{number}.npy") for number in numbers])


def lines(out, split):
    return stored(out, split, "images")[1]["source_lines"].tolist()


def edit(path, change):
    np.save(path, change(np.load(path)))


def archive():
    np.savez(file := io.BytesIO(), depth=np.zeros((*SIDE, 1)))
    return file.getvalue()


# What is written


def test_every_sample_is_kept_within_the_tolerances(drawn, out, capsys):
    assert run(drawn, out) == 0
    for split, folder in (("train", "train"), ("val", "train"), ("test", "val")):
        image, label, depth, normal = (source(drawn, folder, k, lines(out, split)) for k in KINDS)
        assert np.array_equal(stored(out, split, "images")[0], np.rint(image * 255))
        segments = stored(out, split, "segments")[0]
        assert segments.dtype == np.uint8
        assert np.array_equal(segments, np.where(label < 0, 255, label))
        found, depth = values(out, split, "depth"), depth[..., 0]
        assert np.array_equal(np.isnan(found), depth == 0)
        assert np.nanmax(abs(found - depth)) < 1e-3
        found, known = values(out, split, "normals"), (normal != 0).any(-1)
        assert np.array_equal(~np.isnan(found), known[..., None].repeat(3, -1))
        sines = np.linalg.norm(np.cross(found[known], normal[known]), axis=-1)
        assert np.degrees(sines.max()) < 0.1
    assert sorted(lines(out, "train") + lines(out, "val")) == list(range(12))
    assert lines(out, "test") == [0, 1, 2, 3]
    printed = capsys.readouterr()
    assert f"expected {prepare_nyuv2.SAMPLES} samples, found {COUNTS}" in printed.err
    rows = [row.split()[:2] for row in printed.out.splitlines()[2:5]]
    assert rows == [["train", "11"], ["val", "1"], ["test", "4"]]


def test_the_classes_have_names_and_the_files_say_where_they_come_from(drawn, out):
    assert run(drawn, out) == 0
    _, about = stored(out, "test", "segments")
    assert tuple(name.decode() for name in about["class_names"]) == CLASS_NAMES
    assert about["split"] == "test" and "MTAN" in about["source"] and about["seed"] == 0


def test_the_share_and_the_seed_choose_val(drawn, tmp_path):
    chosen = {}
    for seed in (0, 0, 1):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        assert run(drawn, tmp_path / "data", "--val-share", "0.25", "--seed", seed) == 0
        found = lines(tmp_path / "data", "val")
        assert len(found) == 3 and chosen.setdefault(seed, found) == found
    assert chosen[0] != chosen[1]


def test_pictures_that_are_alike_stay_together(root, out):
    for one, other in ((0, 5), (5, 9)):
        image = np.load(root / "train" / "image" / f"{one}.npy")
        np.save(root / "train" / "image" / f"{other}.npy", image[:, ::-1] * 0.9)
    for seed in range(4):
        assert run(root, out, "--val-share", "0.4", "--seed", seed) == 0
        assert len({0, 5, 9} & set(lines(out, "val"))) in (0, 3)
        shutil.rmtree(out)


def test_val_is_test(drawn, out):
    assert run(drawn, out, "--val-is-test") == 0
    assert lines(out, "train") == list(range(12))
    for name in FILES:
        assert np.array_equal(stored(out, "val", name)[0], stored(out, "test", name)[0])
    assert stored(out, "train", "depth")[1]["val_is_test"]


@pytest.mark.parametrize("signs", [*itertools.product((1, -1), repeat=3)])
def test_the_axes_of_the_normals_are_told_from_the_depth(root, out, signs, capsys):
    for path in root.glob("*/normal/*.npy"):
        edit(path, lambda normal: normal * np.float32(signs))
    assert run(root, out, "--val-is-test") == 0
    words = (("left", "right"), ("up", "down"), ("back", "ahead"))
    pairs = zip("xyz", words, signs, strict=True)
    expected = [f"{axis} {names[sign > 0]} (" for axis, names, sign in pairs]
    first = capsys.readouterr().out.splitlines()[0]
    assert all(text in first for text in expected)
    normal = source(root, "train", "normal", range(12)) * signs
    np.testing.assert_allclose(np.nan_to_num(values(out, "train", "normals")), normal, atol=2e-5)


def test_normals_that_do_not_fit_the_depth_are_a_warning(root, out, capsys):
    for path in root.glob("*/normal/*.npy"):
        edit(path, lambda normal: np.broadcast_to(np.float32([0, 0, -1]), normal.shape))
    assert run(root, out) == 0
    error = capsys.readouterr().err
    assert "expected normals that fit the depth, found x right (0.00), y down (0.00)" in error


def test_normals_become_unit_vectors_and_what_has_no_direction_unknown(root, out):
    path = root / "val" / "normal" / "0.npy"
    normal = np.zeros((*SIDE, 3))
    normal[0, :3] = (0.3, 0, -0.4), (0, 0, -0.05), (0.6, 0, -0.8)
    np.save(path, normal)
    assert run(root, out) == 0
    found = values(out, "test", "normals")[0, 0]
    assert found[0] == pytest.approx([0.6, 0, -0.8], abs=2e-5)
    assert np.isnan(found[1]).all() and found[2] == pytest.approx(found[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes_are_read(root, out, dtype):
    for path in root.glob("*/*/*.npy"):
        edit(path, lambda array: array.astype(dtype))
    assert run(root, out) == 0


def test_a_depth_of_less_than_a_millimetre_is_not_unknown(root, out):
    np.save(root / "val" / "depth" / "0.npy", np.full((*SIDE, 1), 1e-4))
    assert run(root, out) == 0
    assert stored(out, "test", "depth")[0][0].tolist() == np.ones(SIDE).tolist()


# What is refused


def assert_refused(root, out, capsys, *fragments, flags=()):
    assert run(root, out, *flags) == 2
    error = capsys.readouterr().err.splitlines()
    error = [line for line in error if "samples, found {" not in line]
    assert len(error) == 1 and error[0].startswith("prepare_nyuv2.py: ")
    for fragment in fragments:
        assert fragment in error[0]
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(
    "kind, array, expected",
    [
        ("image", np.full((*SIDE, 3), 200.0), "expected colours in [0, 1], found 200"),
        ("image", np.zeros((*SIDE, 3), complex), "(32, 48, 3), found (32, 48, 3) of dtype complex"),
        ("image", np.zeros((*SIDE, 4)), "real numbers of shape (32, 48, 3), found (32, 48, 4)"),
        ("image", np.full((*SIDE, 3), np.nan), "expected finite numbers, found nan"),
        ("label", np.full(SIDE, 13), "expected whole numbers from -1 to 12, found 13"),
        ("label", np.full(SIDE, 0.5), "expected whole numbers from -1 to 12, found 0.5"),
        ("label", np.zeros((*SIDE, 1)), "real numbers of shape (32, 48), found (32, 48, 1)"),
        ("depth", np.full((*SIDE, 1), 2500), "expected metres from 0 to 65, found 2500"),
        ("depth", np.full((*SIDE, 1), -1), "expected metres from 0 to 65, found -1"),
        ("depth", np.zeros((32, 40, 1)), "shape (32, 48, 1), found (32, 40, 1) of dtype float64"),
        ("normal", np.full((*SIDE, 3), 1.0), "expected vectors of length 0 or 1, found 1.73"),
        ("normal", np.array("n"), "shape (32, 48, 3), found () of dtype <U1"),
    ],
)
def test_a_wrong_file(root, out, capsys, kind, array, expected):
    path = root / "val" / kind / "2.npy"
    np.save(path, array)
    assert_refused(root, out, capsys, f"{path}: ", expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no array"),
        lambda path: np.save(path, np.array([{"an": "object"}]), allow_pickle=True),
        lambda path: path.write_bytes(archive()),
    ],
)
def test_a_damaged_file(root, out, capsys, kind, damage):
    path = root / "train" / kind / "0.npy"
    damage(path)
    assert_refused(root, out, capsys, f"{path}: expected a whole .npy file, found: ")


@pytest.mark.parametrize("kinds", [*zip(KINDS), KINDS], ids="-".join)
def test_a_missing_file(root, out, capsys, kinds):
    for kind in kinds:
        (root / "train" / kind / "3.npy").unlink()
    path, last = root / "train" / kinds[0] / "3.npy", 10 + (len(kinds) == 1)
    expected = f"{path}: expected a file for each sample, 0.npy to {last}.npy, found none"
    assert_refused(root, out, capsys, expected)


def test_other_files_beside_the_arrays_do_not_matter(root, out):
    (root / "train" / "image" / "._0.npy").write_bytes(b"of an archive")
    (root / "train" / "depth" / "readme.txt").touch()
    assert run(root, out) == 0


def test_a_missing_folder(root, out, capsys):
    shutil.rmtree(root / "val" / "normal")
    path = root / "val" / "normal"
    assert_refused(root, out, capsys, f"{path}: expected a folder of files N.npy, found none")
    assert_refused(root / "train", out, capsys, str(root / "train" / "train" / "image"))


def test_folders_without_files(tmp_path, out, capsys):
    for split, kind in itertools.product(COUNTS, KINDS):
        (tmp_path / "nyuv2" / split / kind).mkdir(parents=True)
    path = tmp_path / "nyuv2" / "train" / "image"
    expected = f"{path}: expected files 0.npy, 1.npy, ..., found none"
    assert_refused(tmp_path / "nyuv2", out, capsys, expected)


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--val-share", "0"], "--val-share: expected between 0 and 1, found 0.0"),
        (["--val-share", "nan"], "--val-share: expected between 0 and 1, found nan"),
        (["--val-share", "0.001"], "--val-share: expected samples in train and in val, found 0 of"),
        (["--seed", "-1"], "argument --seed: expected a whole number from 0"),
        (["--val-ist-test"], "did you mean --val-is-test?"),
        (["--root", ""], "--root: expected a path, found an empty one"),
    ],
)
def test_wrong_flags(root, out, capsys, flags, expected):
    assert_refused(root, out, capsys, expected, flags=flags)


def test_an_existing_folder_is_not_touched(root, out, capsys):
    out.mkdir()
    (out / "file").touch()
    assert run(root, out) == 2
    assert f"--out {out}: expected a new folder, found one" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["file"]


@pytest.mark.parametrize("room", [0, 3000, 10_000])
def test_a_full_disk(root, out, capsys, monkeypatch, room):
    disks.fill(monkeypatch, room)
    expected = "normals.h5: cannot be written (No space left on device)"  # the last one opened
    assert_refused(root, out, capsys, expected)
