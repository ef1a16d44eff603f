"""Turn the Oxford-IIIT Pet folder into the H5 layout of dataload.py.

    python tools/prepare_pets.py --root DIR --out DIR [--download] [--add-unboxed] [--size 256]
    python tools/prepare_pets.py --root DIR --out DIR --names results/images.txt

The two lists of the source, trainval.txt and test.txt, are pooled and split anew, breed by
breed, because only images of trainval.txt have head boxes. Images without a box are left out or,
with --add-unboxed, added to train; val and test are the same with and without them. With --names
only the images listed there are taken, and drawn in the order of that list.

Images are resized to a square. The mask is 1 on the animal and its border (trimap != 2); boxes
are the numbers of the xml files, taken as pixel edges. Damage is named on stderr and counted.

All is written to a sibling folder OUT.partial-PID and renamed at the end; a killed run may leave
that folder, never a partial OUT. The files carry their provenance as attributes: `source_lines`
is the line of each sample, from 0, in trainval.txt followed by test.txt. At size 256 the full
set needs about 4 GB of memory.
"""

import argparse
import os
import shutil
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import ConcatDataset
from torchvision.datasets import OxfordIIITPet
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataload import DATASETS, SPLITS, DataError, H5Dataset, write_split

PETS = "oxford-iiit-pet"  # the folder name torchvision looks for
LISTS = ("trainval", "test")
TARGETS = ("category", "binary-category", "segmentation")
BACKGROUND = 2  # in a trimap; 1 is the pet, 3 its border
NO_BOX = np.full(4, np.nan)
SETTINGS = ("seed", "size", "val_fraction", "test_fraction", "add_unboxed")  # kept with the data
PROVENANCE = {
    "source": "Oxford-IIIT Pet, https://www.robots.ox.ac.uk/~vgg/data/pets/",
    "citation": "Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012",
    "licence": "CC BY-SA 4.0",
    "tool": "tools/prepare_pets.py",
}


class Sample(NamedTuple):
    """One image and what is known about it, resized to (S, S)."""

    image: np.ndarray  # uint8 (S, S, 3)
    mask: np.ndarray  # uint8 (S, S, 1) in {0, 1}
    box: np.ndarray  # (4,) xmin, ymin, xmax, ymax in pixels; NaN = no box
    species: int  # 0 cat, 1 dog
    breed: int  # 0-36
    line: int  # in trainval.txt followed by test.txt

    @property
    def is_boxed(self):
        """Whether the head box is known."""
        return not np.isnan(self.box).any()


def open_pets(root, download):
    """Both lists of the source as one data set, and {i: image name} of its samples.

    Sample i is a PIL image and its (breed 0-36, species 0 cat or 1 dog, PIL trimap).
    Raises DataError if the folder is not what torchvision expects.
    """
    folder = root / PETS
    if not download and not folder.is_dir():
        found = sorted(os.listdir(root))[:5] if root.is_dir() else "no such folder"
        raise DataError(f"--root {root}: expected {PETS}/ in it (or --download), found {found}")
    try:
        pets = [OxfordIIITPet(root, part, TARGETS, download=download) for part in LISTS]
    except (RuntimeError, ValueError, OSError) as error:
        where = f"--download to {folder}" if download else folder
        raise DataError(f"{where}: expected images/ and annotations/, found {error}") from error
    for name in ("images", "annotations/trimaps", "annotations/xmls"):
        if not any((folder / name).glob("*")):
            raise DataError(f"{folder / name}: expected the files of {PETS}, found none")
    lists = [(folder / f"annotations/{part}.txt").read_text() for part in LISTS]
    names = [line.split()[0] for text in lists for line in text.splitlines()]
    for name, count in Counter(names).items():
        if count > 1:  # it could end up in two splits
            raise DataError(f"{folder}/annotations/*.txt: expected {name} once, found {count}")
    return ConcatDataset(pets), dict(enumerate(names))


def choose(names, path):
    """Of {line: image name} those listed in a text file, in its order.

    Raises DataError if the file is not readable, or a listed name not among them or there twice.
    """
    lines = {name: line for line, name in names.items()}
    try:
        listed = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--names {path}: expected a text file, found {error}") from error
    for name, count in Counter(listed).items():
        if count > 1 or name not in lines:
            found = f"{name} {count} times" if count > 1 else f"{name}, which is no image of {PETS}"
            raise DataError(f"--names {path}: expected names of images, each once, found {found}")
    return {lines[name]: name for name in listed}


