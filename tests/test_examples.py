"""Experiments with targets of their own, from data with unknown targets to the last tool."""

import functools
import json

import h5py
import numpy as np
import pytest
import torch
from conftest import rewrite
from PIL import Image
from running import ROOT, changed, history, load, run, same, stopped

import engine
import engine.run
import parts.demo_data
from dataload import SPLITS, H5Dataset
from examples import draw_fish
from tools import check_data, compare, evaluate, gallery, predict

NAMES = ("border", "breed", "area")
COUNTS = (12, 6, 7)
UNKNOWN = {  # {file: {sample: what is written there}}, in each split
    "masks": {0: 255, 1: 255, (2, 0): 255},
    "bboxes": {3: np.nan},
    "binary": {4: -1},
    "breeds": {1: -1, 5: -1},
}


@pytest.fixture(scope="module")
def small_demo():
    """Synthetic pets, but few and small."""
    draw = functools.partial(parts.demo_data.make_demo, side=32, counts=COUNTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.demo_data, "make_demo", draw)
        yield draw


@pytest.fixture(scope="module")
def trained(small_demo, tmp_path_factory):
    """(name of an example) -> (its data, in which some of each target is unknown; its folder)."""

    @functools.cache
    def train(name):
        folder = tmp_path_factory.mktemp(name)
        getattr(engine.load(f"examples.{name}"), "demo", small_demo)(folder / "data")
        for path in (folder / "data").rglob("*.h5"):
            with h5py.File(path, "r+") as file:
                for where, value in UNKNOWN.get(path.stem, {}).items():
                    file[path.stem][where] = value
        run(f"examples/{name}", folder / "data", folder / "out", "--epochs", "2")
        return folder / "data", folder / "out"

    return train


def metrics(record, name):
    return {n.removeprefix(f"{name}_"): v for n, v in record["test"].items() if n.startswith(name)}


# ------------------------------------------------------------------------------ what is recorded


def test_border_has_metrics_of_three_classes(trained):
    data, out = trained("border")
    record = history(out, "border")
    names = ["iou_0", "iou_1", "iou_2", "pixel_accuracy", "miou"]
    assert record["tasks"]["seg"] == {
        "primary": "miou", "higher_is_better": True, "reference": None, "metrics": names,
        "means": {"miou": ["iou_0", "iou_1", "iou_2"]}, "counted": ["miou"], "lower_is_better": [],
    }  # fmt: skip
    assert record["class_names"] == {"seg": ("background", "pet", "border")}
    assert record["train"]["seg_known"] == [12, 12]  # others in the place of the two unknown ones
    found = metrics(record, "seg")
    assert found["miou"] == pytest.approx(sum(found[name] for name in names[:3]) / 3)
    assert record["data_fingerprint"]["test"].keys() == {"images", "masks"}
    masks = torch.from_numpy(h5py.File(data / "test" / "masks.h5")["masks"][()])
    assert record["test_rows"]["seg_pixel_accuracy"][:, 1].tolist() == [
        (mask != 255).sum().item() for mask in masks
    ]
    assert set(masks.unique().tolist()) == {0, 1, 2, 255}


def test_breed_has_a_task_with_a_file_of_its_own(trained):
    _, out = trained("breed")
    record = history(out, "breed")
    assert list(record["tasks"]) == ["seg", "bbox", "bin", "breed"]
    assert record["tasks"]["breed"]["metrics"] == ["accuracy"]
    assert record["class_names"]["breed"] == parts.demo_data.CLASS_NAMES["breeds"]
    known = {name: record["train"][f"{name}_known"][0] for name in record["tasks"]}
    assert known["seg"] == 10 and known["bin"] == 11 and known["breed"] == 10
    assert known["bbox"] <= 11  # augmentation may move a box out of the frame
    assert record["test_rows"]["breed_accuracy"][:, 1].tolist() == [1, 0, 1, 1, 1, 0, 1]
    files = {"images", "masks", "bboxes", "binary", "breeds"}
    assert record["data_fingerprint"]["val"].keys() == files


