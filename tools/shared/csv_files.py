"""Tables of boxes, classes and splits, by hand or from annotation tools."""

import csv
import io
import re
from typing import NamedTuple

import numpy as np

from dataload import SPLITS
from parts.errors import UserError
from tools.shared.notes import Note
from tools.shared.pictures import examples

# Names of columns, the clearest first, in lower case and with letters and digits only.
NAMES = (
    *("filename", "imagename", "imgname", "imagefile", "file", "image", "img"),
    *("picture", "photo", "name", "fname", "imagepath", "imgpath", "filepath", "path"),
    *("imageid", "imgid", "id", "url", "uri"),
)
CLASSES = (
    *("class", "classname", "label", "labelname", "category", "categoryname", "species"),
    *("classlabel", "classid", "categoryid", "labelid", "type", "kind", "tag", "target", "object"),
)
SPLIT_NAMES = ("split", "subset", "set", "partition", "dataset", "phase", "usage")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
ALIASES = {  # of the sides of a box
    **dict.fromkeys(("minx", "left", "xtl", "xleft", "leftx", "xstart", "startx"), "xmin"),
    **dict.fromkeys(("miny", "top", "ytl", "ytop", "topy", "ystart", "starty"), "ymin"),
    **dict.fromkeys(("maxx", "right", "xbr", "xright", "rightx", "xend", "endx"), "xmax"),
    **dict.fromkeys(("maxy", "bottom", "ybr", "ybottom", "bottomy", "yend", "endy"), "ymax"),
    **dict.fromkeys(("xcenter", "xcentre", "centerx", "centrex", "xc", "xmid"), "cx"),
    **dict.fromkeys(("ycenter", "ycentre", "centery", "centrey", "yc", "ymid"), "cy"),
    **{"width": "w", "height": "h"},
}
# What the columns of a box are, and its corners from them.
CORNERS = ("corners", lambda *corners: corners)
CENTRE = ("centre and size", lambda x, y, w, h: (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
CORNER = ("corner and size", lambda x, y, w, h: (x, y, x + w, y + h))
BOXES = {
    ("xmin", "ymin", "xmax", "ymax"): CORNERS,
    ("x1", "y1", "x2", "y2"): CORNERS,
    ("x0", "y0", "x1", "y1"): CORNERS,
    ("cx", "cy", "w", "h"): CENTRE,
    ("xmin", "ymin", "w", "h"): CORNER,
    ("x", "y", "w", "h"): CORNER,
    ("x1", "y1", "w", "h"): CORNER,
}
PREFIX = re.compile("^(boundingbox|bndbox|bbox|box|bb|roi|rect|region)(?=.)")
PIXELS = re.compile(r"(?<=.)(pixels?|px)$")
MISSING = {"", "nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nil", "-", "?"}
DELIMITERS = {",": "", ";": " (semicolons)", "\t": " (tabs)", "|": " (bars)"}
EXPECTED = (
    "the columns name and any of xmin, ymin, xmax, ymax, class, split, or usual names of them"
)


class Columns(NamedTuple):
    """The numbers of the columns that are read, from 0."""

    name: int
    box: tuple = ()  # four
    corners: tuple = ()  # CORNERS, CENTRE or CORNER
    size: tuple = ()  # two: width and height of the picture
    label: int | None = None
    split: int | None = None


def read_table(path):
    """(notes, the columns found in words, [(line, problem)] of unused rows) of a CSV file.

    Raises UserError if it is none, or has no usable columns.
    """
    text = decode(path)
    try:
        tables = [parse(text, delimiter) for delimiter in DELIMITERS]
        tables = zip(tables, DELIMITERS, strict=True)
        (header, rows, comments), delimiter = max(tables, key=lambda table: matches(table[0][0]))
        columns = find_columns(header)
        if not rows:
            raise ValueError("expected rows below the column names, found none")
        rows, problems = complete_rows(rows, len(header), columns)
        columns = columns._replace(split=split_column(header, rows))
        if not columns.box and columns.label is None and columns.split is None:
            raise ValueError(f"expected {EXPECTED}, found {', '.join(header)}")
    except (ValueError, csv.Error) as error:
        raise UserError(f"--table {path}: {error}") from error
    notes = read_rows(path, rows, columns, "." if delimiter == "," else ",")
    is_fraction = fractions(notes)
    if is_fraction:
        notes = [note._replace(size=(1, 1)) for note in notes]
    elif sizes_are_of_boxes(notes):
        notes = [note._replace(size=None) for note in notes]
        columns = columns._replace(size=())
    words = describe(header, columns, "as fractions" if is_fraction else "in pixels")
    left_out = f"; comment lines left out: {comments}" if comments else ""
    words = f"{path.name}: {len(rows)} rows{DELIMITERS[delimiter]}; {words}{left_out}"
    return notes, words, problems


def decode(path):
    """The text of a file; UserError if it is not a text file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"--table {path}: expected a CSV file, found {error.strerror}") from error
    if data[:4] == b"PK\x03\x04":
        raise UserError(f"--table {path}: expected a CSV file, found a workbook; save it as CSV")
    encodings = ["utf-16"] if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise UserError(f"--table {path}: expected a CSV file, found something else than text")


def parse(text, delimiter):
    """(column names, {line number: cells} below them, number of comment lines) of a table.

    Raises csv.Error, or ValueError if there is no line.
    """
    csv.field_size_limit(2**31 - 1)  # some cells hold a whole mask
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    lines = ((reader.line_num, [re.sub(r"[\r\n]+", " ", c).strip() for c in row]) for row in reader)
    lines = {line: row for line, row in lines if any(row)}
    comments = {n: row for n, row in lines.items() if row[0].startswith("#")}
    rows = {n: row for n, row in lines.items() if n not in comments}
    if rows and next(iter(rows.values()))[0].lower().startswith("sep="):  # Excel's first line
        rows.pop(next(iter(rows)))
    if not rows:
        raise ValueError(f"expected {EXPECTED}, found no rows")
    first = next(iter(rows))
    for line, row in comments.items():  # numpy writes the column names as a comment
        uncommented = [row[0].lstrip("# "), *row[1:]]
        if line < first and find(uncommented, NAMES) is not None and matches(uncommented)[0] > 1:
            return trimmed(uncommented), rows, len(comments) - 1
    return trimmed(rows.pop(first)), rows, len(comments)


def trimmed(cells):
    """The cells without empty ones at the end."""
    while cells and not cells[-1]:
        cells = cells[:-1]
    return cells


def plain(name):
    """A column's name for comparison: "Image Name" -> "imagename"."""
    return PIXELS.sub("", re.sub(r"[\W_]+", "", name.casefold()))


def find(header, names):
    """The number of the column with the first of these names; ValueError if there are two."""
    found = [plain(name) for name in header]
    for name in names:
        if found.count(name) > 1:
            raise ValueError(f"expected each column once, found {name} {found.count(name)} times")
        if name in found:
            return found.index(name)
    return None


def matches(header):
    """(number of known columns, number of columns); largest with the right delimiter."""
    known = {*NAMES, *CLASSES, *SPLIT_NAMES, *ALIASES, *(c for box in BOXES for c in box)}
    return sum(PREFIX.sub("", plain(name)) in known for name in header), len(header)


def find_columns(header):
    """The Columns of a table; ValueError if some are missing or ambiguous."""
    name, label = find(header, NAMES), find(header, (*CLASSES, "name"))
    if name is None:
        raise ValueError(f"expected {EXPECTED}, found {', '.join(header)}")
    label = None if label == name else label
    sides = [PREFIX.sub("", plain(column)) for column in header]
    prefixed = [bool(PREFIX.match(plain(column))) for column in header]
    for with_prefix in (True, False):  # width may be the picture's where bbox_width is the box's
        places = {i: sides[i] for i, has in enumerate(prefixed) if has == with_prefix}
        for box, corners in BOXES.items():
            chosen = [side_column(header, places, side) for side in box]
            if None not in chosen and not ("x2" in box and "x3" in sides):  # of four corners
                size = picture_size(header, chosen)
                return Columns(name, tuple(chosen), corners, size, label)
    for box in BOXES:
        if len(missing := set(box) - {ALIASES.get(side, side) for side in sides}) == 1:
            raise ValueError(f"expected the columns {', '.join(box)}, found no {missing.pop()}")
    return Columns(name, label=label)


def side_column(header, places, side):
    """The column among {number: name} for a side of a box, or None; ValueError if there are two."""
    found = [i for i, name in places.items() if name == side]
    found = found or [i for i, name in places.items() if ALIASES.get(name) == side]
    if len(found) > 1:
        names = ", ".join(header[i] for i in found)
        raise ValueError(f"expected each column once, found {len(found)} for {side}: {names}")
    return found[0] if found else None


def picture_size(header, used):
    """The numbers of the columns with the picture's width and height; () if there are none."""
    found = [plain(name) for name in header]
    for sides in (("imagewidth", "imageheight"), ("imgwidth", "imgheight"), ("width", "height")):
        places = [found.index(side) for side in sides if side in found]
        if len(places) == 2 and not set(places) & set(used):
            return tuple(places)
    return ()


def split_column(header, rows):
    """The number of the column of splits, or None; ValueError for a value that is no split.

    A column with a less certain name, such as "set", only counts if it holds nothing but splits.
    """
    number = find(header, SPLIT_NAMES)
    if number is None:
        return None
    for line, row in rows.items():
        if row[number].casefold() not in SPLIT_WORDS and cell_text(row[number]):
            if plain(header[number]) != "split":
                return None
            expected = f"{', '.join(SPLITS)} or nothing as split"
            raise ValueError(f"line {line}: expected {expected}, found {row[number]}")
    return number


def complete_rows(rows, count, columns):
    """({line: cells} of the rows with a cell per column, [(line, problem)] of the others)."""
    whole, problems = {}, []
    for line, row in rows.items():
        row = trimmed(row)
        if len(row) > count:
            problems.append((line, f"expected {count} cells like the first line, found {len(row)}"))
        elif not (row := [*row, *[""] * (count - len(row))])[columns.name]:
            problems.append((line, "expected the name of a picture, found none"))
        else:
            whole[line] = row
    return whole, problems


def read_rows(path, rows, columns, comma):
    """The Notes of {line: cells}; `comma` is an alternative decimal point."""
    notes = []
    for line, row in rows.items():
        box, problem = read_numbers([row[i] for i in columns.box], comma)
        if box:
            box = columns.corners[1](*box)
        size = read_numbers([row[i] for i in columns.size], comma)[0]
        size = size if size and min(size) > 0 else None  # some tools write 0
        label = cell_text(row[columns.label]) if columns.label is not None else ""
        label = re.sub(r"^(-?\d+)\.0+$", r"\1", label)  # a class number that went through floats
        label = "" if label == "-1" else label  # as in the H5 files
        split = "" if columns.split is None else SPLIT_WORDS.get(row[columns.split].casefold(), "")
        where = f"{path.name} line {line}"
        notes.append(Note(row[columns.name], where, box, size, label, split, problem=problem))
    return notes


def cell_text(text):
    """The text of a cell; "" if it means a missing value."""
    return "" if text.casefold() in MISSING else text


def read_numbers(texts, comma):
    """(numbers, "") of cells; ((), "") if all are empty, ((), problem) if one is no number."""
    texts = [cell_text(text) for text in texts]
    if not any(texts):
        return (), ""
    try:
        numbers = tuple(float(text.replace(comma, ".")) for text in texts)
        if np.isfinite(numbers).all():
            return numbers, ""
    except ValueError:
        pass
    shown = ", ".join(text or "nothing" for text in texts)
    return (), f"expected {len(texts)} numbers, found {shown}"


def fractions(notes):
    """Whether all boxes lie between 0 and 1, and so must be fractions of width and height."""
    boxes = np.array([note.box for note in notes if note.box])
    return len(boxes) > 0 and boxes.min() >= -1e-3 and boxes.max() <= 1 + 1e-3


def sizes_are_of_boxes(notes):
    """Whether the columns width and height are those of the boxes, not of the pictures."""
    notes = [note for note in notes if note.box and note.size]
    sides = np.array([np.subtract(note.box[2:], note.box[:2]) for note in notes])
    return len(notes) > 0 and np.abs(sides - [note.size for note in notes]).max() <= 1


def describe(header, columns, unit):
    """The columns and how they are read, in words."""
    used = {"name": (columns.name,), "box": columns.box, "picture's size": columns.size}
    used |= {"class": (columns.label,), "split": (columns.split,)}
    parts = []
    for what, places in used.items():
        if places and None not in places:
            kind = f" ({columns.corners[0]}, {unit})" if what == "box" else ""
            parts.append(f"{what}: {', '.join(header[i] for i in places)}{kind}")
    rest = [name for i, name in enumerate(header) if not any(i in p for p in used.values())]
    if rest:
        parts.append(f"not used: {examples([name or 'a column without name' for name in rest], 8)}")
    return "; ".join(parts)
