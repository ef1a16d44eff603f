"""Prediction on pictures of any kind, with a network whose answers are known."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from predicting import BLUE, ORANGE, bright, call, model, save_run, upper_half, white  # noqa: F401
from running import ROOT

from tools.shared import pictures


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
    picture, words, _ = pictures.read_picture(tmp_path / "a.tif")
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
