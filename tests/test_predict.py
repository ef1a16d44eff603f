"""Prediction on pictures of any kind, with networks whose answers are known."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import ROOT, load
from torchvision.ops import box_iou

import engine
from dataload import H5Dataset
from engine import script
from engine.evaluation import values
from parts import files
from parts.demo_data import make_demo
from parts.errors import UserError
from tools import predict
from tools.shared import common, pictures
from tools.shared.evaluated import evaluated

SIDE = (32, 64)
BLUE, ORANGE = [0, 114, 178], [230, 159, 0]  # outline of the animal, box
# Segments what is bright; always the same box and class. HEADS are the tasks that it has.
SCRIPT = """
import torch
from torch import nn

from MTL_Utils import BBOX, BIN, SEG, Task
from parts.targets import PixelValues, Values

HEADS = ("seg", "bbox", "bin")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.level = HEADS, nn.Parameter(torch.tensor(127.5))

    def forward(self, image):
        assert image.shape[2:] == (32, 64) and image.dtype == torch.uint8
        outputs = {
            "seg": image.float().mean(1, keepdim=True) - self.level,
            "bbox": torch.tensor([0.25, 0.5, 0.75, 1.0]).repeat(len(image), 1),
            "bin": torch.full((len(image),), -2.0),
            "far": image.float().mean(1, keepdim=True) / 100,
            "fur": image.float().mean((1, 2, 3)),
        }
        return {task: outputs[task] for task in self.heads}


def paint(image, value, names):
    return image.index_fill(1, torch.tensor([0]), 7), f"fur {value.item():.0f}"


def tell(output, size, names):
    mask = torch.full(size[::-1], 9, dtype=torch.uint8).numpy()
    return {"brightness": round(output.item(), 1), "mask": mask}


FUR = Task(Values("fur"), None, None, primary="error", draw=paint, describe=tell)
FAR = Task(PixelValues("far"), None, None, primary="error")
TASKS = {"seg": SEG, "far": FAR, "bbox": BBOX, "bin": BIN, "fur": FUR}
TASKS = {name: task for name, task in TASKS.items() if name in HEADS}
"""


@pytest.fixture(scope="session")
def bright(tmp_path_factory):
    """The script MTL_bright, somewhere outside the repository."""
    path = tmp_path_factory.mktemp("script") / "MTL_bright.py"
    path.write_text(SCRIPT)
    return path


def record(path, heads=("seg", "bbox", "bin"), names=("cat", "dog"), **more):
    """What a history or a checkpoint says of a run of MTL_bright."""
    config = {"EPOCHS": 3, "HEADS": heads, "demo": False}
    about = {"name": "bright", "script": str(path), "config": config, "side": SIDE}
    return about | {"class_names": {"bin": names}} | more


def save_run(path, folder, heads=("seg", "bbox", "bin"), level=127.5, **more):
    """NAME_model.pt of a run of MTL_bright, NAME_model_lite.pt and the history beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    network = script.load(path, HEADS=heads).Network()
    network.level.data.fill_(level)
    files.save(record(path, heads, **more), folder / "bright_history.pt")
    files.save(network, folder / "bright_model.pt", pickle_module=script.PICKLE)
    files.save(network.state_dict(), folder / "bright_model_lite.pt")
    return folder / "bright_model.pt"


@pytest.fixture(scope="session")
def model(bright, tmp_path_factory):
    return save_run(bright, tmp_path_factory.mktemp("model"))


