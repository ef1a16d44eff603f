"""Annotation files as Notes: COCO and labelme JSON, Pascal VOC XML, YOLO text.

Tools that write other formats can usually export one of these.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter

import numpy as np

from parts.errors import one_line
from tools.shared.notes import Note
from tools.shared.pictures import entries

KINDS = (".json", ".xml", ".txt")
LARGEST = 2 * 10**8  # pixels of an object's region


class FormatError(ValueError):
    """A file of another kind, such as a camera's or cloud service's metadata of a picture."""


def read_annotations(path, names):
    """The Notes of an annotation file; FormatError for another kind, ValueError for a damaged one.

    Args:
        names: the Names of the pictures. A file about one picture has its name or contains it.
    """
    read = {".json": read_json, ".xml": read_voc, ".txt": read_yolo}[path.suffix.lower()]
    try:
        return list(read(path, lambda name: path.name if names.find(path.name)[0] else name))
    except FormatError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"expected a complete {path.suffix}, found {one_line(error)}") from error
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise ValueError(one_line(error)) from error


def read_folder(folder, names, recursive):
    """(notes, what was read in words or "", files read, [(path, problem)]) of a folder.

    Other files are ignored, and so are text files that are not named like a picture.
    """
    notes, files, problems, kinds = [], [], [], Counter()
    for path in entries(folder, recursive):
        kind = path.suffix.lower()
        if kind not in KINDS or not path.is_file():
            continue
        if kind == ".txt" and not names.find(path.name)[0]:
            continue
        try:
            notes += read_annotations(path, names)
            kinds[kind] += 1
        except FormatError:
            continue
        except ValueError as error:
            problems.append((path, error))
        files.append(path)
    found = ", ".join(f"{count} {kind} files" for kind, count in kinds.items())
    words = f"{folder.name}: {found}; {describe(notes)}" if found else ""
    return notes, words, files, problems


def describe(notes):
    """The contents of annotations, in words."""
    outlines = sum(note.has_outline for note in notes)
    boxes = sum(bool(note.box) for note in notes)
    return f"{boxes} boxes, {outlines} outlines"


def read_json(path, choose):
    """Yield the Notes of a COCO or labelme file."""
    data = json.loads(path.read_bytes())
    if isinstance(data, dict) and "shapes" in data:
        yield from read_labelme(data, choose(data.get("imagePath") or path.name), path.name)
    elif isinstance(data, dict) and "images" in data and "annotations" in data:
        yield from read_coco(data, path.name)
    else:
        found = ", ".join(list(data)[:5]) if isinstance(data, dict) else type(data).__name__
        raise FormatError(f"expected images and annotations (COCO) or shapes, found {found}")


def read_coco(data, where):
    """Yield the Notes of COCO's dict, https://cocodataset.org/#format-data."""
    categories = {entry["id"]: str(entry["name"]) for entry in data.get("categories") or ()}
    pictures = {entry["id"]: entry for entry in data["images"]}
    for picture in pictures.values():
        yield Note(picture["file_name"], where)
    for entry in data["annotations"]:
        if (picture := pictures.get(entry["image_id"])) is not None:
            size = picture_size(picture.get("width"), picture.get("height"))
            label = categories.get(entry.get("category_id"), "")
            place = f"{where} annotation {entry.get('id', '')}".strip()
            note = Note(picture["file_name"], place, size=size, label=label)
            try:
                yield with_coco_object(note, entry)
            except (ValueError, TypeError, KeyError, IndexError) as error:
                yield note._replace(problem=f"expected a box or an outline, found {error}")


def with_coco_object(note, entry):
    """The Note with the box and the outline of an annotation."""
    outline, box = entry.get("segmentation") or (), entry.get("bbox") or ()
    if isinstance(outline, dict):
        note = note._replace(region=decode(outline))
    elif outline:
        note = with_polygons(note, outline if isinstance(outline[0], list) else [outline])
    if box:
        x, y, width, height = map(float, box)
        note = note._replace(box=(x, y, x + width, y + height))
    return note


