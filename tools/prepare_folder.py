"""Turn a folder of your own pictures into the H5 layout of dataload.py.

    python tools/prepare_folder.py --images photos --masks outlines --table known.csv --out DATA
    python tools/prepare_folder.py --images photos --masks outlines --ignore 255 --out DATA

A mask is a picture with the name of its image, whatever the ending: 0 is background, any other
value foreground, and the value of --ignore unknown. The table is a CSV file with the column `name`
(an image's name, with or without its ending) and any of xmin, ymin, xmax, ymax (in pixels of the
image, right and lower edge exclusive), class (two names in all) and split (train, val or test).
What is missing or empty is unknown; so is what does not fit, which is named on stderr and counted.

Images without a split are dealt to train, val and test by the two fractions; if there are masks,
val and test get images with a mask only. Near-duplicates stay together; where they cannot, those
of val and test images are left out of train. Images become squares.
"""

import csv
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS
from parts.commandline import Parser
from parts.errors import UserError
from parts.targets import UNKNOWN
from tools.shared import splitting
from tools.shared.common import command, complain
from tools.shared.pictures import list_pictures, read_picture

CORNERS = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = ("name", *CORNERS, "class", "split")


def pictures_in(folder, out):
    """{name without ending: path} of a folder's pictures; UserError if none, or two of one name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of pictures, found no such folder")
    paths = list_pictures([folder], out).values()
    for stem, count in Counter(path.stem for path in paths).items():
        if count > 1:
            raise UserError(f"{folder}: expected one picture {stem}, found {count} of that name")
    return {path.stem: path for path in paths}


def read_table(path):
    """{name: {column: text}} of the rows of a CSV file, and its classes; raises UserError."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--table {path}: expected a CSV file, found {error}") from error
    columns = [column for row in rows[:1] for column in row]
    if "name" not in columns or not set(columns) <= set(COLUMNS):
        expected = f"the columns name and any of {', '.join(COLUMNS[1:])}"
        raise UserError(f"--table {path}: expected {expected}, found {columns or 'no rows'}")
    rows = [{column: (row.get(column) or "").strip() for column in COLUMNS} for row in rows]
    for name, count in Counter(row["name"] for row in rows).items():
        if count > 1:
            raise UserError(f"--table {path}: expected {name} once, found it {count} times")
    for split in {row["split"] for row in rows} - {"", *SPLITS}:
        expected = f"{', '.join(SPLITS)} or nothing as split"
        raise UserError(f"--table {path}: expected {expected}, found {split}")
    classes = sorted({row["class"] for row in rows} - {""})
    if len(classes) > 2:
        found = ", ".join(classes)
        raise UserError(f"--table {path}: expected two classes at most, found {found}")
    return {row["name"]: row for row in rows}, classes


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
    """(4,) box of a table's row in pixels of the resized image; ValueError if it does not fit."""
    texts = [row[corner] for corner in CORNERS]
    if not any(texts):
        return splitting.NO_BOX
    width, height = picture.size
    box = np.array([float(text) for text in texts])
    if not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
        raise ValueError(f"expected a box inside {width} x {height}, found {box.tolist()}")
    return box / [width, height, width, height] * size


def read_sample(path, mask_path, row, label, options, problems):
    """A Sample, or None for a damaged picture; what does not fit is counted in `problems`."""

    def attempt(what, read, *arguments, default):
        try:
            return read(*arguments)
        except (OSError, ValueError) as error:
            problems[what] += 1
            complain(f"{path.name}: {what} not used: {' '.join(str(error).split())}")
            return default

    picture, assumption = attempt("picture", read_picture, path, default=(None, ""))
    if assumption:
        complain(f"{path.name}: {assumption}")
    if picture is None:
        return None
    size, mask = options.size, np.full((options.size, options.size, 1), UNKNOWN, np.uint8)
    if mask_path:
        mask = attempt("mask", read_mask, mask_path, picture, size, options.ignore, default=mask)
    box = attempt("box", read_box, row, picture, size, default=splitting.NO_BOX)
    return splitting.Sample(*splitting.resize(picture, size), mask, box, label, split=row["split"])


def split_up(samples, options):
    """{split: [Sample]}: samples without a split are dealt, those without a mask to train.

    Those that are then near-duplicates of val or test samples are left out of train.
    """
    rest = [i for i, sample in enumerate(samples) if not sample.split]
    rest = [i for i in rest if samples[i].has_mask] or rest
    chosen, val, test = [samples[i] for i in rest], options.val_fraction, options.test_fraction
    labels, groups = [sample.label + 1 for sample in chosen], splitting.group(chosen)
    generator = np.random.default_rng(options.seed)
    parts = splitting.deal(labels, groups, np.array([1 - val - test, val, test]), generator)
    parts, splits = dict(zip(rest, parts, strict=True)), {split: [] for split in SPLITS}
    for i, sample in enumerate(samples):
        splits[sample.split or SPLITS[parts.get(i, 0)]].append(sample)
    return splitting.without_copies(splits)


def parse(argv):
    """The options; raises UserError for values that do not fit together."""
    parser = Parser("prepare_folder.py", __doc__)
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="the folder of the pictures")
    add("--masks", metavar="DIR", help="the folder of their masks, of the same names")
    add("--table", metavar="CSV", help="boxes, classes and splits")
    add("--ignore", type=int, metavar="V", help="the value of unknown pixels in the masks")
    splitting.add_flags(add)
    options = parser.parse_args(argv)
    splitting.check_flags(options, "images", "masks", "table")
    return options


@command
def main(argv):
    """Read the pictures, split them, write the splits and report."""
    options = parse(argv)
    out = options.out
    splitting.check_output(out, options.force)
    pictures = pictures_in(options.images, out)
    table, classes = read_table(options.table) if options.table else ({}, [])
    masks = pictures_in(options.masks, out) if options.masks else {}
    problems, samples, used = Counter(), [], set()
    with splitting.staged(out, options.force) as folder:
        for stem, path in pictures.items():
            used.add(name := path.name if path.name in table else stem)
            row = table.get(name, dict.fromkeys(COLUMNS, ""))
            label = classes.index(row["class"]) if row["class"] else -1
            samples.append(read_sample(path, masks.get(stem), row, label, options, problems))
        samples = [sample for sample in samples if sample]
        problems["row without a picture"] += len(set(table) - used)
        problems["mask without a picture"] += len(set(masks) - set(pictures))
        splits = split_up(samples, options)
        problems["near-duplicate of val or test"] = len(samples) - sum(map(len, splits.values()))
        names = [*classes, *("class 0", "class 1")[len(classes) :]]
        splitting.save(folder, splits, {"binary": names}, {"source": "tools/prepare_folder.py"})
    splitting.print_summary(out, splits, names)
    found = [f"{what}: {count}" for what, count in problems.items() if count]
    print(f"not used: {', '.join(found) or 'nothing'}; written to {out}")


if __name__ == "__main__":
    sys.exit(main())