def upper_half(width=200, height=100):
    """A grey picture (height, width), white above and black below."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[: height // 2] = 255
    return pixels


def white(path, size=(10, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "white").save(path)
    return path


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
    assert overlay[70, 50].tolist() == ORANGE  # the box's left side
    assert overlay[70, 149].tolist() == overlay[99, 100].tolist() == ORANGE
    assert overlay[49, 20].tolist() == BLUE and overlay[48, 20].tolist() == [255, 255, 255]
    assert overlay[2:12, 2:40].min() == 0 and overlay[2:12, 2:40].max() > 150  # the class


def test_the_animal_stays_as_it_is_and_the_rest_is_darker(call, tmp_path, bright):
    model = save_run(bright, tmp_path / "model", ("seg",))
    pixels = np.full((400, 600, 3), 100, np.uint8)
    pixels[100:300, 200:400] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    [line], _ = call(tmp_path / "a.png", model=model)
    mask, overlay = (np.asarray(Image.open(line[key])) for key in ("mask", "overlay"))
    is_line = (overlay == BLUE).all(2)
    assert (overlay[(mask > 0) & ~is_line] == pixels[(mask > 0) & ~is_line]).all()
    assert (overlay[mask == 0] == 45).all()  # 55 % darker
    assert is_line.sum() < 0.1 * (mask > 0).sum() and is_line[200, 205:395].sum() == 0


def kinds():
    """{file name: (picture, options of save)} of the same scene in all kinds of files."""
    grey, rgb = Image.fromarray(upper_half()), Image.fromarray(upper_half()).convert("RGB")
    clear = Image.new("RGBA", rgb.size, (0, 0, 0, 0))  # black, but transparent: white
    clear.paste((0, 0, 0, 255), (0, 50, 200, 100))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held so that the picture must be turned by 90 degrees
    good = {"quality": 95}
    return {
        "grey.png": (grey, {}),
        "rgb.jpg": (rgb, good),
        "CAPITALS.JPEG": (rgb, good),
        "cmyk.jpg": (rgb.convert("CMYK"), good),
        "rgba.png": (clear, {}),
        "palette.png": (rgb.quantize(2), {}),
        "bits.png": (grey.convert("1"), {}),
        "turned.jpg": (rgb.transpose(Image.Transpose.ROTATE_90), {"exif": turned, **good}),
        "sixteen.png": (Image.fromarray(upper_half().astype(np.uint16) * 257), {}),
        "float.tif": (Image.fromarray(upper_half().astype(np.float32) / 255), {}),
        "la.png": (clear.convert("LA"), {}),
        "moves.gif": (rgb, {"save_all": True, "append_images": [Image.new("RGB", rgb.size)]}),
        "web.webp": (rgb, {"lossless": True}),
        "file.jfif": (rgb, {"format": "JPEG", **good}),
        "windows.bmp": (rgb, {}),
        "scan.TIFF": (rgb, {}),
    }


def test_every_kind_of_file_in_a_folder(call, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, (picture, options) in kinds().items():
        picture.save(folder / name, **options)
    for name in ("notes.txt", "._rgb.jpg", ".hidden.png", "images.h5", "clip.mpg", "paper.pdf"):
        (folder / name).write_text("no picture")
    (folder / "album.png").mkdir()
    lines, errors = call(folder)
    assert errors == ""
    assert sorted(line["image"] for line in lines) == sorted(str(folder / n) for n in kinds())
    for line in lines:
        assert (line["width"], line["height"]) == (200, 100), line["image"]
        mask = np.asarray(Image.open(line["mask"]))
        assert (mask != upper_half()).mean() <= 0.01, line["image"]


@pytest.mark.parametrize(
    ("values", "dtype", "expected", "bits"),
    [
        ([0, 2570, 51400, 65535], "uint16", [0, 10, 200, 255], None),
        ([0, 819, 1638, 4095], "uint16", [0, 51, 102, 255], 12),
        ([0, 819, 1638, 4000], "int32", [0, 51, 102, 249], 12),
        ([0, 10, 200, 255], "uint16", [0, 10, 200, 255], 8),
        ([0, 0, 341, 1023], "uint16", [0, 0, 85, 255], 10),
        ([0, 0, 0, 16383], "uint16", [0, 0, 0, 255], 14),
        ([0, 257, 514, 65535], "int32", [0, 1, 2, 255], None),
        ([0.0, 0.2, 0.4, 0.999], "float32", [0, 51, 102, 255], None),
        ([0.0, 51.0, 102.4, 255.0], "float32", [0, 51, 102, 255], 8),
        ([0.0, 257.0, 514.0, 65535.0], "float32", [0, 1, 2, 255], None),
    ],
)
def test_deep_greys_are_scaled_not_cut(tmp_path, values, dtype, expected, bits):
    Image.fromarray(np.array([values], dtype)).save(tmp_path / "a.tif")
    picture, words = pictures.read_picture(tmp_path / "a.tif")
    assert np.asarray(picture)[0, :, 0].tolist() == expected
    assert words == (f"values up to {max(values):g}, taken as {bits} bits" if bits else "")


def test_what_was_assumed_is_said(call, tmp_path):
    Image.fromarray(np.full((10, 10), 4095, np.uint16)).save(tmp_path / "a.png")
    lines, errors = call(tmp_path / "a.png")
    assert errors == f"predict.py: {tmp_path / 'a.png'}: values up to 4095, taken as 12 bits\n"
    assert lines[0]["mask_area"] == 1


@pytest.mark.parametrize(
    ("values", "dtype", "found"),
    [
        ([0, 70000], "int32", "0 to 70000"),
        ([-5, 100], "int32", "-5 to 100"),
        ([-1.0, 1.0], "float32", "-1 to 1"),
        ([0.0, float("nan")], "float32", "nan to nan"),
        ([0.0, float("inf")], "float32", "0 to inf"),
    ],
)
def test_numbers_without_a_usual_meaning_are_refused(call, tmp_path, values, dtype, found):
    Image.fromarray(np.array([values], dtype)).save(tmp_path / "a.tif")
    lines, errors = call(tmp_path / "a.tif", white(tmp_path / "b.png"), code=1)
    reason = f"not a readable picture (expected values from 0 to 65535, found {found})"
    assert errors == f"predict.py: {tmp_path / 'a.tif'}: {reason}\n"
    assert len(lines) == 1


@pytest.mark.parametrize("largest", [4095, 65535])
def test_colours_of_sixteen_bits(call, tmp_path, largest):
    """Pillow keeps their upper 8 bits, of which 12-bit colours use 4."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)  # 4 x 4, 16 bits, RGB
    rows = (b"\0" + struct.pack(">12H", *[largest] * 12)) * 4
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    lines, errors = call(tmp_path / "a.png", code=int(largest == 4095))
    if largest == 4095:
        assert "(expected colours of 16 bits, found no value above 4095 of 65535)" in errors
    else:
        assert lines[0]["mask_area"] == 1 and errors == ""


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (700, 2)])
def test_any_size(call, tmp_path, size):
    [line], _ = call(white(tmp_path / "a.png", size))
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
    lines, errors = call(tmp_path / "text.jpg", tmp_path / "missing.jpg", code=1)
    assert lines == [] and errors.count("\n") == 2


