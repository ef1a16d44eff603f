"""The contents of tables and annotation files about each picture."""

from contextlib import suppress
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from parts.targets import UNKNOWN
from tools.shared.pictures import TURNS

FINER = 4  # outlines are filled on a grid that is finer than the mask by this factor


class Note(NamedTuple):
    """A row of a table, or an object of an annotation file, about a picture."""

    name: str  # of the picture, as written
    where: str  # "known.csv line 7"
    box: tuple = ()  # xmin, ymin, xmax, ymax; () = none
    size: tuple | None = None  # of the picture that coordinates refer to; see View.fractions
    label: str = ""
    split: str = ""
    polygons: tuple = ()  # the object's outlines, (n, 2) each
    region: np.ndarray | None = None  # bool (H, W): the object's pixels
    problem: str = ""  # why the box cannot be used

    @property
    def has_outline(self):
        """Whether it has the object's pixels."""
        return bool(self.polygons) or self.region is not None


class Known(NamedTuple):
    """All that is known about a picture."""

    box: np.ndarray | None = None  # (4,) xmin, ymin, xmax, ymax as fractions
    label: str = ""
    split: str = ""
    objects: int = 0  # with a box
    problems: tuple = ()  # (what is not used, why)


def combine(notes, view):
    """The Known of a picture's notes: of several objects, the box and class of the largest.

    Args:
        notes: about one picture.
        view: the picture's View.
    """
    found, problems = {}, []
    for note in notes:
        try:
            if note.problem:
                raise ValueError(note.problem)
            if note.box:
                box = read_box(note, view)
                found[tuple(box)] = note.label
        except ValueError as error:
            problems.append(("box", f"{error} ({note.where})"))
    largest = max(found, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]), default=None)
    label = found.get(largest) or only_value("class", {n.label for n in notes}, problems)
    label = "".join(c if c.isprintable() else " " for c in label).strip()
    split = only_value("split", {n.split for n in notes}, problems)
    box = None if largest is None else np.array(largest)
    return Known(box, label, split, len(found), tuple(problems))


def only_value(what, values, problems):
    """The only non-empty value; "" if there is none, or if there are several, a problem."""
    values = sorted(values - {""})
    if len(values) > 1:
        problems.append((what, f"expected one, found {', '.join(values)}"))
    return values[0] if len(values) == 1 else ""


def read_box(note, view):
    """(4,) box of a note as fractions of the picture; ValueError if it does not fit.

    It is cropped if it exceeds the picture by up to a pixel.
    """
    corners = view.fractions(note.box, note.size)
    box = np.concatenate([corners.min(0), corners.max(0)]) * (view.size * 2)
    (width, height), (w, h) = view.size, np.subtract(note.box[2:], note.box[:2])
    inside = (box >= -1).all() and (box <= [width + 1, height + 1] * 2).all()
    if not (inside and w > 0 and h > 0):
        found = [round(float(value), 2) for value in (box if w > 0 and h > 0 else note.box)]
        raise ValueError(f"expected a box inside {width} x {height}, found {found}")
    if note.size != (1, 1) and min(w, h) < 1:
        raise ValueError(f"expected a box of more than a pixel, found {w:g} x {h:g}")
    return np.clip(box / (view.size * 2), 0, 1)


def draw_mask(notes, view, side):
    """uint8 (side, side) in {0, 1, 255} from the outlines of a picture's notes; None without any.

    In the box of an object without an outline, pixels outside other objects are unknown.
    """
    if not any(note.has_outline for note in notes):
        return None
    mask = Image.new("L", (FINER * side,) * 2)
    for note in sorted(notes, key=lambda note: note.has_outline):
        if note.region is not None:
            view.fractions((), note.size)  # checks the size
            region = Image.fromarray(note.region)
            if view.turn in TURNS and not view.fits(region.size):
                region = region.transpose(TURNS[view.turn][0])
            mask.paste(1, mask=region.resize(mask.size, Image.Resampling.NEAREST))
        for points in note.polygons:
            corners = view.fractions(points, note.size) * FINER * side
            ImageDraw.Draw(mask).polygon([*map(tuple, corners)], fill=1)
        if note.box and not note.has_outline:
            with suppress(ValueError):  # `combine` names it
                box = read_box(note, view) * FINER * side
                ImageDraw.Draw(mask).rectangle(box.tolist(), fill=UNKNOWN)
    return np.asarray(mask.resize((side, side), Image.Resampling.NEAREST))
