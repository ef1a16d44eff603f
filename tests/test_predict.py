"""Prediction on pictures of any kind, with networks whose answers are known."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.cli import constants
from engine.loop import autocast
from PIL import Image
from torch import nn

import MTL_main
from dataload import H5Dataset
from tools import predict

SIDE = (32, 64)


class Bright(nn.Module):
    """Segments what is bright; always the same box and class, if it is to have them."""

    def __init__(self, *tasks):
        super().__init__()
        self.tasks = tasks

    def forward(self, image):
        assert image.shape[1:] == (3, *SIDE) and image.dtype == torch.uint8
        outputs = {
            "seg": image.float().mean(1, keepdim=True) - 127.5,
            "bbox": torch.tensor([0.25, 0.5, 0.75, 1.0]).repeat(len(image), 1),
            "bin": torch.full((len(image),), -2.0),
        }
        return {task: outputs[task] for task in self.tasks}


def save_network(folder, network, name="main", side=SIDE, **more):
    folder.mkdir(parents=True, exist_ok=True)
    history = {"name": name, "config": {}, "side": side, "class_names": ("cat", "dog")} | more
    torch.save(history, folder / f"{name}_history.pt")
    torch.save(network, folder / f"{name}_model.pt")
    return folder / f"{name}_model.pt"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("model"), Bright("seg", "bbox", "bin"))


def upper_half(width=200, height=100):
    """A grey picture (height, width), white above and black below."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[: height // 2] = 255
    return pixels


@pytest.fixture
def call(model, tmp_path, capsys):
    """A function that runs the tool: (lines of JSON, stderr)."""

    def run(*arguments, code=0, model=model, out=tmp_path / "out"):
        assert predict.main([str(model), *map(str, arguments), "--out", str(out)]) == code
        printed = capsys.readouterr()
        return [json.loads(line) for line in printed.out.splitlines()], printed.err

    return run


def test_one_picture(call, tmp_path):
    Image.fromarray(upper_half()).save(tmp_path / "a.png")
    [line], errors = call(tmp_path / "a.png")
    assert errors == ""
    assert line == {
        "image": str(tmp_path / "a.png"), "width": 200, "height": 100,
        "overlay": str(tmp_path / "out/a_overlay.png"), "mask": str(tmp_path / "out/a_mask.png"),
        "mask_area": 0.5, "box": [50.0, 50.0, 150.0, 100.0],
        "class": "cat", "probability": round(1 / (1 + np.exp(-2.0)), 4),
    }  # fmt: skip
    mask = Image.open(line["mask"])
    assert mask.mode == "L"
    assert np.array_equal(np.asarray(mask), upper_half())
    overlay = np.asarray(Image.open(line["overlay"]))
    assert overlay.shape == (100, 200, 3)
    assert overlay[70, 50].tolist() == [230, 159, 0]  # the box's left side
    assert overlay[25, 150].tolist() == [140, 192, 220]  # white, 45 % blue
    assert overlay[90, 20].tolist() == [0, 0, 0]
    assert overlay[1:14, 1:40].min() == 0 and overlay[1:14, 1:40].max() > 150  # the class


def kinds():
    """{file name: (picture, options of save)} of the same scene in all kinds of files."""
    grey, rgb = Image.fromarray(upper_half()), Image.fromarray(upper_half()).convert("RGB")
    clear = Image.new("RGBA", rgb.size, (0, 0, 0, 0))  # black, but transparent: white
    clear.paste((0, 0, 0, 255), (0, 50, 200, 100))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held so that the picture must be turned by 90 degrees
    palette = rgb.quantize(2)
    return {
        "grey.png": (grey, {}),
        "rgb.jpg": (rgb, {"quality": 95}),
        "CAPITALS.JPEG": (rgb, {"quality": 95}),
        "cmyk.jpg": (rgb.convert("CMYK"), {"quality": 95}),
        "rgba.png": (clear, {}),
        "palette.png": (palette, {}),
        "bits.png": (grey.convert("1"), {}),
        "turned.jpg": (rgb.transpose(Image.Transpose.ROTATE_90), {"exif": turned, "quality": 95}),
        "sixteen.png": (Image.fromarray(upper_half().astype(np.uint16) * 257), {}),
        "la.png": (clear.convert("LA"), {}),
    }


