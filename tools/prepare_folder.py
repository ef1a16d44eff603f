"""Turn a folder of pictures of your own into the H5 layout of dataload.py.

    python tools/prepare_folder.py --images photos --masks outlines --table known.csv --out DATA
    python tools/prepare_folder.py --images photos --masks outlines --ignore 255 --out DATA

Masks are pictures of the same name but for the ending: 0 is background, any other value foreground,
and the value of --ignore is not known. The table is a CSV file with the column `name` (a picture's
name, with or without its ending) and any of xmin, ymin, xmax, ymax (in pixels of the picture, right
and lower edge exclusive), class (two names in all) and split (train, val or test). What is missing
or empty is unknown. What does not fit is named on stderr, counted, and left unknown.

Pictures without a split are dealt to train, val and test by the two fractions; val and test get
pictures with a mask where there are masks. Near-duplicates stay together. Pictures are resized to
squares, whatever their own sides.
"""

import csv
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataload import SPLITS, UNKNOWN, near_duplicates, thumbnails, write_split
from engine.settings import Parser, UserError, whole_number
from tools.common import as_path, complain, run_tool
from tools.predict import list_pictures, read_picture
from tools.prepare_pets import check_output, deal, staged

CORNERS = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = ("name", *CORNERS, "class", "split")


class Known(NamedTuple):
    """One picture, resized to (S, S), and what is known about it."""

    image: np.ndarray  # uint8 (S, S, 3)
    mask: np.ndarray  # uint8 (S, S, 1) in {0, 1, 255}
    box: np.ndarray  # (4,) in pixels of the resized picture; NaN = unknown
    kind: str  # the class, "" = unknown
    split: str  # "" = to be dealt


def pictures_in(folder, options):
    """{name without ending: path} of the pictures in a folder.

    Raises:
        UserError: there is no such folder, no picture in it, or two of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of pictures, found no such folder")
    paths = list_pictures([folder], options.out).values()
    for stem, count in Counter(path.stem for path in paths).items():
        if count > 1:
            raise UserError(f"{folder}: expected one picture {stem}, found {count} of that name")
    return {path.stem: path for path in paths}


def read_table(path):
    """{name: row of the CSV file}, a row being {column: text}.

    Raises:
        UserError: no such file, a column that is not known, or a name given twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--table {path}: expected a CSV file, found {error}") from error
    columns = [column for row in rows[:1] for column in row]
    if "name" not in columns or not set(columns) <= set(COLUMNS):
        expected = f"the columns name and any of {', '.join(COLUMNS[1:])}"
        raise UserError(f"--table {path}: expected {expected}, found {columns or 'no rows'}")
    for name, count in Counter(row["name"] for row in rows).items():
        if count > 1:
            raise UserError(f"--table {path}: expected {name} once, found it {count} times")
    return {row["name"]: row for row in rows}


def read_mask(path, picture, size, ignore):
    """uint8 (size, size, 1) in {0, 1, 255} from a mask's file; ValueError if it does not fit."""
    with Image.open(path) as file:
        if file.size != picture.size:
            raise ValueError(f"expected a mask of {picture.size}, found {file.size}")
        values = file if file.mode in ("L", "P", "1", "I", "I;16") else file.convert("L")
        values = np.asarray(values.resize((size, size), Image.Resampling.NEAREST)).astype(int)
    mask = (values != 0).astype(np.uint8)
    if ignore is not None:
        mask[values == ignore] = UNKNOWN
    return mask[..., None]


def read_box(row, picture, size):
    """(4,) box of a table's row in pixels of the resized picture; ValueError if it does not fit."""
    texts = [(row.get(corner) or "").strip() for corner in CORNERS]
    if not any(texts):
        return np.full(4, np.nan)
    width, height = picture.size
    box = np.array([float(text) for text in texts])  # an empty one is no number either
    if not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
        raise ValueError(f"expected a box inside {width} x {height}, found {box.tolist()}")
    return box / [width, height, width, height] * size


def read_known(path, masks, row, options, problems):
    """A Known, or None for a picture that cannot be read; what does not fit goes to `problems`."""

    def attempt(what, function, default):
        try:
            return function()
        except (OSError, ValueError) as error:
            problems[what] += 1
            complain(f"{path.name}: {what} not used: {' '.join(str(error).split())}")
            return default

    picture, doubt = attempt("picture", lambda: read_picture(path), (None, ""))
    if picture is None:
        return None
    if doubt:
        complain(f"{path.name}: {doubt}")
    size, mask = options.size, np.full((options.size, options.size, 1), UNKNOWN, np.uint8)
    if path.stem in masks:
        file = masks[path.stem]
        mask = attempt("mask", lambda: read_mask(file, picture, size, options.ignore), mask)
    unknown = np.full(4, np.nan)
    box = attempt("box", lambda: read_box(row, picture, size), unknown)
    image = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    kind, split = ((row.get(column) or "").strip() for column in ("class", "split"))
    return Known(image, mask, box, kind, split)


