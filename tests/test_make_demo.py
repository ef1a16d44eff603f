"""The drawn pets: deterministic, exactly labelled, and not separable by colour."""

import hashlib
import multiprocessing
import os
import signal
import sys
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dataload import DataError, H5Dataset
from parts import demo_data, drawing, drawn_pets, drawn_scenes, drawn_things
from parts.demo_data import make_demo
from parts.drawn_scenes import BREED_NAMES, STYLES, draw_sample
from parts.targets import PETS, Label
from tools.make_demo import main


@pytest.fixture(scope="module", params=STYLES)
def pets(request, tmp_path_factory):
    """120 pets of each style."""
    folder = tmp_path_factory.mktemp("demo") / "pets"
    make_demo(folder, side=64, counts=(120, 6, 8), seed=1, style=request.param)
    return folder, request.param


def same(folder, style, index, seed=1, split=("train", 0)):
    """Whether a sample of a data set is the one drawn alone."""
    image, mask, box, label, _ = draw_sample(seed, split[1], index, 64, style)
    found, targets = H5Dataset(split[0], folder)[index]
    return (
        np.array_equal(found.permute(1, 2, 0), image)
        and np.array_equal(targets["seg"][0], mask[..., 0])
        and np.allclose(targets["bbox"] * 64, box)
        and targets["bin"] == label
    )


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("demo", "21dc84bd1dde84059d52ccc387f2b707bf15c9724d3ffec833"),
        ("varied", "6b812e2e4336a759ba4048a7910ab0b16d8cc1f8264585fa41"),
    ],
)
def test_a_style_is_what_its_published_figures_were_measured_on(style, expected):
    digest, samples = hashlib.sha256(), (draw_sample(0, 0, i, 128, style)[:4] for i in range(6))
    for arrays in zip(*samples, strict=True):
        digest.update(np.stack(arrays).tobytes())
    assert digest.hexdigest().startswith(expected)


