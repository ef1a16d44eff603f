"""Let a trained network find, locate and segment the animal in pictures.

    python tools/predict.py runs/main/main_model.pt cat.jpg dog.png --out predictions
    python tools/predict.py runs/main/main_model_lite.pt FOLDER --out predictions > all.jsonl

Takes any picture Pillow reads, of any size; of a folder, its JPEG and PNG files. Transparent parts
are taken as white, 16-bit greys are scaled to 8 bits, and the rotation that a camera noted is
applied. For each picture OUT gets NAME_mask.png (255 on the animal) and NAME_overlay.png, both in
the picture's own size, and stdout one line of JSON:

    {"image": "cat.jpg", "width": 640, "height": 480, "overlay": "predictions/cat_overlay.png",
     "mask": "predictions/cat_mask.png", "mask_area": 0.31, "box": [212.4, 80.1, 330.9, 197.5],
     "class": "cat", "probability": 0.98}

`box` is xmin, ymin, xmax, ymax in pixels, `mask_area` a share of the picture, `probability` that of
the class. What the network does not predict is absent.

MODEL is a file that a run has left, NAME_model.pt or NAME_model_lite.pt, with NAME_history.pt
beside it. NAME_model.pt is a pickle, that is, code: open only those you trust. NAME_model_lite.pt
holds nothing but numbers and needs the script MTL_NAME.py.

Exit code: 0, 1 if a picture could not be read (it is named on stderr and skipped), 2 for a mistake.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import Parser, UserError
from engine.loop import predict

from engine.artefacts import replacing
from engine.pictures import BLUE, ORANGE
from tools.common import choose_device, make_folder, run_tool
from tools.networks import open_network

ENDINGS = (".jpg", ".jpeg", ".png")  # looked for in a folder
TINT = 0.45  # how much of the mask's colour covers the picture


def read_picture(path):
    """An upright RGB picture, 8 bits a channel.

    Raises:
        OSError: it is missing, damaged or no picture; the message is one line.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            picture.load()
        if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut at 255
            grey = np.asarray(picture, dtype=np.float64) / 257
            picture = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))
        if picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        return picture.convert("RGB")
    except Exception as error:  # Pillow has no common class for what damaged files raise
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error


def as_images(pictures, side, device):
    """RGB pictures -> uint8 (B, 3, H, W) of `side`, resized as tools/prepare_pets.py does it."""
    height, width = side
    resized = [p.resize((width, height), Image.Resampling.BILINEAR) for p in pictures]
    images = torch.from_numpy(np.stack([np.asarray(picture) for picture in resized]))
    return images.permute(0, 3, 1, 2).to(device)  # (B, H, W, 3) -> (B, 3, H, W)


def describe(output, size, class_names):
    """What a network's output, as `engine.loop.predict` gives it, says of a picture.

    Args:
        output: "seg" (1, H, W) logits, "bbox" (4,) in [0, 1], "bin" (1,) logit, or some of them.
        size: (width, height) of the picture.

    Returns:
        ({name: value} for JSON, mask (height, width) bool or None).
    """
    width, height = size
    found, mask = {}, None
    if "seg" in output:
        logits = F.interpolate(output["seg"][None], (height, width), mode="bilinear")
        mask = (logits[0, 0] > 0).numpy()  # (height, width)
        found["mask_area"] = round(float(mask.mean()), 4)
    if "bbox" in output:
        box = output["bbox"] * torch.tensor([width, height, width, height])
        found["box"] = [round(value, 1) for value in box.tolist()]
    if "bin" in output:
        probability = output["bin"].sigmoid().item()  # of class 1
        found["class"] = class_names[int(probability > 0.5)]
        found["probability"] = round(max(probability, 1 - probability), 4)
    return found, mask


def draw(picture, found, mask):
    """The picture with mask, box and class drawn into it, in its own size."""
    line = max(1, round(max(picture.size) / 300))
    if mask is not None:
        picture = Image.fromarray(_tinted(np.asarray(picture), mask, line))
    canvas = ImageDraw.Draw(picture)
    if "box" in found:
        canvas.rectangle(found["box"], outline=ORANGE, width=line)
    if "class" in found:
        font = ImageFont.load_default(max(10, round(max(picture.size) / 28)))
        text, place = f" {found['class']} {found['probability']:.2f} ", (line, line)
        canvas.rectangle(canvas.textbbox(place, text, font), fill="black")
        canvas.text(place, text, "white", font)
    return picture