def class_names_of(samples, path):
    """The names of class 0 and class 1, in alphabetical order; UserError for more than two."""
    names = sorted({sample.kind for sample in samples} - {""})
    if len(names) > 2:
        raise UserError(f"--table {path}: expected two classes at most, found {', '.join(names)}")
    return [*names, *("class 0", "class 1")[len(names) :]]


def split_up(samples, options):
    """{"train", "val", "test"} -> list of Known; UserError if one would be empty."""
    splits = {split: [sample for sample in samples if sample.split == split] for split in SPLITS}
    rest = [sample for sample in samples if not sample.split]
    masked = [bool((sample.mask != UNKNOWN).any()) for sample in rest]
    deals = [i for i in range(len(rest)) if masked[i] or not any(masked)]
    val, test = options.val_fraction, options.test_fraction
    if deals:
        images = torch.from_numpy(np.stack([rest[i].image for i in deals])).permute(0, 3, 1, 2)
        groups = np.arange(len(deals))
        for i, j in near_duplicates(*[thumbnails(images)] * 2):
            groups[groups == groups[j]] = groups[i]
        kinds = [sorted({s.kind for s in rest}).index(rest[i].kind) for i in deals]
        fractions = np.array([1 - val - test, val, test])
        parts = deal(kinds, groups, fractions, np.random.default_rng(options.seed))
        chosen = {i: SPLITS[part] for i, part in zip(deals, parts, strict=True)}
        for i, sample in enumerate(rest):
            splits[chosen.get(i, "train")].append(sample)
    for split, members in splits.items():
        if not members:
            raise UserError(
                f"--images: expected a picture at least for {split}, found none of {len(samples)}; "
                "give more pictures, other fractions, or a column `split` in the table"
            )
    return splits


def prepare(argv):
    """Read, split, write and report."""
    options = parse(argv)
    check_output(options.out, options.force)
    pictures = pictures_in(options.images, options)
    table = read_table(options.table) if options.table else {}
    masks = pictures_in(options.masks, options) if options.masks else {}
    problems, samples, used = Counter(), [], set()
    for path in pictures.values():
        name = path.name if path.name in table else path.stem
        used |= {name}
        sample = read_known(path, masks, table.get(name, {}), options, problems)
        if sample and sample.split not in ("", *SPLITS):
            raise UserError(
                f"--table: expected {', '.join(SPLITS)} or nothing as split, found {sample.split}"
            )
        samples += [sample] if sample else []
    problems["row without a picture"] += len(set(table) - used)
    problems["mask without a picture"] += len(set(masks) - {Path(name).stem for name in used})
    names, splits = class_names_of(samples, options.table), split_up(samples, options)
    with staged(options.out, options.force) as folder:
        for split, members in splits.items():
            images, pixels, boxes, kinds, _ = zip(*members, strict=True)
            labels = [names.index(kind) if kind else -1 for kind in kinds]
            arrays = np.stack(images), np.stack(pixels), np.stack(boxes), labels
            write_split(folder / split, *arrays, names, {"source": "tools/prepare_folder.py"})
    for split, members in splits.items():
        known = (
            f"{sum(bool((s.mask != UNKNOWN).any()) for s in members)} masks",
            f"{sum(not np.isnan(s.box).any() for s in members)} boxes",
            *(f"{sum(s.kind == name for s in members)} {name}" for name in names),
        )
        print(f"{split}: {len(members)} pictures, {', '.join(known)}")
    found = [f"{what}: {count}" for what, count in problems.items() if count]
    print(f"not used: {', '.join(found) or 'nothing'}; written to {options.out}")


def parse(argv):
    """The options; a wrong one ends the process with code 2."""
    parser = Parser("prepare_folder.py", __doc__)
    add, path = parser.add_argument, lambda text: as_path(text, "path")
    add("--images", type=path, required=True, metavar="DIR", help="the pictures")
    add("--masks", type=path, metavar="DIR", help="their masks, of the same names")
    add("--table", type=path, metavar="CSV", help="boxes, classes and splits")
    add("--out", type=path, required=True, metavar="DATA", help="the folder to create")
    side = "side in pixels (256); the networks need a multiple of 32"
    add("--size", type=whole_number(1, 8192), default=256, metavar="N", help=side)
    for split in ("val", "test"):
        text = f"share of the pictures that goes to {split} (0.2)"
        add(f"--{split}-fraction", type=float, default=0.2, metavar="X", help=text)
    add("--ignore", type=int, metavar="V", help="the value of a mask that is not known")
    add("--seed", type=whole_number(0, 2**32 - 1), default=0, metavar="N", help="of the splits (0)")
    add("--force", action="store_true", help="replace --out once the new one is complete")
    options = parser.parse_args(argv)
    val, test = options.val_fraction, options.test_fraction
    if not (val > 0 and test > 0 and val + test < 1):
        expected = "both above 0, their sum below 1"
        message = f"expected {expected}, found {val} and {test}"
        raise UserError(f"--val-fraction, --test-fraction: {message}")
    options.out = options.out.resolve()
    return options


def main(argv=None):
    """Run the tool; returns the exit code: 0, 2 for a mistake, 130 for Ctrl-C."""
    return run_tool("prepare_folder.py", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