def test_every_kind_of_file_in_batches_of_a_folder(call, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, (picture, options) in kinds().items():
        picture.save(folder / name, **options)
    (folder / "notes.txt").write_text("no picture")
    lines, errors = call(folder, "--batch-size", "3")
    assert errors == ""
    assert sorted(line["image"] for line in lines) == sorted(str(folder / n) for n in kinds())
    for line in lines:
        assert (line["width"], line["height"]) == (200, 100), line["image"]
        mask = np.asarray(Image.open(line["mask"]))
        assert (mask != upper_half()).mean() <= 0.01, line["image"]


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    pixels = np.array([[0, 257 * 10, 257 * 200, 65535]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = np.asarray(predict.read_picture(tmp_path / "a.png"))
    assert picture[0, :, 0].tolist() == [0, 10, 200, 255]


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (700, 2)])
def test_any_size(call, tmp_path, size):
    Image.new("RGB", size, "white").save(tmp_path / "a.png")
    [line], _ = call(tmp_path / "a.png")
    assert Image.open(line["mask"]).size == Image.open(line["overlay"]).size == size
    assert line["mask_area"] == 1


def test_unreadable_pictures_are_named_and_skipped(call, tmp_path):
    Image.fromarray(upper_half()).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    names = ("cut.png", "good.png", "text.jpg", "missing.jpg")
    lines, errors = call(*(tmp_path / name for name in names), code=1)
    assert [line["image"] for line in lines] == [str(tmp_path / "good.png")]
    errors = errors.splitlines()
    assert len(errors) == 3
    for name, error in zip(("cut.png", "text.jpg", "missing.jpg"), errors, strict=True):
        assert error.startswith(f"predict.py: {tmp_path / name}: not a readable picture (")


@pytest.mark.parametrize("tasks", [("seg",), ("seg", "bbox"), ("seg", "bin"), ("bbox", "bin")])
def test_what_a_network_does_not_predict_is_absent(call, tmp_path, tasks):
    Image.fromarray(upper_half()).save(tmp_path / "a.png")
    model = save_network(tmp_path / "model", Bright(*tasks))
    [line], _ = call(tmp_path / "a.png", model=model)
    assert ("mask" in line) == ("mask_area" in line) == ("seg" in tasks)
    assert ("box" in line) == ("bbox" in tasks)
    assert ("class" in line) == ("probability" in line) == ("bin" in tasks)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"a_overlay.png"} | ({"a_mask.png"} if "seg" in tasks else set())