def read_labelme(data, name, where):
    """Yield the Notes of labelme's dict, without points and lines."""
    size = picture_size(data.get("imageWidth"), data.get("imageHeight"))
    yield Note(name, where)
    for shape in data["shapes"]:
        note = Note(name, where, size=size, label=str(shape.get("label") or ""))
        points = np.array(shape["points"], float).reshape(-1, 2)
        kind = shape.get("shape_type") or "polygon"
        if kind == "rectangle":
            yield note._replace(box=bounds(points))
        elif kind == "circle":  # its centre, and a point on it
            angle = np.linspace(0, 2 * np.pi, 64)
            radius = np.hypot(*(points[1] - points[0]))
            ring = points[0] + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
            yield with_polygons(note, [ring])
        elif kind == "polygon":
            yield with_polygons(note, [points])


def read_voc(path, choose):
    """Yield the Notes of a Pascal VOC file: objects with bndbox and perhaps a polygon."""
    root = ElementTree.fromstring(path.read_bytes())
    if root.tag != "annotation":
        raise FormatError(f"expected <annotation> (Pascal VOC), found <{root.tag}>")
    name = choose(root.findtext("filename") or path.name)
    size = picture_size(root.findtext("size/width"), root.findtext("size/height"))
    yield Note(name, path.name)
    for entry in root.iter("object"):
        note = Note(name, path.name, size=size, label=(entry.findtext("name") or "").strip())
        if (polygon := entry.find("polygon")) is not None:
            x, y = ([one for one in polygon.iter() if one.tag.startswith(axis)] for axis in "xy")
            points = [(float(a.text), float(b.text)) for a, b in zip(x, y, strict=True)]
            note = with_polygons(note, [points])
        if (box := entry.find("bndbox")) is not None:
            sides = ("xmin", "ymin", "xmax", "ymax")
            note = note._replace(box=tuple(float(box.findtext(side)) for side in sides))
        yield note


def read_yolo(path, choose):
    """Yield the Notes of a YOLO file: class, centre and size, or class and outline, as fractions.

    The names of the classes are the lines of classes.txt in the same folder.
    """
    name, lines = choose(path.name), path.read_text(encoding="utf-8-sig").splitlines()
    listed = path.with_name("classes.txt")
    listed = listed.read_text(encoding="utf-8-sig").split("\n") if listed.is_file() else []
    yield Note(name, path.name)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        label, *values = line.split()
        if number == 1 and not label.isdecimal():
            raise FormatError(f"expected the number of a class, found {label}")
        values = [float(value) for value in values]
        if label.isdecimal() and int(label) < len(listed):
            label = listed[int(label)].strip() or label
        note = Note(name, f"{path.name} line {number}", size=(1, 1), label=label)
        if len(values) in (4, 5):  # 5: with a confidence
            x, y, w, h = values[:4]
            yield note._replace(box=(x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        elif len(values) >= 6 and len(values) % 2 == 0:
            yield with_polygons(note, [values])
        else:
            raise ValueError(f"line {number}: expected a class and 4 numbers, found {line[:80]}")


def with_polygons(note, rings):
    """The Note with outlines of at least three points each, and their bounds as its box."""
    rings = [np.array(ring, float).reshape(-1, 2) for ring in rings]
    rings = tuple(ring for ring in rings if len(ring) >= 3)
    return note._replace(polygons=rings, box=bounds(np.concatenate(rings))) if rings else note


def bounds(points):
    """xmin, ymin, xmax, ymax of (n, 2) points."""
    return (*points.min(0).tolist(), *points.max(0).tolist())


def picture_size(width, height):
    """(width, height) as numbers; None if they are missing or, as from some tools, 0."""
    width, height = (float(side or 0) for side in (width, height))
    return (width, height) if width > 0 and height > 0 else None


def decode(run_lengths):
    """bool (H, W) of COCO's run lengths, column by column from 0, as a list or compressed.

    https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c, rleFrString.
    """
    (height, width), counts = run_lengths["size"], run_lengths["counts"]
    if isinstance(counts, str):
        text, counts, number, shift = counts, [], 0, 0
        for code in (ord(letter) - 48 for letter in text):  # 5 bits each, the lowest first
            number |= (code & 31) << shift
            shift += 5
            if not code & 32:  # the last one of a number, whose highest bit is the sign
                number -= (code & 16) << (shift - 4)
                counts.append(number + (counts[-2] if len(counts) > 2 else 0))
                number = shift = 0
    if min(counts) < 0 or sum(counts) != height * width or height * width > LARGEST:
        raise ValueError(f"expected run lengths of {height} x {width} pixels, found {sum(counts)}")
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(width, height).T.copy()
