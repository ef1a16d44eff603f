"""Let a trained network find, locate and segment the animal in pictures.

    python tools/predict.py runs/main/main_model.pt cat.jpg dog.png --out predictions
    python tools/predict.py runs/main/main_model_lite.pt FOLDER --out predictions > all.jsonl

It takes any picture that Pillow reads, of any size; of a folder, all but hidden files; of an
animation, the first frame. Transparent parts become white, and the rotation that a camera recorded
is applied. Greys of more than 8 bits are scaled: white is 1 for floats up to 1, else the
largest number of 8, 10, 12, 14 or 16 bits, the first that no pixel exceeds. For each picture
stdout gets one line of JSON, and OUT an overlay and the mask (255 on the animal) in its own size:

    {"image": "cat.jpg", "width": 640, "height": 480, "overlay": "predictions/cat_overlay.png",
     "mask": "predictions/cat_mask.png", "mask_area": 0.31, "box": [212.4, 80.1, 330.9, 197.5],
     "class": "cat", "probability": 0.98}

`box` is xmin, ymin, xmax, ymax in pixels, `mask_area` a share of the picture, `probability` that of
the class. What the network does not predict is missing; other tasks add what they `describe`.

MODEL is a file of a run: NAME_model.pt or NAME_model_lite.pt, with NAME_history.pt
beside it, or NAME_last.pt of a stopped run. NAME_model.pt is a pickle, that is, code: open only
those you trust. The others hold nothing but numbers. The run's script must be there.

Exit code: 0, 1 if a picture could not be read or a result not be written (it is named on stderr and
skipped), 2 for a mistake. A closed pipe, as in `| head -1`, ends it quietly with code 0.
"""

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.artefacts import replacing
from engine.evaluation import predict
from engine.settings import Parser, UserError, whole_number
from tools.common import as_path, choose_device, complain, make_folder, run_tool
from tools.networks import open_network, tasks_of

WHITES = {8: 255, 10: 1023, 12: 4095, 14: 16383, 16: 65535}  # the largest number of so many bits
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # kinds of file whose pixels Pillow does not read
NAME_BYTES = 200  # of a result's name; file systems take 255, and temporary files have longer names


def read_picture(path):
    """(an upright RGB picture, 8 bits a channel; what was assumed about it, in words or "").

    Raises OSError, in one line: it is missing, damaged, no picture, or of numbers without a usual
    meaning.
    """
    try:
        with Image.open(path) as file:
            deep, words = ";16" in str(file.tile), ""  # 16 bits, of which Pillow keeps 8 in colours
            picture = ImageOps.exif_transpose(file)
            picture.load()
        if picture.mode == "F" or picture.mode.startswith("I"):
            picture, words = to_eight_bits(picture)
        elif deep and max(high for _, high in picture.convert("RGB").getextrema()) < 16:
            raise ValueError("expected colours of 16 bits, found no value above 4095 of 65535")
        if picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        return picture.convert("RGB"), words
    except Exception as error:  # Pillow has no common class for what damaged files raise
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error


def to_eight_bits(picture):
    """Greys of more bits, which Pillow would cut at 255 -> (greys of 8, how they were taken).

    Raises ValueError: they are negative, not finite or above 65535.
    """
    grey = np.asarray(picture).astype(np.float64)
    low, high = grey.min(), grey.max()
    whites = ({"0-1": 1} if picture.mode == "F" else {}) | WHITES
    bits = next((bits for bits, white in whites.items() if low >= 0 and high <= white), None)
    if bits is None:
        raise ValueError(f"expected values from 0 to 65535, found {low:g} to {high:g}")
    words = "" if bits in ("0-1", 16) else f"values up to {high:g}, taken as {bits} bits"
    return Image.fromarray((grey * (255 / whites[bits])).round().astype(np.uint8)), words


def as_images(pictures, side, device):
    """RGB pictures -> uint8 (B, 3, H, W) of `side`, resized as tools/prepare_pets.py does it."""
    resized = [p.resize(side[::-1], Image.Resampling.BILINEAR) for p in pictures]
    images = torch.from_numpy(np.stack([np.asarray(picture) for picture in resized]))
    return images.permute(0, 3, 1, 2).to(device)  # (B, H, W, 3) -> (B, 3, H, W)


def told(picture, output, tasks, class_names):
    """{name: value} of what the tasks say of {task: output}, first the "overlay" that they draw.

    A picture among the values is an Image; a name that is taken gets its task's name in front.
    """
    image, texts, found = torch.from_numpy(np.array(picture)).permute(2, 0, 1), [], {"overlay": 0}
    for task in (task for task in tasks if task in output):
        image, words = tasks[task].draw(image, output[task], class_names)
        texts += [words] if words else []
        described = tasks[task].describe(output[task], picture.size, class_names)
        for name, value in described.items():
            if isinstance(value, np.ndarray) and value.dtype == np.uint8:
                value = Image.fromarray(value)
            found[f"{task}_{name}" if name in found else name] = value
    found["overlay"] = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if texts:
        canvas, text = ImageDraw.Draw(found["overlay"]), f" {', '.join(texts)} "
        font = ImageFont.load_default(max(10, round(max(picture.size) / 36)))
        canvas.rectangle(canvas.textbbox((1, 1), text, font), fill="black")
        canvas.text((1, 1), text, "white", font)
    return found


