"""Trained networks, opened by tools/predict.py and from Python."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from predicting import SIDE, bright, call, model, record, save_run, upper_half, white  # noqa: F401
from running import ROOT, load
from torchvision.ops import box_iou

import engine
from dataload import H5Dataset
from engine.evaluation import values
from parts.demo_data import make_demo
from parts.errors import UserError
from tools.shared.evaluated import evaluate_split


@pytest.mark.parametrize("ending", ["model.pt", "model_lite.pt", "last.pt"])
def test_a_finished_run_answers_as_in_its_evaluation(call, finished, shared_data, ending, tmp_path):
    folder, run = tmp_path / "pictures", finished["MTL_main"]
    folder.mkdir()
    images, targets = H5Dataset("test", shared_data)[list(range(7))]
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    lines, errors = call(folder, model=run / f"main_{ending}")
    assert errors == "" and len(lines) == 7
    test = load(run / "main_history.pt")["test"]
    masks = [np.asarray(Image.open(line["mask"])) > 0 for line in lines]
    truths = [target[0].numpy() == 1 for target in targets["seg"]]
    pairs = list(zip(masks, truths, strict=True))
    ious = [(mask & truth).sum() / (mask | truth).sum() for mask, truth in pairs]
    assert np.mean(ious) == pytest.approx(test["seg_image_iou"], abs=1e-6)
    right = [line["class"] == ("blue", "red")[i % 2] for i, line in enumerate(lines)]
    assert np.mean(right) == pytest.approx(test["bin_accuracy"])
    boxes = torch.tensor([line["box"] for line in lines]) / 32
    ious = box_iou(boxes, targets["bbox"]).diagonal()
    assert ious.mean().item() == pytest.approx(test["bbox_iou"], abs=0.01)


def test_from_python(call, model, tmp_path):
    Image.fromarray(upper_half()).save(tmp_path / "a.png")
    [line], _ = call(tmp_path / "a.png")
    beside = Path(str(model).replace("_model_lite.pt", "_history.pt"))
    network = engine.open_network(beside if beside.is_file() else str(model), "cpu")
    found = network.predict(np.stack([upper_half()] * 3, axis=2))
    assert found["mask"].dtype == np.uint8 and np.array_equal(found.pop("mask"), upper_half())
    assert found == {key: line[key] for key in ("mask_area", "box", "class", "probability")}
    assert list(network.tasks) == ["seg", "bbox", "bin"] and network.history["name"] == "bright"
    assert network.class_names["bin"] == ("cat", "dog")
    outputs = network.outputs(torch.full((2, 3, *SIDE), 255, dtype=torch.uint8))
    assert [tuple(each["seg"].shape) for each in outputs] == [(1, *SIDE)] * 2
    for wrong in (np.zeros((8, 8)), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(UserError, match=r"expected an image uint8 \(H, W, 3\), found "):
            network.predict(wrong)


def checkpoint(about, level, seconds, best_epoch=2, **more):
    """What NAME_last.pt of MTL_bright holds."""
    best = None if level is None else {"level": torch.tensor(level)}
    history = {"train": {}, "val": {}, "best_epoch": best_epoch, "seconds": seconds}
    return {"about": about, "history": history, "best": best, "network": {}} | more


def test_a_stopped_run_gives_its_best_weights_and_says_so(call, bright, tmp_path):
    path, about = tmp_path / "bright_last.pt", record(bright)
    grey = tmp_path / "a.png"
    Image.new("L", (64, 32), 100).save(grey)
    torch.save(checkpoint(about, 50.0, [1.0, 1.0]), path)  # 100 is bright for these weights
    [line], errors = call(grey, model=path)
    assert line["mask_area"] == 1
    words = "the run is unfinished; these are the weights of epoch 2, the best of 2 out of 3"
    assert errors == f"{path}: {words}\n"
    torch.save(checkpoint(about, 150.0, [1.0, 1.0, 1.0]), path)
    [line], errors = call(grey, model=path)
    assert line["mask_area"] == 0 and errors == ""
    torch.save(checkpoint(about, None, []), path)
    _, errors = call(grey, model=path, code=2)
    assert errors.endswith("expected weights, found a run that has not finished an epoch\n")
    torch.save({"settings": {}, "network": {}}, path)
    _, errors = call(grey, model=path, code=2)
    assert errors.endswith("expected a checkpoint of this version, found something else\n")


def test_weights_that_carry_their_history_open_alone(call, bright, tmp_path):
    path, state = tmp_path / "shipped_model_lite.pt", {"level": torch.tensor(50.0)}
    torch.save({"state": state, "about": record(bright)}, path)
    Image.new("L", (64, 32), 100).save(tmp_path / "a.png")
    [line], errors = call(tmp_path / "a.png", model=path)
    assert (line["mask_area"], line["class"], errors) == (1, "cat", "")
    torch.save({"state": state, "about": {"name": "bright"}}, path)
    _, errors = call(tmp_path / "a.png", model=path, code=2)
    assert errors == f"predict.py: {path}: expected a history, found no config, side in it\n"


def test_an_older_history_names_no_script_and_no_task_of_its_classes(finished, tmp_path):
    shutil.copytree(finished["MTL_main"], tmp_path / "run")
    history = load(tmp_path / "run" / "main_history.pt")
    del history["script"]
    history["config"]["KERNEL"] = 3  # a constant that the script no longer has
    torch.save(history | {"class_names": ("blue", "red")}, tmp_path / "run" / "main_history.pt")
    network = engine.open_network(tmp_path / "run" / "main_model.pt", "cpu")
    assert network.class_names["bin"] == ("blue", "red")
    assert network.class_names["seg"] == ("background", "foreground")


class Code:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("file", ["model_lite.pt", "history.pt", "last.pt"])
def test_all_but_whole_networks_run_no_code(call, bright, tmp_path, file):
    white(tmp_path / "a.png")
    save_run(bright, tmp_path / "run")
    torch.save(Code(tmp_path / "ran"), tmp_path / "run" / f"bright_{file}")
    model = tmp_path / "run" / ("bright_last.pt" if file == "last.pt" else "bright_model_lite.pt")
    _, error = call(tmp_path / "a.png", model=model, code=2)
    assert f"{file}: expected a checkpoint, found a damaged file" in error
    assert not (tmp_path / "ran").exists()


def test_mistakes_end_in_one_line(call, bright, model, tmp_path):
    white(tmp_path / "a.png")

    def message(path, *flags, picture=tmp_path / "a.png"):
        lines, error = call(picture, *flags, model=path, code=2)
        assert lines == [] and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return error

    wanted = "expected a file NAME_model.pt, NAME_model_lite.pt or NAME_last.pt, found "
    assert wanted + "no such file" in message(tmp_path / "no_model.pt")
    assert f"{wanted}{tmp_path / 'a.png'}" in message(tmp_path / "a.png")
    for ending in ("model.pt", "model_lite.pt"):
        alone = tmp_path / f"alone_{ending}"
        shutil.copy(model.with_name(f"bright_{ending}"), alone)
        assert "alone_history.pt: expected the history beside the network" in message(alone)
    whole = save_run(bright, tmp_path / "run")
    torch.save({"weight": torch.ones(1)}, whole)
    assert f"expected the weights of {bright}, found others" in message(whole)
    torch.save([1], whole)
    assert "bright_model.pt: expected weights, found something else" in message(whole)
    whole.write_bytes(b"damaged")
    assert "bright_model.pt: expected a network, found a damaged file" in message(whole)
    lite = whole.with_name("bright_model_lite.pt")
    for wrong in ({"weight": torch.ones(1)}, {"level": 1.0}, torch.ones(1), [1], {}):
        torch.save(wrong, lite)
        assert f"expected the weights of {bright}, found others" in message(lite)
    torch.save(torch.ones(3), whole.with_name("bright_history.pt"))
    assert "expected a history, found no name, config, side in it" in message(lite)
    for device in ("toaster", "meta"):
        assert "--device: expected a usable device" in message(model, "--device", device)
    (tmp_path / "empty").mkdir()
    empty = message(model, picture=tmp_path / "empty")
    assert f"{tmp_path / 'empty'}: expected pictures (.jpg, .png, ...), found none" in empty
    assert "IMAGE: expected a path, found an empty one" in message(model, picture="")


def test_the_networks_in_weights_agree_on_a_photo():
    paths = sorted((ROOT / "weights").glob("*.pt"))
    assert len(paths) == 2 and sum(path.stat().st_size for path in paths) <= 12e6
    photo = np.array(Image.open(ROOT / "docs" / "photo.jpg"))
    first, second = (engine.open_network(path, "cpu").predict(photo) for path in paths)
    assert first["class"] == second["class"] == "dog"
    both, either = first["mask"] & second["mask"], first["mask"] | second["mask"]
    assert (both > 0).sum() > 0.9 * (either > 0).sum()
    boxes = (torch.tensor(answer["box"])[None] for answer in (first, second))
    assert box_iou(*boxes).item() > 0.6


def test_the_network_in_weights_finds_drawn_pets(tmp_path):
    """MTL_OEQ is better than chance on drawings."""
    path = ROOT / "weights" / "OEQ_model_lite.pt"
    network = engine.open_network(path, "cpu")
    assert network.side == (256, 256) and network.class_names["bin"] == ("cat", "dog")
    make_demo(tmp_path, 256, (1, 1, 8))
    dataset = H5Dataset("test", tmp_path)
    found = values(network.tasks, evaluate_split(network, dataset))
    everything = np.concatenate(list(dataset.slabs("seg"))).mean()  # foreground everywhere
    assert found["seg_iou"] > 1.3 * everything, (found, everything)
    assert found["bbox_iou"] > 0.2, found