def test_area_is_computed_from_the_mask(trained):
    data, out = trained("area")
    record = history(out, "area")
    assert record["tasks"]["area"]["higher_is_better"] is False
    assert record["train"]["area_known"][0] <= 9  # the three with unknown pixels are not
    dataset = H5Dataset("test", data, {"area": engine.load("examples.area").AREA.target})
    assert dataset.known["area"].tolist() == [False] * 3 + [True] * 4
    network = engine.open_network(out / "area_model_lite.pt", "cpu")
    images, targets = dataset[range(3, 7)]
    outputs = torch.stack([output["area"] for output in network.outputs(images)])[:, 0]
    error = (outputs - targets["area"]).abs().mean().item()
    assert record["test"]["area_absolute_error"] == pytest.approx(error, abs=1e-5)


# ------------------------------------------------------------------------------------- the tools


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(trained, tmp_path, without_pictures, name):
    data, whole = trained(name)
    stopped(f"examples/{name}", data, tmp_path / "out", "--epochs", "2", step=2)
    run(f"examples/{name}", data, tmp_path / "out", "--epochs", "2", "--resume")
    states = (
        load(folder / f"{name}_last.pt") | {"about": None} for folder in (whole, tmp_path / "out")
    )
    assert same(*states)
    ours, theirs = (history(folder, name)["test_rows"] for folder in (whole, tmp_path / "out"))
    assert same(ours, theirs)


KEYS = {
    "border": {"mask", "mask_area"},
    "breed": {"mask", "mask_area", "box", "class", "probability", "breed_class"}
    | {"breed_probability"},
    "area": {"mask", "mask_area", "box", "class", "probability", "area"},
}