def read_pixels(pets, line, size):
    """Image uint8 (size, size, 3), mask uint8 (size, size, 1), breed, species, (width, height).

    The last is the size of the source in pixels.
    Raises DataError if image or trimap is missing, damaged, or does not fit the other.
    """
    what = "image and trimap"
    try:
        image, (breed, species, trimap) = pets[line]
        what = "trimap"  # torchvision has opened it, and decoded only the image
        values = np.unique(trimap)
    except Exception as error:  # Pillow has no common class for what damaged files raise
        raise DataError(f"expected a readable {what}, found: {error}") from error
    if trimap.size != image.size or not set(values) <= {1, 2, 3}:
        found = f"{trimap.size} and {values[:5]}"
        raise DataError(f"expected a trimap of {image.size} with values 1, 2, 3, found {found}")
    resized = image.resize((size, size), Image.Resampling.BILINEAR)  # Pillow antialiases
    trimap = np.asarray(trimap.resize((size, size), Image.Resampling.NEAREST))  # (size, size)
    return np.asarray(resized), (trimap != BACKGROUND)[..., None], breed, species, image.size


def read_box(path, width, height):
    """Head box (4,), xmin, ymin, xmax, ymax in [0, 1] of width and height; NaN without a file.

    Raises DataError if the file is not readable, or its box inverted or outside the image.
    """
    if not path.exists():
        return NO_BOX
    try:
        corners = ElementTree.parse(path).find("object/bndbox")
        box = [float(corners.find(key).text) for key in ("xmin", "ymin", "xmax", "ymax")]
    except (OSError, ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected a box at object/bndbox, found: {error}") from error
    if not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
        raise DataError(f"{path}: expected a box inside {width} x {height}, found {box}")
    return np.array(box) / [width, height, width, height]


def read_samples(pets, names, xmls, size, add_unboxed):
    """A list of every usable Sample, and a Counter of the defects found on the way.

    `names` is {line: image name} of those wanted, `xmls` the folder of the boxes.

    Without `add_unboxed`, None stands for an image without a box, so that the splits are drawn
    alike with and without them.
    """
    samples, defects = [], Counter()

    def note(defect, message):
        defects[defect] += 1
        tqdm.write(f"{name}: {message}", file=sys.stderr)

    for line, name in tqdm(names.items(), unit=" images", disable=None):
        xml = xmls / f"{name}.xml"
        if not xml.exists() and line < len(pets.datasets[0]):  # only the first list has boxes
            note("xml missing", f"expected {xml}, found no such file")
        if not xml.exists() and not add_unboxed:
            samples.append(None)  # half of the full set need not be decoded
            continue
        try:
            image, mask, breed, species, frame = read_pixels(pets, line, size)
        except DataError as error:
            note("image or trimap unusable", error)
            continue
        try:
            box = read_box(xml, *frame) * size
        except DataError as error:
            note("xml or box unusable", error)
            box = NO_BOX
        sample = Sample(image, mask, box, species, breed, line)
        samples.append(sample if add_unboxed or sample.is_boxed else None)
    return samples, defects


def draw_splits(samples, val_fraction, test_fraction, seed):
    """{"train", "val", "test"} -> list of Sample in random order, fixed by the seed.

    Of every breed, val and test get these fractions of the boxed samples, rounded. Samples
    without a box go to train, and None among the samples nowhere; it only takes part in the draw.
    Raises DataError if a split would be empty.
    """
    generator = np.random.default_rng(seed)
    boxed = np.array([sample is not None and sample.is_boxed for sample in samples], bool)
    breeds = np.array([-1 if sample is None else sample.breed for sample in samples])
    splits = {"train": list(np.flatnonzero(~boxed)), "val": [], "test": []}
    for breed in np.unique(breeds[boxed]):
        order = generator.permutation(np.flatnonzero(boxed & (breeds == breed)))
        cuts = np.rint(len(order) * np.cumsum([val_fraction, test_fraction])).astype(int)
        for split, part in zip(("val", "test", "train"), np.split(order, cuts), strict=True):
            splits[split].extend(part)
    for split, members in splits.items():
        drawn = [samples[i] for i in generator.permutation(members).astype(int)]
        splits[split] = [sample for sample in drawn if sample is not None]
        if not splits[split]:
            flags = f"--val-fraction {val_fraction}, --test-fraction {test_fraction}"
            found = f"none of {boxed.sum()} usable images with a box"
            raise DataError(f"{flags}: expected at least one sample in {split}, found {found}")
    return splits


def write_splits(folder, splits, class_names, provenance):
    """Write the H5 files of all splits, and open each as an experiment would."""
    for split, samples in splits.items():
        images, masks, boxes, species, _, lines = zip(*samples, strict=True)
        lines = np.array(lines, np.uint16)  # HDF5 takes attributes of at most 64 KB
        about = {**provenance, "split": split, "source_lines": lines}
        pixels = np.stack(images), np.stack(masks).view(np.uint8)
        write_split(folder / split, *pixels, np.stack(boxes), species, class_names, about)
        H5Dataset(split, folder, memory_limit=0)


def check_output(out, force):
    """Refuse an existing `out`; with `force`, only one with other files than this tool's."""
    if not out.exists():
        return
    if not force:
        raise DataError(f"--out {out}: expected a new folder (or --force), found one")
    ours = {out / split / f"{name}.h5" for split in SPLITS for name in DATASETS}
    for path in (out, *out.rglob("*")):
        if not path.is_dir() and path not in ours:
            raise DataError(f"--force: expected {out} to hold only H5 splits, found {path}")


@contextmanager
def staged(out, force):
    """An empty sibling folder that takes the place of `out` only if the block succeeds."""
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    replaced = out.with_name(f"{out.name}.replaced-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if force and out.exists():
            out.rename(replaced)
        partial.rename(out)
    except BaseException:
        if replaced.exists():
            replaced.rename(out)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def print_summary(out, splits, class_names):
    """A row for each split: samples, species, boxes, and megabytes (10^6 bytes) on disk."""
    columns = ("samples", *class_names, "boxed", "unboxed", "MB")
    print("split" + "".join(f"{column:>9}" for column in columns))
    for split, samples in splits.items():
        species = np.bincount([sample.species for sample in samples], minlength=2)
        boxed = sum(sample.is_boxed for sample in samples)
        megabytes = sum(path.stat().st_size for path in (out / split).iterdir()) / 1e6
        counts = (len(samples), *species, boxed, len(samples) - boxed)
        print(f"{split:5}" + "".join(f"{count:9}" for count in counts) + f"{megabytes:9.1f}")


class Parser(argparse.ArgumentParser):
    """Reports a wrong flag like every other mistake, in one line."""

    def error(self, message):
        raise DataError(message)


def parse_arguments(argv):
    """The settings, checked; raises DataError for a wrong one."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--root", type=Path, required=True, help=f"the folder that contains {PETS}/")
    add("--out", type=Path, required=True, help="the folder to create")
    add("--download", action="store_true", help="let torchvision fetch it into --root (800 MB)")
    add(
        "--size",
        type=int,
        default=256,
        help="side in pixels (256); the networks need a multiple of 32",
    )
    add("--val-fraction", type=float, default=0.2, help="share of the boxed images (0.2)")
    add("--test-fraction", type=float, default=0.2, help="share of the boxed images (0.2)")
    add("--seed", type=int, default=0, help="decides which image goes where (0)")
    add("--add-unboxed", action="store_true", help="add the images without a box to train")
    add("--names", type=Path, metavar="FILE", help="take the images listed in it only")
    add("--force", action="store_true", help="replace --out once the new one is complete")
    settings = parser.parse_args(argv)
    for flag, least, found in (("size", 1, settings.size), ("seed", 0, settings.seed)):
        if found < least:
            raise DataError(f"--{flag}: expected a whole number from {least} up, found {found}")
    val, test = settings.val_fraction, settings.test_fraction
    if not (val > 0 and test > 0 and val + test < 1):
        flags, expected = "--val-fraction, --test-fraction", "both above 0, their sum below 1"
        raise DataError(f"{flags}: expected {expected}, found {val} and {test}")
    settings.out = settings.out.resolve()  # so that a link is followed, not replaced
    return settings


def prepare(settings):
    """Read, split, write and report; raises DataError and OSError."""
    start = time.perf_counter()
    check_output(settings.out, settings.force)
    pets, names = open_pets(settings.root, settings.download)
    if settings.names:
        names = choose(names, settings.names)
    class_names = [name.lower() for name in pets.datasets[0].bin_classes]  # Cat is 0, Dog is 1
    xmls = settings.root / PETS / "annotations/xmls"
    provenance = {**PROVENANCE, **{name: getattr(settings, name) for name in SETTINGS}}
    with staged(settings.out, settings.force) as folder:
        samples, defects = read_samples(pets, names, xmls, settings.size, settings.add_unboxed)
        fractions = settings.val_fraction, settings.test_fraction
        splits = draw_splits(samples, *fractions, settings.seed)
        write_splits(folder, splits, class_names, provenance)
    print_summary(settings.out, splits, class_names)
    used = sum(map(len, splits.values()))
    found = ", ".join(f"{defect}: {count}" for defect, count in defects.items()) or "none"
    print(f"defects: {found}; left out: {len(names) - used} of {len(names)} images")
    print(f"{time.perf_counter() - start:.1f} s, written to {settings.out}")


def main(argv=None):
    """Run the tool; returns the exit code: 0, 2 for a mistake or damage, 130 for Ctrl-C."""
    try:
        prepare(parse_arguments(argv))
    except (DataError, OSError) as error:
        message, code = " ".join(str(error).split()), 2
    except MemoryError:
        message, code = "--size: expected images that fit into memory, found too little of it", 2
    except KeyboardInterrupt:
        message, code = "interrupted, nothing written", 130
    else:
        return 0
    print(f"prepare_pets: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