def _tinted(pixels, mask, line):
    """Pixels (H, W, 3) with the mask (H, W) tinted, and outlined with a line on its inner side."""
    colour = np.array(ImageColor.getrgb(BLUE), np.float32)
    around = np.pad(mask, line, mode="edge")
    rows, columns = around[:, line:-line], around[line:-line]
    inner = rows[: -2 * line] & rows[2 * line :] & columns[:, : -2 * line] & columns[:, 2 * line :]
    opacity = np.where(mask & ~inner, 1, TINT * mask)[..., None].astype(np.float32)
    return (pixels * (1 - opacity) + colour * opacity).round().astype(np.uint8)


def list_pictures(arguments, out):
    """The files in question, folders replaced by the pictures in them, each file once.

    Raises:
        UserError: `out` is one of the folders, so that a second call would read its results.
    """
    paths = {}
    for argument in map(Path, arguments):
        if not argument.is_dir():
            paths[argument.resolve()] = argument
            continue
        if argument.resolve() == out.resolve():
            raise UserError(f"--out: expected another folder than the pictures', found {out}")
        inside = sorted(p for p in argument.iterdir() if p.suffix.lower() in ENDINGS)
        if not inside:
            raise UserError(f"{argument}: expected {', '.join(ENDINGS)} files, found none")
        paths |= {path.resolve(): path for path in inside}
    return paths


def choose_names(paths, out):
    """{picture: (overlay, mask)} to be written; a number tells pictures of one name apart.

    Args:
        paths: {resolved path: path} of the pictures, none of which may be overwritten.
    """
    taken, chosen = set(), {}
    for path in paths.values():
        numbered = (f"{path.stem}-{number}" for number in itertools.count(2))
        for stem in itertools.chain([path.stem], numbered):
            files = tuple(out / f"{stem}_{kind}.png" for kind in ("overlay", "mask"))
            if stem.lower() not in taken and not any(f.resolve() in paths for f in files):
                break
        taken.add(stem.lower())
        chosen[path] = files
    return chosen


def write_results(path, picture, output, class_names, files):
    """Write overlay and mask of one picture; returns the dict of its JSON line."""
    found, mask = describe(output, picture.size, class_names)
    images = {"overlay": draw(picture, found, mask)}
    if mask is not None:
        images["mask"] = Image.fromarray(mask.astype(np.uint8) * 255)
    written = {}
    for (kind, image), file in zip(images.items(), files, strict=False):
        with replacing(file) as temporary:
            image.save(temporary)
        written[kind] = str(file)
    about = {"image": str(path), "width": picture.width, "height": picture.height}
    return about | written | found


def run(argv):
    """Predict batch by batch; returns the exit code, raises UserError."""
    options = parse(argv)
    device, out = choose_device(options.device).device, Path(options.out)
    paths = list_pictures(options.images, out)
    network, history = open_network(options.model, device)
    files, failed, batch = choose_names(paths, make_folder(out, "--out")), False, []

    def flush():
        if not batch:
            return
        images = as_images([picture for _, picture in batch], history["side"], device)
        outputs = predict(network, images)
        for (path, picture), output in zip(batch, outputs, strict=True):
            line = write_results(path, picture, output, history["class_names"], files[path])
            print(json.dumps(line), flush=True)  # names of any bytes, escaped
        batch.clear()

    for path in paths.values():
        try:
            batch.append((path, read_picture(path)))
        except OSError as error:
            failed = True
            print(f"predict.py: {path}: not a readable picture ({error})", file=sys.stderr)
        if len(batch) == options.batch_size:
            flush()
    flush()
    return int(failed)


def parse(argv):
    """The options; a wrong one ends the process with code 2."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("predict.py", None, __doc__, formatter_class=formatter, allow_abbrev=False)
    add = parser.add_argument
    add("model", metavar="MODEL", help="NAME_model.pt or NAME_model_lite.pt")
    add("images", nargs="+", metavar="IMAGE", help="a picture, or a folder of them")
    add("--out", required=True, metavar="FOLDER", help="takes overlays and masks")
    add("--batch-size", type=int, default=8, metavar="N", help="pictures at a time (8)")
    add("--device", metavar="DEVICE", help="cpu, cuda, ...; without it CUDA where there is one")
    options = parser.parse_args(argv)
    if options.batch_size < 1:
        parser.error(f"--batch-size: expected a number above 0, found {options.batch_size}")
    return options


def main(argv=None):
    """Run the tool; returns the exit code that the module docstring tells."""
    return run_tool("predict.py", run, argv)


if __name__ == "__main__":
    sys.exit(main())