def list_pictures(arguments, out):
    """{resolved path: path} of the files in question and of the pictures in folders.

    Raises UserError: `out` is one of the folders, so that a second call would read its results.
    """
    kinds = Image.registered_extensions()  # {".jpg": "JPEG", ...}, also what is only written
    endings = {ending for ending, kind in kinds.items() if kind in Image.OPEN.keys() - STUBS}
    paths = {}
    for argument in (as_path(argument, "IMAGE") for argument in arguments):
        if not argument.is_dir():
            paths[argument.resolve()] = argument
            continue
        if argument.resolve() == out.resolve():
            raise UserError(f"--out: expected another folder than the pictures', found {out}")
        shown = [p for p in sorted(argument.iterdir()) if p.name[0] != "." and p.is_file()]
        inside = {p.resolve(): p for p in shown if p.suffix.lower() in endings}
        if not inside:
            raise UserError(f"{argument}: expected pictures (.jpg, .png, ...), found none")
        paths |= inside
    return paths


def choose_stems(paths, out):
    """{picture: OUT/STEM, to which _KEY.png is added}, of {resolved path: picture}.

    A number tells pictures of one name apart, and keeps a result from overwriting a picture.
    """
    there = [path.name.lower() for path in paths if path.parent == out.resolve()]
    taken, chosen = set(), {}
    for path in paths.values():
        name = os.fsencode(path.stem)
        whole = path.stem if len(name) <= NAME_BYTES else name[:NAME_BYTES].decode(errors="ignore")
        for stem in itertools.chain([whole], (f"{whole}-{n}" for n in itertools.count(2))):
            start = f"{stem}_".lower()
            if start not in taken and not any(name.startswith(start) for name in there):
                break
        taken.add(start)
        chosen[path] = out / stem
    return chosen


def run(argv):
    """Predict batch by batch; returns the exit code, raises UserError."""
    options, failed, batch = parse(argv), False, []
    device, out = choose_device(options.device).device, as_path(options.out, "--out")
    paths = list_pictures(options.images, out)
    network, history = open_network(as_path(options.model, "MODEL"), device)
    tasks, class_names = tasks_of(history), history["class_names"]
    stems = choose_stems(paths, make_folder(out, "--out"))
    for number, path in enumerate(paths.values(), 1):
        try:
            picture, words = read_picture(path)
            batch.append((path, picture))
        except OSError as error:
            words, failed = f"not a readable picture ({error})", True
        if words:
            complain(f"predict.py: {path}: {words}")
        if len(batch) < options.batch_size and (number < len(paths) or not batch):
            continue
        images = as_images([picture for _, picture in batch], history["side"], device)
        for (path, picture), output in zip(batch, predict(network, images), strict=True):
            line = {"image": str(path), "width": picture.width, "height": picture.height}
            line |= told(picture, output, tasks, class_names)
            failed |= not write(line, stems[path])
        batch.clear()
    return int(failed)


def write(line, stem):
    """Write the pictures of a line of JSON, then the line; returns whether that succeeded."""
    try:
        for key, image in line.items():
            if isinstance(image, Image.Image):
                line[key] = f"{stem}_{key}.png"
                with replacing(line[key]) as temporary:
                    image.save(temporary)
    except UserError as error:  # of this picture; others may succeed
        complain(f"predict.py: {error}")
        return False
    print(json.dumps(line), flush=True)  # names of any bytes, escaped
    return True


def parse(argv):
    """The options; a wrong one ends the process with code 2."""
    parser, sizes = Parser("predict.py", __doc__), whole_number(1, 10**6)
    add = parser.add_argument
    add("model", metavar="MODEL", help="NAME_model.pt, NAME_model_lite.pt or NAME_last.pt")
    add("images", nargs="+", metavar="IMAGE", help="a picture, or a folder of them")
    add("--out", required=True, metavar="FOLDER", help="takes overlays and masks")
    add("--batch-size", type=sizes, default=8, metavar="N", help="pictures at a time (8)")
    add("--device", metavar="DEVICE", help="cpu, cuda, ...; without it CUDA where there is one")
    return parser.parse_args(argv)


def main(argv=None):
    """Run the tool; returns the exit code that the module docstring explains."""
    return run_tool("predict.py", run, argv)


if __name__ == "__main__":
    sys.exit(main())
