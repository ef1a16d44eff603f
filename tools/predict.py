"""Segment, locate and classify the animals in pictures with a trained network.

    python tools/predict.py runs/main/main_model.pt cat.jpg dog.png --out predictions
    python tools/predict.py runs/main/main_model_lite.pt FOLDER --out predictions > all.jsonl

It takes pictures of any size and format that Pillow reads: from a folder, all but hidden files;
from an animation, the first frame. Transparent parts become white, and a camera's EXIF rotation is
applied. In float pictures with values up to 1, white is 1; in other grey pictures of more than 8
bits it is the maximum of the smallest bit depth (8, 10, 12, 14 or 16) that holds all pixels. For
each picture, --out gets an overlay and the mask (255 on the animal), of the picture's size, and
stdout gets one line of JSON:

    {"image": "cat.jpg", "width": 640, "height": 480, "overlay": "predictions/cat_overlay.png",
     "mask": "predictions/cat_mask.png", "mask_area": 0.31, "box": [212.4, 80.1, 330.9, 197.5],
     "class": "cat", "probability": 0.98}

`box` is xmin, ymin, xmax, ymax in pixels, `mask_area` a share of the picture, `probability` that of
the class. What the network does not predict is absent. Other tasks add what they `describe`, with
the task's name in front where a name is taken. A mask of several classes holds their numbers.
Values per pixel are drawn to the right of the overlay and written to a .npy file.

MODEL is a file of a run: NAME_model.pt or NAME_model_lite.pt with NAME_history.pt beside it, or
NAME_last.pt of a stopped run. NAME_model.pt is a pickle, which runs code: open only those you
trust. Exit code: 0; 1 if a picture could not be read or a result could not be written, which is
named on stderr and skipped; 2 for a mistake.
"""

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from engine.trained import open_network
from parts.commandline import Parser
from parts.errors import UserError
from parts.files import replacing
from parts.fonts import split_by_font
from tools.shared.common import as_path, command, make_folder, to_stderr
from tools.shared.pictures import list_pictures, read_picture

NAME_BYTES = 200  # of a result's name; file systems take 255, and temporary files have longer names


def overlay(network, image, output):
    """An image uint8 (H, W, 3) with {task: output} drawn on it, and its words."""
    drawn, words = network.draw(torch.from_numpy(image).permute(2, 0, 1), output)
    picture = Image.fromarray(drawn.permute(1, 2, 0).contiguous().numpy())
    if words:
        write(picture, f" {words} ", max(14, round(max(image.shape[:2]) / 24)))
    return np.array(picture)


def write(picture, words, size):
    """Write words, white on black, into the upper left corner of a picture."""
    canvas, parts, x = ImageDraw.Draw(picture), split_by_font(words, size), 1.0
    width = sum(font.getlength(text) for text, font in parts)
    canvas.rectangle((1, 1, 1 + width, 1 + 1.35 * size), fill="black")
    for text, font in parts:
        canvas.text((x, 1 + size), text, "white", font, "ls")  # on one line, whatever the font
        x += font.getlength(text)


def save_array(stem, values):
    """Write uint8 values as a picture, others as they are; returns the path of the file."""
    is_picture = values.dtype == np.uint8
    path = f"{stem}.png" if is_picture else f"{stem}.npy"
    with replacing(path) as temporary:
        if is_picture:
            Image.fromarray(values).save(temporary)
        else:
            np.save(temporary, values)
    return path


def choose_stems(paths, out):
    """{picture: OUT/STEM} of {resolved path: picture}; its results are called OUT/STEM_KEY.png."""
    inputs = [path.name.lower() for path in paths if path.parent == out.resolve()]
    taken, chosen = set(), {}  # results overwrite neither each other nor the inputs
    for path in paths.values():
        name = os.fsencode(path.stem)[:NAME_BYTES].decode(errors="ignore")
        for stem in itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2))):
            start = f"{stem}_".lower()
            if start not in taken and not any(other.startswith(start) for other in inputs):
                break
        taken.add(start)
        chosen[path] = out / stem
    return chosen


@command
def main(argv):
    """Predict picture by picture; returns 1 if one was skipped, raises UserError."""
    parser = Parser("predict.py", __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="NAME_model.pt, NAME_model_lite.pt or NAME_last.pt")
    add("images", nargs="+", metavar="IMAGE", help="a picture, or a folder of pictures")
    add("--out", required=True, metavar="FOLDER", help="folder for overlays and masks")
    add("--device", metavar="DEVICE", help="cpu, cuda, ... (default: CUDA if available)")
    options, skipped = parser.parse_args(argv), False
    out = as_path(options.out, "--out")
    paths = list_pictures(options.images, out)
    network = open_network(as_path(options.model, "MODEL"), options.device)
    for path, stem in choose_stems(paths, make_folder(out, "--out")).items():
        try:
            picture, assumption, _ = read_picture(path)
        except OSError as error:
            skipped = True
            to_stderr(f"predict.py: {path}: not a readable picture ({error})")
            continue
        if assumption:
            to_stderr(f"predict.py: {path}: {assumption}")
        line = {"image": str(path), "width": picture.width, "height": picture.height}
        image = np.array(picture)
        output = network.output(image)
        line["overlay"] = overlay(network, image, output)
        line |= network.describe(output, picture.size)
        try:
            for key, value in line.items():
                if isinstance(value, np.ndarray):
                    line[key] = save_array(f"{stem}_{key}", value)
            print(json.dumps(line), flush=True)  # escapes the bytes of any name
        except UserError as error:  # the results of other pictures may be written
            skipped = True
            to_stderr(f"predict.py: {error}")
    return int(skipped)


if __name__ == "__main__":
    sys.exit(main())
