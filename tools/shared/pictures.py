"""Pictures of any kind that Pillow reads: found in folders, opened upright and in RGB."""

import numpy as np
from PIL import Image, ImageOps

from parts.errors import UserError
from tools.shared.common import as_path

STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # kinds of file whose pixels Pillow does not read


def read_picture(path):
    """(an upright RGB picture, 8 bits per channel; what was assumed about it, in words or "").

    Raises OSError, in one line, if it is damaged, or its numbers have no usual meaning.
    """
    try:
        with Image.open(path) as file:
            deep, words = ";16" in str(file.tile), ""  # 16 bits; Pillow keeps 8 of a colour's
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
    """Greys of more bits -> (8-bit greys, what was assumed); ValueError if not within 0-65535."""
    grey = np.asarray(picture).astype(np.float64)
    low, high = grey.min(), grey.max()
    whites = [1] * (picture.mode == "F") + [2**bits - 1 for bits in (8, 10, 12, 14, 16)]
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is None:
        raise ValueError(f"expected values from 0 to 65535, found {low:g} to {high:g}")
    words = f"values up to {high:g}, taken as {white.bit_length()} bits"
    grey = Image.fromarray((grey * (255 / white)).round().astype(np.uint8))
    return grey, "" if white in (1, 65535) else words


def list_pictures(arguments, out):
    """{resolved path: path} of files and of the pictures in folders; UserError if there is none."""
    kinds = Image.registered_extensions()  # {".jpg": "JPEG", ...}, also what is only written
    endings = {ending for ending, kind in kinds.items() if kind in Image.OPEN.keys() - STUBS}
    paths = {}
    for argument in (as_path(argument, "IMAGE") for argument in arguments):
        if not argument.is_dir():
            paths[argument.resolve()] = argument
            continue
        if argument.resolve() == out.resolve():  # a second call would read its results
            raise UserError(f"--out: expected another folder than the pictures', found {out}")
        shown = [p for p in sorted(argument.iterdir()) if p.name[0] != "." and p.is_file()]
        inside = {p.resolve(): p for p in shown if p.suffix.lower() in endings}
        if not inside:
            raise UserError(f"{argument}: expected pictures (.jpg, .png, ...), found none")
        paths |= inside
    return paths