@pytest.mark.parametrize("name", NAMES)
def test_predict(trained, tmp_path, capsys, name):
    _, out = trained(name)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "pet.png")
    told = []
    for file in ("model", "model_lite", "last"):
        arguments = [out / f"{name}_{file}.pt", tmp_path / "pet.png", "--out", tmp_path / "found"]
        assert predict.main([*map(str, arguments), "--device", "cpu"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1] == told[2]
    assert told[0].keys() == {"image", "width", "height", "overlay"} | KEYS[name]
    mask = np.array(Image.open(told[0]["mask"]))
    assert mask.shape == (40, 60) and set(np.unique(mask)) <= {
        *(range(3) if name == "border" else (0, 255))
    }
    if name == "border":
        shares = {
            n: round((mask == i).mean(), 4) for i, n in enumerate(("background", "pet", "border"))
        }
        assert told[0]["mask_area"] == pytest.approx(shares, abs=2e-4)
    answer = engine.open_network(out / f"{name}_model.pt", "cpu").predict(pixels)
    assert answer.pop("mask").tolist() == mask.tolist()
    assert answer == {key: told[0][key] for key in KEYS[name] - {"mask"}}


@pytest.mark.parametrize("name", NAMES)
def test_gallery(trained, tmp_path, capsys, monkeypatch, name):
    data, out = trained(name)
    shown, choose = [], gallery.choose
    monkeypatch.setattr(gallery, "choose", lambda *a: shown.append(choose(*a)) or shown[0])
    path = tmp_path / "sheet.png"
    arguments = [out, data, "--count", "2", "--out", path, "--device", "cpu"]
    assert gallery.main([*map(str, arguments)]) == 0
    assert capsys.readouterr() == (f"{path}\n", "") and Image.open(path).width > 1000
    assert {*shown[0]["best"], *shown[0]["worst"]} <= {2, 3, 4, 5, 6}  # whose masks are known


@pytest.mark.parametrize("name", NAMES)
def test_check_data(trained, capsys, name):
    data, _ = trained(name)
    assert check_data.main([str(data), "--script", f"examples.{name}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = ["images", "masks", *(["bboxes", "binary"] if name != "border" else [])]
    files += {"border": [], "breed": ["breeds"], "area": ["area"]}[name]
    assert [line.split()[0] for line in lines[1 : len(files) + 1]] == files
    assert lines[-1] == f"{data}: usable"
    assert not [line for line in lines if line.startswith("problem")]


@pytest.mark.parametrize("name", NAMES)
def test_evaluate_gives_the_metrics_of_the_history(trained, capsys, name):
    data, out = trained(name)
    assert evaluate.main([str(out / f"{name}_model_lite.pt"), str(data), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"7 images of 32 x 32 in {data}/test"
    found = {line.split()[0]: line.split()[1] for line in lines[1:]}
    expected = history(out, name)["test"]
    assert found == {
        key: f"{value:.4f}" if value == value else "unknown"
        for key, value in expected.items()
        if not key.endswith("_loss")
    }


@pytest.mark.parametrize("name", NAMES)
def test_compare(trained, capsys, name):
    _, out = trained(name)
    assert compare.main([str(out), "--all"]) == 0
    table = capsys.readouterr().out
    record = history(out, name)
    for key, value in record["test"].items():
        if not key.endswith("_loss") and value == value:
            assert key in table and f"{value:.4f}"[:5] in table


# ---------------------------------------------------------------------------------- other roads


def test_a_border_is_five_pixels_wide(small_demo, tmp_path):
    """A pixel is border if the synthetic pets have another class within two pixels of it."""
    engine.load("examples.border").demo(tmp_path / "data")
    small_demo(tmp_path / "plain")
    masks, plain = (
        h5py.File(tmp_path / folder / "val" / "masks.h5")["masks"][..., 0]
        for folder in ("data", "plain")
    )
    assert (masks == 2).any()
    for mask, pet in zip(masks, plain, strict=True):
        for y, x in np.ndindex(mask.shape):
            near = pet[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
            assert mask[y, x] == (2 if near.min() != near.max() else pet[y, x])


@pytest.mark.parametrize("name", ["border", "breed"])
def test_demo(small_demo, tmp_path, without_pictures, name):
    run(f"examples/{name}", None, tmp_path / "out", "--demo", "--epochs", "1")
    record = history(tmp_path / "out", name)
    assert record["data"] == dict(zip(SPLITS, COUNTS, strict=True)) and record["config"]["demo"]


def test_drawn_fish_are_the_same_each_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = []
    for _ in range(2):
        draw_fish.main()
        drawn.append({p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()})
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2 * 120 + 1


def test_a_derived_target_may_be_the_only_task(trained, tmp_path, without_pictures):
    """And the first one, so that the least error chooses the epoch."""
    data, _ = trained("area")
    text = (ROOT / "examples" / "area.py").read_text()
    weights = '{"seg": 1.0, "bbox": 0.3, "bin": 0.2, "area": 1.0}', '{"area": 1.0}'
    start, rest = changed(text, weights).split("TASKS = {\n")
    script = tmp_path / "only area.py"
    script.write_text(f'{start}TASKS = {{"area": AREA}}\n{rest.split("}", 1)[1]}')
    run(script, data, tmp_path / "out")
    record = history(tmp_path / "out", "only area")
    errors = record["val"]["area_absolute_error"]
    assert record["best_epoch"] == errors.index(min(errors)) + 1
    assert gallery.main([str(tmp_path / "out"), str(data), "--device", "cpu"]) == 0


def test_images_and_masks_are_all_that_the_baseline_needs(data_folder, tmp_path, without_pictures):
    for split in SPLITS:
        for name in ("bboxes", "binary"):
            (data_folder / split / f"{name}.h5").unlink()
    printed = run("MTL_baseline", data_folder, tmp_path / "out", "--epochs", "1")
    assert "warning" not in printed and "bbox" not in printed
    record = history(tmp_path / "out", "baseline")
    assert record["data_fingerprint"]["train"].keys() == {"images", "masks"}
    assert list(record["class_names"]) == ["seg"]
    printed = run("MTL_main", data_folder, tmp_path / "main", "--epochs", "1")
    warned = [line.split("/")[-1] for line in printed.splitlines() if "warning" in line]
    expected = [f"{f}.h5: expected targets of '{n}', found no such file; none is known"
                for f, n in (("bboxes", "bbox"), ("binary", "bin"))]  # fmt: skip
    assert warned == expected * 3
    found = history(tmp_path / "main")
    assert found["train"]["bbox_known"] == [0] and np.isnan(found["test"]["bin_accuracy"])


def test_the_first_task_must_be_known_in_every_split(data_folder, tmp_path):
    rewrite(data_folder, "masks", np.full((5, 32, 32), 255), "val")
    printed = run("MTL_baseline", data_folder, tmp_path / "out", code=2)
    assert printed == (
        f"MTL_baseline.py: {data_folder}/val/masks.h5: expected at least one known target in val, "
        "found none\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_target_that_disagrees_with_its_source_is_one_line(shared_data, tmp_path):
    text = (ROOT / "examples" / "area.py").read_text()
    script = tmp_path / "MTL_odd.py"
    script.write_text(changed(text, ('seg=PETS["seg"]', 'seg=PETS["bbox"]')))
    printed = run(script, shared_data, tmp_path / "out", code=2)
    assert printed == (
        "MTL_odd.py: TASKS: expected 'area' to be computed from the target of 'seg', "
        "found another target of that name\n"
    )