@pytest.mark.parametrize("tasks", [("seg",), ("seg", "bbox"), ("seg", "bin"), ("bbox", "bin")])
def test_what_a_network_does_not_predict_is_absent(call, tmp_path, bright, tasks):
    Image.fromarray(upper_half()).save(tmp_path / "a.png")
    [line], _ = call(tmp_path / "a.png", model=save_run(bright, tmp_path / "model", tasks))
    assert ("mask" in line) == ("mask_area" in line) == ("seg" in tasks)
    assert ("box" in line) == ("bbox" in tasks)
    assert ("class" in line) == ("probability" in line) == ("bin" in tasks)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"a_overlay.png"} | ({"a_mask.png"} if "seg" in tasks else set())
    overlay = np.asarray(Image.open(line["overlay"]))
    assert (overlay[49, 20].tolist() == BLUE) == ("seg" in tasks)
    assert (overlay[70, 50].tolist() == ORANGE) == ("bbox" in tasks)
    assert (overlay[2:12, 2:40].min() == 0) == ("bin" in tasks)  # black behind the class


def test_a_task_of_the_users_own(call, tmp_path, bright):
    model = save_run(bright, tmp_path / "model", ("seg", "fur"))
    [line], _ = call(white(tmp_path / "a.png", (64, 32)), model=model)
    assert line["brightness"] == 255.0
    assert line["mask_area"] == 1.0
    assert np.all(np.asarray(Image.open(line["mask"])) == 255)
    assert line["fur_mask"] == str(tmp_path / "out/a_fur_mask.png")  # the name was taken
    assert np.all(np.asarray(Image.open(line["fur_mask"])) == 9)
    overlay = np.asarray(Image.open(line["overlay"]))
    assert np.all(overlay[0] == 7)  # on top of the mask, since it comes later in TASKS
    assert overlay[5:9, 3:40].min() == 0 and overlay[5:9, 3:40].max() > 150  # "fur 255"


