"""Masks in any picture format, read as a person sees them: bright on black, or opaque on nothing.

A mask's pixels become numbers: greys and indices of coloured palettes keep theirs, colours are
written #rrggbb. 0 is background and every other number foreground, unless `--foreground` and
`--ignore` choose numbers. Noise and soft edges become black or white, whichever is nearer.
"""

import argparse
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
from PIL import Image

from parts.targets import UNKNOWN
from tools.shared.pictures import TURNS, examples, opened, orientation, page_count

WHITE = 255
COLOUR = 2**24  # added to 0xrrggbb, so that no colour is a grey
NO_NUMBER = -1  # NaN, in a float file
NEAR = 1 / 8  # greys closer than this to black or white, as a share of white, may be noise
FLAT = 64  # most colours of a mask that is painted, not photographed
FEW_LEVELS = 6  # of grey between black and white; more are soft edges rather than labels
SOFT = "noise and soft edges rounded to black or white"
OPAQUE = "the opaque part is foreground"
PAGES = "several pages, whose foregrounds are joined"
TURNED = "turned by the EXIF rotation of the mask or its picture"
SCALED = "scaled to their picture's size"


class Choice(NamedTuple):
    """The values that the user has chosen; () = none."""

    foreground: tuple = ()
    ignore: tuple = ()


class Reading(NamedTuple):
    """The numbers of a page's pixels."""

    values: np.ndarray  # int (H, W)
    background: int = 0
    words: str = ""  # how they were found


class Mask(NamedTuple):
    """A mask that fits its picture."""

    pixels: np.ndarray  # uint8 (side, side) in {0, 1, 255}
    shares: dict  # {value: share of the file's pixels}
    foreground: float  # share of the known pixels; NaN if none is known
    words: tuple  # what was done to it


def read_mask(path, view, side, choice):
    """The Mask in a file for a picture of this View; OSError or ValueError if it does not fit."""
    pages, turns = read_pages(path, view, choice)
    masks = np.stack([binary_mask(page, choice) for page in pages])
    pixels = np.where((masks == 1).any(0), 1, masks.max(0)).astype(np.uint8)
    upright, is_turned = fit(Image.fromarray(pixels), turns, view)
    happened = {PAGES: len(pages) > 1, TURNED: is_turned, SCALED: upright.size != view.size}
    happened = dict.fromkeys((page.words for page in pages if page.words), True) | happened
    counts, known = sum((count(page.values) for page in pages), Counter()), pixels != UNKNOWN
    return Mask(
        np.asarray(upright.resize((side, side), Image.Resampling.NEAREST)),
        {value: number / counts.total() for value, number in counts.items()},
        (pixels == 1).sum() / known.sum() if known.any() else np.nan,
        tuple(words for words, did in happened.items() if did),
    )


def read_pages(path, view, choice):
    """([Reading] of a file's pages, the EXIF orientations that may apply, the likeliest first).

    If the picture has pages too, only the first page is read.
    """
    pages, sizes, turned = [], [], False
    with opened(path) as file:
        own, lossy = orientation(file), file.format in ("JPEG", "MPO")
        for page in range(page_count(file) if view.pages == 1 else 1):
            file.seek(page)
            file.load()
            turned = turned or orientation(file) != own  # Pillow turns a TIFF when it loads it
            sizes.append(file.size)
            if file.size == sizes[0]:  # others are previews
                found = (read(file, lossy, choice) for read in READERS)
                pages.append(next(page for page in found if page))
    if own == 1:
        return pages, (view.turn, 1)
    return pages, (1,) if turned else (own, 1)


def fit(mask, turns, view):
    """(the mask upright and in its picture's shape, whether it was turned); raises ValueError.

    A mask without an EXIF rotation was probably drawn on the stored pixels of its picture, so it is
    turned with the picture, unless its shape fits the upright picture only.
    """
    candidates = [mask.transpose(TURNS[turn][0]) if turn != 1 else mask for turn in turns]
    for fits in (lambda size: size == view.size, view.fits):
        for turn, candidate in zip(turns, candidates, strict=True):
            if fits(candidate.size):
                return candidate, turn != 1
    raise ValueError(f"expected a mask of {view.size}, found {mask.size}")


# How the pixels of an opened file become numbers: the first of READERS that gives a Reading counts.