def test_one_name_in_two_folders(call, tmp_path):
    for number, name in enumerate(("x/a.png", "y/a.jpg", "y/a-2.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (10 + number, 10), "white").save(tmp_path / name)
    lines, _ = call(tmp_path / "x", tmp_path / "y/a.jpg", tmp_path / "y", tmp_path / "x/a.png")
    assert len({line["mask"] for line in lines}) == len(lines) == 3  # each file once
    for line in lines:
        assert Image.open(line["mask"]).size == (line["width"], 10)


def test_pictures_are_not_overwritten(call, tmp_path):
    for name in ("a.png", "a_mask.png"):
        Image.fromarray(upper_half()).save(tmp_path / name)
    before = (tmp_path / "a_mask.png").read_bytes()
    lines, _ = call(tmp_path / "a.png", tmp_path / "a_mask.png", out=tmp_path)
    assert [line["mask"] for line in lines] == [
        str(tmp_path / name) for name in ("a-2_mask.png", "a_mask_mask.png")
    ]
    assert (tmp_path / "a_mask.png").read_bytes() == before
    _, error = call(tmp_path, out=tmp_path, code=2)
    assert "--out: expected another folder than the pictures'" in error


@pytest.mark.parametrize("ending", ["model.pt", "model_lite.pt"])
def test_a_real_network_answers_as_in_the_evaluation(
    call, shared_data, tmp_path, monkeypatch, ending
):
    for name, value in constants(MTL_main).items():  # undone after the test
        monkeypatch.setattr(MTL_main, name, value)
    MTL_main.WIDTHS, MTL_main.SIZE = (8, 8, 8, 8), 1
    torch.manual_seed(0)
    network = MTL_main.Network().eval()
    config = {"WIDTHS": (8, 8, 8, 8), "SIZE": 1, "demo": False}
    save_network(tmp_path / "run", network, side=(32, 32), config=config)
    torch.save(network.state_dict(), tmp_path / "run/main_model_lite.pt")
    MTL_main.WIDTHS = (16, 16, 16, 16)  # the history tells the right one
    images, _ = H5Dataset("test", shared_data).batch(range(7))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    lines, _ = call(folder, model=tmp_path / "run" / f"main_{ending}")
    with torch.inference_mode(), autocast(images.device):
        outputs = network(images)
    for i, line in enumerate(lines):
        mask = np.asarray(Image.open(line["mask"]))
        assert np.array_equal(mask > 0, (outputs["seg"][i, 0] > 0).numpy())
        assert line["box"] == pytest.approx((outputs["bbox"][i].float() * 32).tolist(), abs=0.06)
        known = torch.sigmoid(outputs["bin"][i].float()).item()
        assert line["probability"] == pytest.approx(max(known, 1 - known), abs=1e-4)


class Code:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("file", ["main_model_lite.pt", "main_history.pt"])
def test_weights_and_histories_run_no_code(call, tmp_path, file):
    Image.fromarray(upper_half()).save(tmp_path / "a.png")
    model = save_network(tmp_path / "run", Bright("seg")).with_name("main_model_lite.pt")
    torch.save({}, model)
    torch.save(Code(tmp_path / "ran"), model.with_name(file))
    _, error = call(tmp_path / "a.png", model=model, code=2)
    assert f"{file}: expected a checkpoint, found a damaged file" in error
    assert not (tmp_path / "ran").exists()


def test_mistakes_end_in_one_line(call, model, tmp_path, monkeypatch):
    Image.fromarray(upper_half()).save(tmp_path / "a.png")

    def message(path, *flags, picture=tmp_path / "a.png"):
        lines, error = call(picture, *flags, model=path, code=2)
        assert lines == [] and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return error

    assert "expected a file NAME_model.pt or NAME_model_lite.pt, found no such file" in message(
        tmp_path / "no_model.pt"
    )
    assert "found a.png" in message(tmp_path / "a.png")
    alone = tmp_path / "alone_model.pt"
    shutil.copy(model, alone)
    assert "alone_history.pt: expected the history beside the network" in message(alone)
    state = save_network(tmp_path / "state", {"weight": torch.ones(1)})
    assert "expected a whole network, found a dict" in message(state)
    state.write_bytes(b"damaged")
    assert "main_model.pt: expected a whole network, found a damaged file" in message(state)
    lite = state.with_name("main_model_lite.pt")
    torch.save({"weight": torch.ones(1)}, lite)
    assert "expected the weights of MTL_main.Network, found others" in message(lite)
    save_network(tmp_path / "state", None, name="sixth")
    torch.save({}, tmp_path / "state/sixth_model_lite.pt")
    assert "MTL_sixth.py: expected the run's script" in message(
        tmp_path / "state/sixth_model_lite.pt"
    )
    assert "--device: expected a usable device" in message(model, "--device", "toaster")
    (tmp_path / "empty").mkdir()
    assert "expected .jpg, .jpeg, .png files, found none" in message(
        model, picture=tmp_path / "empty"
    )
    with pytest.raises(SystemExit) as stopped:
        message(model, "--batch-size", "0")
    assert stopped.value.code == 2