def test_a_map_stands_beside_what_the_other_tasks_draw(call, tmp_path, bright):
    model = save_run(bright, tmp_path / "model", ("seg", "far", "bbox"))
    Image.fromarray(upper_half()).save(tmp_path / "a.png")
    [line], _ = call(tmp_path / "a.png", model=model)
    values = np.load(line["map"])
    assert line["map"] == str(tmp_path / "out/a_map.npy") and line["map_mean"] == 1.275
    assert values.shape == (100, 200, 1) and values.dtype == np.float32
    assert values[10, 10, 0] == pytest.approx(2.55) and values[90, 10, 0] == 0
    overlay = np.asarray(Image.open(line["overlay"]))
    assert overlay.shape == (100, 400, 3)
    assert overlay[49, 20].tolist() == BLUE and overlay[70, 50].tolist() == ORANGE
    assert (overlay[20:40, 300] == 255).all() and (overlay[60:, 200:] == 0).all()


def test_one_name_in_two_folders(call, tmp_path):
    for number, name in enumerate(("x/a.png", "y/a.jpg", "y/A-2.png")):
        white(tmp_path / name, (10 + number, 10))
    lines, _ = call(tmp_path / "x", tmp_path / "y/a.jpg", tmp_path / "y", tmp_path / "x/a.png")
    assert len({line["mask"].lower() for line in lines}) == len(lines) == 3  # each file once
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


def test_long_names_are_shortened(call, tmp_path):
    names = [80 * "猫" + ".png", 79 * "猫" + "犬.png", 250 * "a" + ".png"]
    for place, name in enumerate(names):
        white(tmp_path / name, (10 + place, 10))
    lines, errors = call(*(tmp_path / name for name in names))
    assert errors == ""
    assert [line["image"] for line in lines] == [str(tmp_path / name) for name in names]
    stems = [66 * "猫", 66 * "猫" + "-2", 200 * "a"]  # 3 bytes each in UTF-8
    for stem, line in zip(stems, lines, strict=True):
        assert Path(line["overlay"]).name == f"{stem}_overlay.png"
        assert Image.open(line["mask"]).width == line["width"]