def read_floats(picture, lossy, choice):
    """A float file: in values up to 1, the upper half is foreground; NaN is unknown."""
    if picture.mode != "F":
        return None
    floats = np.asarray(picture)
    known = np.isfinite(floats)
    values, top = np.where(known, floats, 0), np.max(floats, initial=0, where=known)
    if (values == values.round()).all():
        page = greys(values.astype(np.int32), lossy, choice)
    elif top <= 1:
        two = len(np.unique(values)) == 2 and (values == 0).any()  # whatever the other one is
        is_high = values > 0 if two else values >= min(0.5, top / 2)
        page = Reading(is_high.astype(np.int32), words="" if two else SOFT)
    else:
        page = greys(values.round().astype(np.int32), True, choice)
    return page._replace(values=np.where(known, page.values, NO_NUMBER))


def read_alpha(picture, lossy, choice):
    """A partly transparent picture: the rest is foreground, whatever its colour."""
    if not picture.has_transparency_data or clear_first(picture):
        return None
    alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    if np.ptp(alpha) < NEAR * WHITE:
        return None
    return Reading(np.where(alpha > alpha.max() / 2, WHITE, 0), words=OPAQUE)


def clear_first(picture):
    """Whether a palette's first colour is transparent, as in some label masks."""
    clear = picture.info.get("transparency")
    first = clear[:1] == b"\0" if isinstance(clear, bytes) else clear == 0
    return picture.mode == "P" and first


def read_palette(picture, lossy, choice):
    """The indices of a palette, unless its black is not the first, or it has only greys."""
    if picture.mode != "P":
        return None
    values = np.asarray(picture).astype(np.int32)
    if clear_first(picture):
        return Reading(values)
    palette = np.zeros((256, 3), int)  # what it lacks is black
    given = np.array(picture.getpalette("RGB") or [], int).reshape(-1, 3)
    palette[: len(given)] = given
    used = np.unique(values)
    colours, black = palette[used], palette.max(axis=1) < NEAR * WHITE / 2
    is_grey = np.ptp(colours, axis=1).max() == 0 and len(used) > FEW_LEVELS + 2
    if is_grey or (black[used[used > 0]].any() and not black[0]):
        return None
    return Reading(values)


def read_greys(picture, lossy, choice):
    """The greys of a file of one channel."""
    if picture.mode not in ("1", "L") and not picture.mode.startswith("I"):
        return None
    return greys(np.asarray(picture).astype(np.int32), lossy, choice)


def read_colours(picture, lossy, choice):
    """The greys or colours of a file with several channels; ValueError for a photo.

    The background is black, or white if there is no black. In a picture with many colours, such as
    an animal cut out of its photo, it is whichever of the two covers more of the border.
    """
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    rgb = np.asarray(picture.convert(mode)).astype(np.int32)[..., :3]
    high, low = rgb.max(axis=2), rgb.min(axis=2)
    if (high - low).max() <= NEAR * WHITE / 2:
        return greys(high, lossy, choice)  # not the luma, which makes (1, 0, 0) black
    codes = np.where(high == low, high, COLOUR + rgb @ (2**16, 2**8, 1))
    if not lossy and len(np.unique(codes)) <= FLAT:
        if (codes == WHITE).any() and not (codes == 0).any():
            return Reading(codes, WHITE, "white is background")
        return Reading(codes)
    border = np.ones_like(high, bool)
    border[1:-1, 1:-1] = False
    near = {"black": high < 2 * NEAR * WHITE, "white": low > WHITE - 2 * NEAR * WHITE}
    name = max(near, key=lambda name: near[name][border].mean())
    if near[name].mean() < 0.05:
        found = "a picture with many colours and no black or white background"
        raise ValueError(f"expected a mask, found {found}")
    return Reading(np.where(near[name], 0, WHITE), words=f"{name} is background")


READERS = (read_floats, read_alpha, read_palette, read_greys, read_colours)


