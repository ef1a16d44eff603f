"""Pictures in any format that Pillow reads: found in folders, opened upright and in RGB."""

import warnings
from collections import defaultdict
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from parts.errors import UserError, one_line
from tools.shared.common import as_path

STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # formats whose pixels Pillow does not read
OF_THE_SYSTEM = {"thumbs.db", "desktop.ini"}
TURNS = {  # EXIF orientation: Pillow's name of the turn, and where it moves fractions (x, y)
    2: (Image.Transpose.FLIP_LEFT_RIGHT, lambda x, y: (1 - x, y)),
    3: (Image.Transpose.ROTATE_180, lambda x, y: (1 - x, 1 - y)),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, lambda x, y: (x, 1 - y)),
    5: (Image.Transpose.TRANSPOSE, lambda x, y: (y, x)),
    6: (Image.Transpose.ROTATE_270, lambda x, y: (1 - y, x)),
    7: (Image.Transpose.TRANSVERSE, lambda x, y: (1 - y, 1 - x)),
    8: (Image.Transpose.ROTATE_90, lambda x, y: (y, 1 - x)),
}


@contextmanager
def opened(path):
    """The picture in a file; every error, also in the block, becomes an OSError of one line.

    Pillow gets a stream, because it confuses the sides of some TIFFs that it opens by their path.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # Pillow's, of several lines
            open(path, "rb") as stream,
            Image.open(stream) as file,
        ):
            yield file
    except UnidentifiedImageError as error:
        raise OSError("cannot identify image file") from error
    except Exception as error:  # Pillow has no common class for what damaged files raise
        raise OSError(one_line(error)) from error


def read_picture(path):
    """(an upright RGB picture, 8 bits per channel; what was assumed about it, in words or ""; its
    View).

    Raises OSError, in one line, if it is damaged or its numbers cannot be interpreted.
    """
    with opened(path) as file:
        deep, words = ";16" in str(file.tile), ""  # 16 bits; Pillow keeps 8 of a colour's
        turn = orientation(file)
        picture = ImageOps.exif_transpose(file)
        picture.load()
        if picture.mode == "F" or picture.mode.startswith("I"):
            picture, words = to_eight_bits(picture)
        elif deep and max(high for _, high in picture.convert("RGB").getextrema()) < 16:
            raise ValueError("expected colours of 16 bits, found no value above 4095 of 65535")
        if picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        return picture.convert("RGB"), words, View(picture.size, turn, page_count(file))


class View(NamedTuple):
    """The size and orientation of a picture, which its masks and boxes must fit."""

    size: tuple  # (width, height) in pixels, upright
    turn: int = 1  # the EXIF orientation: 1 = stored upright, 2-8 = to be turned by TURNS
    pages: int = 1

    def fits(self, size):
        """Whether another (width, height) has the same aspect ratio, up to a pixel."""
        (width, height), (w, h) = self.size, size
        return abs(w * height / width - h) <= 1 or abs(h * width / height - w) <= 1

    def fractions(self, points, size):
        """(n, 2) points in a picture of `size` -> fractions of the width and height shown.

        None as size means the picture's; (1, 1) means that the points are fractions already. A size
        that only fits the picture as stored means that the points must be turned. ValueError if it
        fits neither.
        """
        fractions = np.asarray(points, float).reshape(-1, 2) / (size or self.size)
        if size in (None, (1, 1)) or self.fits(size):
            return fractions
        if self.turn >= 5 and self.fits(size[::-1]):
            return np.stack(TURNS[self.turn][1](*fractions.T), axis=1)
        found = "a picture of {:g} x {:g}".format(*size)
        raise ValueError("expected a picture of {} x {}, found ".format(*self.size) + found)


def orientation(file):
    """The EXIF orientation of an opened file."""
    number = file.getexif().get(ExifTags.Base.Orientation, 1)
    return number if number in TURNS else 1


def page_count(file):
    """The number of pages of a file; an MPO's further ones are a camera's previews."""
    return 1 if file.format == "MPO" else getattr(file, "n_frames", 1)


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


@cache
def endings():
    """The endings of the files that Pillow reads: {".jpg", ...}."""
    kinds = Image.registered_extensions()  # {".jpg": "JPEG", ...}, also what is only written
    return {ending for ending, kind in kinds.items() if kind in Image.OPEN.keys() - STUBS}


def list_pictures(arguments, out, recursive=None):
    """{place: path} of files and of the pictures in folders; UserError if a folder has none.

    The place is absolute, so that a file given twice counts once. Links are not followed, so that
    several links to one file each count. `recursive` is None for a tool without that flag.
    """
    known, paths = endings(), {}
    for argument in (as_path(argument, "IMAGE") for argument in arguments):
        if not argument.is_dir():
            paths[place(argument)] = argument
            continue
        if argument.resolve() == out.resolve():  # a second call would read its results
            raise UserError(f"--out: expected another folder than the pictures', found {out}")
        files = [path for path in entries(argument, recursive) if path.is_file()]
        inside = {place(path): path for path in files if path.suffix.lower() in known}
        if not inside:
            found = others(argument, (), recursive) or "none"
            found += "; --recursive reads sub-folders" * (recursive is False)
            raise UserError(f"{argument}: expected pictures (.jpg, .png, ...), found {found}")
        paths |= inside
    return paths


def place(path):
    """The absolute path of a file, which may be a link that is not followed."""
    return path.parent.resolve() / path.name


def entries(folder, recursive=False):
    """A folder's entries, sorted, without hidden ones; with `recursive`, those of sub-folders."""
    found = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    for path in found:
        if recursive and path.is_dir() and not path.is_symlink():
            yield from entries(path, recursive)
        elif path.name.lower() not in OF_THE_SYSTEM:
            yield path


def others(folder, used, recursive=False):
    """What else a folder holds than the places in `used`, in words; "" if nothing.

    For example ".heic: 2 (a.heic, b.heic), sub-folders: 1 (raw)".
    """
    kinds = defaultdict(list)
    for path in entries(folder, recursive):
        if path.is_dir():
            kinds["sub-folders"].append(path.name)
        elif place(path) not in used:
            kind = path.suffix.lower() or "files without ending"
            kinds[kind if path.is_file() else "broken links"].append(path.name)
    return ", ".join(f"{kind}: {len(names)} ({examples(names)})" for kind, names in kinds.items())


def examples(names, count=3):
    """The first names of a list, and dots if there are more."""
    names = list(map(str, names))
    return ", ".join([*names[:count], *["..."] * (len(names) > count)])