def test_a_result_that_cannot_be_written_costs_that_picture_alone(call, tmp_path):
    pictures = [white(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    (tmp_path / "out/b_mask.png").mkdir(parents=True)
    lines, errors = call(*pictures, code=1)
    assert [line["image"] for line in lines] == [str(pictures[0]), str(pictures[2])]
    path = tmp_path / "out/b_mask.png"
    assert errors == f"predict.py: {path}: cannot be written (Is a directory)\n"


# ------------------------------------------------------------------------- networks


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
    network = engine.open_network(str(model), "cpu")
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


@pytest.mark.parametrize(("logit", "shown"), [(7.0, "0.99+"), (40.0, "0.99+"), (-2.0, "0.88")])
def test_no_rounding_makes_a_class_certain(model, logit, shown):
    network = engine.open_network(model, "cpu")
    image = torch.zeros(3, *SIDE, dtype=torch.uint8)
    _, words = network.draw(image, {"bin": torch.tensor([logit])})
    assert words == f"{'dog' if logit > 0 else 'cat'}, probability {shown}"


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


def test_a_script_that_has_moved_is_found_beside_its_run(call, bright, tmp_path):
    white(tmp_path / "a.png")
    model = save_run(bright, tmp_path / "run")
    path = model.with_name("bright_history.pt")
    torch.save(record(tmp_path / "away" / "MTL_bright.py"), path)
    _, error = call(tmp_path / "a.png", model=model, code=2)
    looked = f"{tmp_path / 'away' / 'MTL_bright.py'}, {tmp_path / 'run' / 'MTL_bright.py'}"
    assert "MTL_bright.py: expected a script, found no such file; looked for " in error
    assert looked in error and error.count("\n") == 1
    shutil.copy(bright, tmp_path / "run")
    [line], _ = call(tmp_path / "a.png", model=model)
    assert line["mask_area"] == 1


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


# ---------------------------------------------------------------- where a tool is run


def test_home_and_empty_paths(call, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    white(tmp_path / "a.png")
    [line], _ = call("~/a.png", out="~/results")
    assert line["overlay"] == str(tmp_path / "results/a_overlay.png")
    assert line["image"] == str(tmp_path / "a.png")
    _, error = call("~/a.png", out="", code=2)
    assert error == "predict.py: --out: expected a path, found an empty one\n"
    _, error = call("~/a.png", model="", code=2)
    assert error == "predict.py: MODEL: expected a path, found an empty one\n"


def test_make_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert common.make_folder("~/new/folder", "--out") == tmp_path / "new/folder"
    assert (tmp_path / "new/folder").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out: cannot make the folder"):
        common.make_folder(tmp_path / "file/new", "--out")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="--out: expected a writable folder, found"):
        common.make_folder(tmp_path, "--out")


def test_what_torchrun_left_in_the_environment_is_ignored(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    processes = common.choose_device("cpu")
    assert (processes.rank, processes.size, processes.local_rank) == (0, 1, 0)
    assert processes.device == torch.device("cpu")


def interrupted(argv):
    raise KeyboardInterrupt


def speaks(argv):
    print("Δ 猫")


def refused(argv):
    Path(argv[0]).read_bytes()


def too_large(argv):
    raise MemoryError


def test_ctrl_c_and_what_the_system_refuses(capsys, tmp_path):
    assert common.run_tool("tool.py", interrupted, None) == 130
    assert capsys.readouterr().err == "tool.py: interrupted\n"
    assert common.run_tool("tool.py", refused, [tmp_path / "x"]) == 2
    assert capsys.readouterr().err == f"tool.py: {tmp_path / 'x'}: No such file or directory\n"
    assert common.run_tool("tool.py", too_large, None) == 2
    assert capsys.readouterr().err.startswith("tool.py: expected enough memory, found too little;")


def test_streams_that_go_away_or_take_few_letters(monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", os.fdopen(writing, "w"))
        assert common.run_tool("tool.py", speaks, None) == 0
    assert capsys.readouterr().err == ""
    with monkeypatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, "stdout", full)
        assert common.run_tool("tool.py", speaks, None) == 2
    assert capsys.readouterr().err == "tool.py: stdout: No space left on device\n"
    narrow = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(narrow, encoding="cp1252"))
        assert common.run_tool("tool.py", speaks, None) == 0
        assert narrow.getvalue() == b"\\u0394 \\u732b\n"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", None)
        assert common.run_tool("tool.py", speaks, None) == 0
        assert common.run_tool("tool.py", interrupted, None) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_has_seen_enough(model, tmp_path):
    """As a process of its own, under all that a notebook and torchrun leave in the environment."""
    left = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "OMP_NUM_THREADS": "1"}
    left |= {"WORLD_SIZE": "2", "RANK": "0", "PYTHONIOENCODING": "cp1252"}
    pictures = [white(tmp_path / f"{number}é猫.png") for number in range(9)]
    command = [sys.executable, ROOT / "tools/predict.py", model, *pictures]
    with subprocess.Popen(
        [*command, "--out", tmp_path / "out"], env=os.environ | left,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        line = json.loads(process.stdout.readline())
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert line["image"] == str(pictures[0])
    assert not (tmp_path / "out/8é猫_overlay.png").exists()


def test_the_network_in_weights_finds_drawn_pets(tmp_path):
    """The file of weights/: small, safe to open, and better than chance on drawings."""
    path = ROOT / "weights" / "OEQ_model_lite.pt"
    assert path.stat().st_size <= 4e6
    network = engine.open_network(path, "cpu")
    assert network.side == (256, 256) and network.class_names["bin"] == ("cat", "dog")
    make_demo(tmp_path, 256, (1, 1, 8))
    dataset = H5Dataset("test", tmp_path)
    found = values(network.tasks, evaluated(network, dataset))
    everything = np.concatenate(list(dataset.slabs("seg"))).mean()  # foreground everywhere
    assert found["seg_iou"] > 1.3 * everything, (found, everything)
    assert found["bbox_iou"] > 0.2, found