def greys(values, lossy, choice):
    """The Reading of greys (H, W), with noise and soft edges removed.

    In a lossy file each pixel becomes the nearest of black, white and the chosen values.
    """
    values = np.where(values < 0, NO_NUMBER, values)
    top, chosen = int(values.max()), (*choice.foreground, *choice.ignore)
    white = WHITE if top <= WHITE else 2**16 - 1
    if lossy and top >= 2 * NEAR * WHITE:
        white = top  # a light grey on black
    centres = np.array(sorted({0, white, *(value for value in chosen if value < COLOUR)}))
    is_soft = lossy or (not chosen and top <= white and looks_soft(values, white))
    if not is_soft or np.isin(values, centres).all():
        return Reading(values)
    nearest = centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, values)]
    return Reading(np.where(values < 0, NO_NUMBER, nearest), words=SOFT)


def looks_soft(values, white):
    """Whether greys are black and white with noise or soft edges, not labels."""
    counts = np.bincount(values[values >= 0], minlength=white + 1)
    near = int(NEAR * white)
    dark, light = counts[:near].sum(), counts[-near:].sum()
    if not dark or not light or light < counts[near:].sum() / 2 or dark < counts[:-near].sum() / 2:
        return False
    if not counts[0] and not counts[white] and dark + light == counts.sum():
        return True
    levels = [(part > 0).sum() for part in (counts[1:near], counts[-near:-1], counts[near:-near])]
    return min(levels[:2]) >= 3 or levels[2] > FEW_LEVELS


def mask_from_outlines(pixels):
    """The Mask of uint8 (side, side) in {0, 1, 255} that was drawn from outlines."""
    values = np.where(pixels == UNKNOWN, NO_NUMBER, pixels.astype(np.int32))
    shares = {value: number / values.size for value, number in count(values).items()}
    known = pixels != UNKNOWN
    return Mask(pixels, shares, (pixels == 1).sum() / known.sum() if known.any() else np.nan, ())


def binary_mask(page, choice):
    """uint8 (H, W) in {0, 1, 255} from a Reading."""
    is_foreground = page.values != page.background
    if choice.foreground:
        is_foreground = np.isin(page.values, choice.foreground)
    mask = is_foreground.astype(np.uint8)
    mask[np.isin(page.values, (*choice.ignore, NO_NUMBER))] = UNKNOWN
    return mask


def count(values):
    """Counter of the values of an int array."""
    if values.max() >= COLOUR:
        found, counts = np.unique(values, return_counts=True)
    else:  # many times as fast
        counts = np.bincount(values.ravel() - NO_NUMBER)
        found, counts = counts.nonzero()[0] + NO_NUMBER, counts[counts > 0]
    return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))


# Values in flags and messages.


def parse_value(text):
    """An argparse type: a whole number, or a colour as #rrggbb."""
    if re.fullmatch("#[0-9a-fA-F]{6}", text):
        red, green, blue = bytes.fromhex(text[1:])
        return red if red == green == blue else COLOUR + int(text[1:], 16)
    if text.isascii() and text.isdigit() and int(text) < COLOUR:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number or #rrggbb, found '{text}'")


def as_text(value):
    """A value as the user would write it."""
    if value >= COLOUR:
        return f"#{value - COLOUR:06x}"
    return "nan" if value == NO_NUMBER else str(value)


def summarise(masks, choice):
    """(a line on the values found, lines of warning) about {name: Mask}."""
    shares = sum((Counter(mask.shares) for mask in masks.values()), Counter())
    values = [f"{as_text(value)} ({n / len(masks):.1%})" for value, n in shares.most_common()]
    known = {name: mask.foreground for name, mask in masks.items() if mask.foreground >= 0}
    mean = f"{np.mean([*known.values()]):.1%}" if known else "unknown"
    line = f"masks: {len(masks)}; values {examples(values, 8)}; foreground {mean}"
    return line, [*warn(masks, known, shares, choice)]


def warn(masks, known, shares, choice):
    """Yield a line for everything that is probably a mistake in masks."""
    values = examples(map(as_text, sorted(shares)), 8)
    hint = f"; --foreground chooses among the values {values}" if len(shares) > 1 else ""
    for share, what in ((0, "foreground"), (1, "background")):
        names = [name for name, found in known.items() if found == share]
        if names:
            every = hint if len(names) == len(known) else ""
            yield f"masks without {what}: {len(names)} of {len(masks)} ({examples(names)}){every}"
    for flag, values in choice._asdict().items():
        if missing := [as_text(value) for value in values if value not in shares]:
            yield f"--{flag} {' '.join(missing)}: found in no mask"