def test_a_sample_depends_on_seed_split_and_number_alone(pets, tmp_path):
    folder, style = pets
    assert all(same(folder, style, index) for index in (0, 17, 119))
    assert same(folder, style, 5, split=("val", 1)) and same(folder, style, 7, split=("test", 2))
    images = [draw_sample(*key, 64, style)[0] for key in ((1, 0, 4), (2, 0, 4), (1, 1, 4))]
    images.append(draw_sample(1, 0, 6, 64, style)[0])
    assert len({image.tobytes() for image in images}) == 4


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_any_number_of_processes_draws_the_same(tmp_path, monkeypatch, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    used = []

    def pool(workers, **options):
        used.append(workers)
        context = multiprocessing.get_context(method)
        return ProcessPoolExecutor(workers, mp_context=context, **options)

    make_demo(tmp_path / "one", side=32, counts=(40, 2, 3))
    assert used == []  # so small a job starts no process
    monkeypatch.setattr(demo_data, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(demo_data, "POOLED_PIXELS", 0)
    monkeypatch.setattr(demo_data, "count_cores", lambda: 3)
    make_demo(tmp_path / "many", side=32, counts=(40, 2, 3))
    assert used == [3]
    for split in ("train", "val", "test"):
        one, many = (H5Dataset(split, tmp_path / name) for name in ("one", "many"))
        assert one.fingerprint() == many.fingerprint()


def whole(folder, split="train", **targets):
    """All images (N, 3, H, W) and targets of a split."""
    dataset = H5Dataset(split, folder, PETS | targets)
    return dataset[range(len(dataset))]


def test_every_sample_is_a_pet_with_its_head_in_the_box(pets):
    folder, style = pets
    assert H5Dataset("train", folder).class_names["bin"] == ("cat", "dog")
    images, targets = whole(folder)
    assert images.shape == (120, 3, 64, 64) and targets["bin"].tolist() == [0, 1] * 60
    shares = targets["seg"].float().mean((1, 2, 3))
    assert shares.min() > 0.02 and shares.max() < (0.6 if style == "demo" else 0.9)
    areas = (targets["bbox"][:, 2:] - targets["bbox"][:, :2]).prod(1)
    assert areas.min() > 0.005 and areas.max() < (0.3 if style == "demo" else 0.8)
    for mask, box in zip(targets["seg"][:, 0], targets["bbox"] * 64, strict=True):
        x0, y0, x1, y1 = box.round().int().tolist()
        assert mask[y0:y1, x0:x1].float().mean() > 0.3


def test_the_varied_style_varies_more(tmp_path):
    """Sizes, places, pets cut by the frame and pets behind something, in both classes."""
    samples = [draw_sample(3, 0, index, 64, "varied") for index in range(80)]
    for label in (0, 1):
        masks = np.stack([mask[..., 0] for _, mask, _, found, _ in samples if found == label])
        boxes = np.array([box for _, _, box, found, _ in samples if found == label])
        shares = masks.mean((1, 2))
        assert shares.min() < 0.12 and shares.max() > 0.45
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        assert (np.ptp(middles, axis=0) > 25).all()
        border = np.stack([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]])
        assert 0.2 < border.any((0, 2)).mean() < 1
    light = [image.mean() for image, *_ in samples]
    assert min(light) < 70 and max(light) > 150


def photographs(left, right):
    """float (60, 128, 128, 3): photographs of a scene whose halves have one colour each."""
    scene = np.empty((128, 128, 3), np.float32)
    scene[:, :64], scene[:, 64:] = left, right
    grid = drawing.grid(128, np.float32)
    generators = map(np.random.default_rng, range(60))
    found = [drawn_scenes.photograph(rng, scene, *grid, 128) for rng in generators]
    return np.stack(found).astype(float)


def test_the_varied_light_changes_brightness_contrast_colour_and_focus():
    grey = photographs((180, 180, 180), (60, 60, 60))
    means = grey.mean((1, 2, 3))
    assert means.std() > 12
    top, bottom = grey[:, :32].mean((1, 2, 3)), grey[:, -32:].mean((1, 2, 3))
    assert np.median(np.abs(top - bottom)) > 12
    contrast = (grey[:, :, :56].mean((1, 2, 3)) - grey[:, :, 72:].mean((1, 2, 3))) / means
    assert np.subtract(*np.quantile(contrast, (0.75, 0.25))) > 0.23
    columns = grey[:, :, 60:68].mean((1, 3))
    sharpness = (columns[:, 3] - columns[:, 4]) / (columns[:, 0] - columns[:, 7])
    assert np.quantile(sharpness, 0.1) < 0.7 and np.quantile(sharpness, 0.9) > 0.95
    red = photographs((190, 90, 90), (190, 90, 90)).mean((1, 2))
    assert ((red[:, 0] - red[:, 1]) / red.mean(1)).std() > 0.22


@pytest.mark.parametrize("style", STYLES)
def test_mask_and_box_are_what_is_painted(monkeypatch, style):
    """On black, the body painted red, the head blue and whatever stands before them green."""
    paint_pet = drawn_pets.paint_pet

    def paint(image, distance, colour, scale, rim=1):
        image[distance < 0] = (0, 255, 0) if callable(colour) else colour

    def paint_flat(image, body, head, near, paints, *others):
        for parts, colour in (((body, []), (255, 0, 0)), (([], head), (0, 0, 255))):
            paint_pet(image, *parts, near, dict.fromkeys(paints, np.float32(colour)), *others)

    def black(rng, x, y, side):
        return np.zeros((side, side, 3), np.float32)

    monkeypatch.setattr(drawn_pets, "paint", paint)
    fakes = {"paint": paint, "paint_pet": paint_flat, "backdrop": black, "scenery": black}
    fakes |= dict.fromkeys(("expose", "photograph"), lambda rng, image, *_: image)
    for name, fake in fakes.items():
        monkeypatch.setattr(drawn_scenes, name, fake)
    hidden = 0
    for index in range(40):
        image, mask, box, *_ = draw_sample(0, 0, index, 96, style)
        red, green, blue = np.moveaxis(image == 255, -1, 0)
        assert np.array_equal(mask[..., 0], red | blue)
        rows, columns = np.nonzero(blue)
        assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        hidden += green.any()
    assert hidden == 0 if style == "demo" else hidden > 5


def test_soft_things_often_have_the_colour_of_the_coat():
    """A red coat, whose colour few surfaces have."""
    x, y = drawing.grid(32, np.float32)
    coat = np.full((32, 32, 3), (200.0, 30, 40), np.float32)
    near = 0
    for seed in range(60):
        paints = drawn_scenes.materials(np.random.default_rng(seed), x, y, 32, coat)
        near += np.abs(paints["soft"](...).mean((0, 1)) - coat[0, 0]).max() < 45
    assert 12 < near < 40  # of 60; a third have it, a third are mixed with it


def test_clothes_are_worn_by_the_pet_alone():
    """So they change neither mask nor box; some cover little, some much of it."""
    grid, shares = drawing.grid(48, np.float32), []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        body, x, y = drawn_pets.posed_body(*grid, rng, seed % 2)
        shape = np.minimum.reduce([distance for distance, _ in body])
        ((worn, name),) = drawn_things.clothes(rng, x, y, body, np.array((0.42, -0.55)))
        assert name == "clothes" and (worn >= shape).all()
        shares.append((worn < 0).sum() / (shape < 0).sum())
    assert min(shares) < 0.1 < np.median(shares) < 0.4 < max(shares) < 0.9


@pytest.mark.parametrize("name", ["cushions", "person", "cover"])
def test_things_around_a_pet(name):
    """Each reaches near the pet in most cases, and none fills the picture."""
    x, y = drawing.grid(48, np.float32)
    draw, shares = getattr(drawn_things, name), []
    for seed in range(60):
        parts = draw(np.random.default_rng(seed), x, y)
        assert {material for _, material in parts} <= {"soft", "cloth", "skin", "wood"}
        assert all(np.isfinite(distance).all() for distance, _ in parts)
        shares.append(np.mean(np.minimum.reduce([distance for distance, _ in parts]) < 0))
    assert np.median(shares) > 0.1 and max(shares) < 0.9


def test_no_head_is_larger_than_the_window_it_is_drawn_in():
    x, y = np.meshgrid(*np.linspace([-1.5, -1.5], [1.5, 1.5], 60).T)
    outside = np.hypot(x, y) > drawn_pets.HEAD_REACH - 0.04  # which is the longest hair
    x, y = x[outside], y[outside]
    for seed in range(100):
        draws = (drawn_pets.cat_head, drawn_pets.dog_head, drawn_pets.frontal_head)
        pairs = [(draws[0], 0), (draws[1], 1), (draws[2], 0), (draws[2], 1)]
        heads = [draw(x, y, np.random.default_rng(seed), label) for draw, label in pairs]
        assert min(distance.min() for head in heads for distance, _ in head) > 0


def test_paint_covers_a_shape_with_one_pixel_of_transition():
    """Distances of whole pixels from 2 inside to 2 outside, then half a pixel; scale 10."""
    distance = np.array([[-2, -1, 0, 1, 2, 0.25]]) / 10
    image = np.full((1, 6, 3), 100.0)
    drawing.paint(image, distance, np.array((200.0, 0, 100)), 10, rim=0.8)
    # 0.2 units inside the shade is 1, at 0.1 it is 0.8 + 0.5, cut to 1; from the edge on 0.8
    expected = [[200, 0, 100], [200, 0, 100], [130, 50, 90], [100, 100, 100], [100, 100, 100]]
    expected.append([115, 75, 95])  # a quarter of (160, 0, 80)
    assert np.allclose(image[0], expected)


def test_window_is_the_smallest_one():
    inside = np.zeros((5, 6), bool)
    assert np.zeros((5, 6))[drawing.window(inside)].size == 0
    inside[1, 3] = inside[2, 4] = True
    assert drawing.window(inside) == (slice(1, 3), slice(3, 5))


def test_colour_does_not_tell_the_species(pets):
    images, targets = whole(pets[0])
    for part in (targets["seg"], 1 - targets["seg"]):
        colour = (images * part).sum((2, 3)) / part.sum((2, 3))  # (N, 3) mean over the part
        for channel in colour.T:
            guess = (channel > channel.median()).float()
            assert 0.3 < (guess == targets["bin"]).float().mean() < 0.7


def test_a_breed_is_species_commonest_colour_and_pattern():
    """On 10 x 10 pixels, of which the last column shows no pet."""
    coat, in_pet = np.empty((10, 10, 3), np.float32), np.ones((10, 10), bool)
    black, ginger, white = drawn_scenes.PALETTE[[0, 5, 3]]
    in_pet[:, 9], coat[:, 9], coat[:, :9] = False, black, ginger + 9
    coat[:2, :9] = white  # 18 of 90 pixels, less than a quarter
    assert BREED_NAMES[drawn_scenes.breed(coat, in_pet, 0)] == "plain ginger cat"
    coat[:3, :9] = white  # 27
    assert BREED_NAMES[drawn_scenes.breed(coat, in_pet, 1)] == "patterned ginger dog"


def test_breeds_are_written_only_when_asked(tmp_path):
    make_demo(tmp_path / "with", side=32, counts=(16, 2, 2), breeds=True)
    make_demo(tmp_path / "without", side=32, counts=(16, 2, 2))
    files = [sorted(p.name for p in tmp_path.glob(f"{name}/val/*")) for name in ("with", "without")]
    assert files[1] == ["bboxes.h5", "binary.h5", "images.h5", "masks.h5"]
    assert files[0] == sorted([*files[1], "breeds.h5"])
    images, targets = whole(tmp_path / "with", breed=Label("breeds", 37))
    assert torch.equal(images, whole(tmp_path / "without")[0])
    breeds = targets["breed"].tolist()
    assert breeds == [draw_sample(0, 0, i, 32)[4] for i in range(16)]
    assert [BREED_NAMES[n].split()[-1] for n in breeds] == ["cat", "dog"] * 8
    assert len(set(breeds)) > 8


def test_a_split_is_never_overwritten(pets):
    file = pets[0] / "train" / "images.h5"
    before = file.read_bytes()
    with pytest.raises(DataError, match="expected no split there yet, found train"):
        make_demo(pets[0])
    assert file.read_bytes() == before


def test_there_is_no_other_style(tmp_path):
    with pytest.raises(ValueError, match="expected one of demo, varied, rich, found 'oil'"):
        make_demo(tmp_path / "out", style="oil")
    assert not (tmp_path / "out").exists()


def mistake(capsys, *flags, code=2):
    """The one line on stderr with which the command ends."""
    found = main(list(flags))
    printed = capsys.readouterr().err
    assert found == code and printed.count("\n") == 1 and printed.startswith("make_demo.py: ")
    return printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--side", "8"], "--side: expected a whole number from 32 to 1024, found '8'"),
        (["--counts", "4", "0", "4"], "--counts: expected a whole number from 2 to 100000, found"),
        (["--counts", "4", "4"], "--counts: expected 3 arguments"),
        (["--seed", "-1"], "--seed"),
        (["--vried"], "did you mean --varied?"),
        (["--style", "oil"], "--style: invalid choice: 'oil'"),
        (["--varied", "--style", "rich"], "--style: not allowed with argument --varied"),
        (["--out", ""], "--out: expected a path, found an empty one"),
        (["--out", "file/pets"], "file/pets: Not a directory"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert message in mistake(capsys, "--out", "out", *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command_writes_what_it_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = ["--side", "64", "--counts", "2", "3", "4", "--seed", "5"]
    assert main(["--out", "~/out", *flags]) == 0
    assert main(["--out", "~/varied", "--varied", *flags]) == 0
    assert main(["--out", "~/rich", "--style", "rich", *flags]) == 0
    for name, style in (("out", "demo"), ("varied", "varied"), ("rich", "rich")):
        splits = [H5Dataset(split, tmp_path / name) for split in ("train", "val", "test")]
        assert [len(split) for split in splits] == [2, 3, 4]
        assert same(tmp_path / name, style, 1, seed=5)
    assert "found train, val, test" in mistake(capsys, "--out", "~/out")


class Eager(demo_data.tqdm):
    """A progress bar that is drawn from the start."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options | {"delay": 0, "mininterval": 0})


def test_a_closed_stderr_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_data, "tqdm", Eager)
    monkeypatch.setattr(sys, "stderr", None)
    make_demo(tmp_path / "out", side=32, counts=(2, 2, 2))


class Interrupted(demo_data.tqdm):
    """A progress bar under which Ctrl-C is pressed."""

    def update(self, n=1):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("cores", "is_there"), [(1, True), (2, False)])
def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch, capsys, cores, is_there):
    monkeypatch.setattr(demo_data, "POOLED_PIXELS", 0)
    monkeypatch.setattr(demo_data, "count_cores", lambda: cores)
    monkeypatch.setattr(demo_data, "tqdm", Interrupted)
    out = tmp_path / "out"
    if is_there:
        out.mkdir()
    flags = ["--out", str(out), "--side", "32", "--counts", "300", "20", "20"]
    assert "interrupted" in mistake(capsys, *flags, code=130)
    assert list(tmp_path.rglob("*")) == ([out] if is_there else [])
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_is_one_line(tmp_path, monkeypatch, capsys):
    def broken(tasks, workers):
        yield demo_data.draw_chunk(*tasks[0])
        raise BrokenExecutor("terminated abruptly")

    monkeypatch.setattr(demo_data, "draw_chunks", broken)
    flags = ["--out", str(tmp_path / "out"), "--side", "32", "--counts", "40", "2", "2"]
    assert "a process that drew pets has died" in mistake(capsys, *flags)
    assert not (tmp_path / "out").exists()
