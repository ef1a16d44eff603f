"""Turn the Oxford-IIIT Pet folder into the H5 layout of dataload.py.

    python tools/prepare_pets.py --root DIR --out DIR [--download] [--add-unboxed] [--size 256]
    python tools/prepare_pets.py --root DIR --out DIR --folds 5 --fold 0
    python tools/prepare_pets.py --root DIR --out DIR --mask-share 0.1
    python tools/prepare_pets.py --root DIR --out DIR --names results/images.txt

The two lists of the source, trainval.txt and test.txt, are pooled and split anew, breed by breed,
because only images of trainval.txt have head boxes. Images without a box are left out or, with
--add-unboxed, added to train; val and test are the same with and without them. Near-duplicates,
of which the source has some, stay in one split. With --folds N the images with a box are dealt to
N parts: part K of --fold K is test, the next one val, so that each is tested once. Which image
goes where does not depend on --size. With --names only the images listed there are taken.

Images are resized to a square. The mask is 1 on the animal and its border, or 255, not known, on
the border with --border ignore; the whole-numbered pixels of a box of the xml files belong to it.
--mask-share, --box-share and --label-share keep a part of what is known in train, chosen breed by
breed; a smaller share is part of a larger one. Damage is named on stderr and counted.

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
import torch
from PIL import Image
from torch.utils.data import ConcatDataset
from torchvision.datasets import OxfordIIITPet
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataload import (
    DATASETS,
    SPLITS,
    UNKNOWN,
    DataError,
    H5Dataset,
    near_duplicates,
    thumbnails,
    write_split,
)
from engine.settings import Parser, UserError
from tools.common import run_tool

PETS = "oxford-iiit-pet"  # the folder name torchvision looks for
LISTS = ("trainval", "test")
TARGETS = ("category", "binary-category", "segmentation")
BACKGROUND, BORDER = 2, 3  # in a trimap; 1 is the pet
NO_BOX = np.full(4, np.nan)
SHARES = ("mask_share", "box_share", "label_share")
SETTINGS = ("seed", "size", "val_fraction", "test_fraction", "add_unboxed")  # kept with the data
SETTINGS += ("folds", "fold", "border", *SHARES)
PROVENANCE = {
    "source": "Oxford-IIIT Pet, https://www.robots.ox.ac.uk/~vgg/data/pets/",
    "citation": "Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012",
    "licence": "CC BY-SA 4.0",
    "tool": "tools/prepare_pets.py",
}


class Sample(NamedTuple):
    """One image and what is known about it, resized to (S, S)."""

    image: np.ndarray  # uint8 (S, S, 3)
    mask: np.ndarray  # uint8 (S, S, 1) in {0, 1, 255}
    small: torch.Tensor  # its thumbnail, by which near-duplicates are found
    box: np.ndarray  # (4,) xmin, ymin, xmax, ymax in pixels; NaN = no box
    species: int  # 0 cat, 1 dog, -1 not known
    breed: int  # 0-36, -1 not known
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
        listed = path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--names {path}: expected a text file, found {error}") from error
    for name, count in Counter(listed).items():
        if count > 1 or name not in lines:
            found = f"{name} {count} times" if count > 1 else f"{name}, which is no image of {PETS}"
            raise DataError(f"--names {path}: expected names of images, each once, found {found}")
    return {lines[name]: name for name in listed}


def read_pixels(pets, line, size, border):
    """A Sample of this size without its box, and (width, height) of the source in pixels.

    `border` is the mask's value on the border of the pet.
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
    trimap = np.asarray(trimap.resize((size, size), Image.Resampling.NEAREST))[..., None]
    mask = np.where(trimap == BORDER, border, trimap != BACKGROUND).astype(np.uint8)
    small = thumbnails(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])[0]
    return Sample(np.asarray(resized), mask, small, NO_BOX, species, breed, line), image.size


def read_box(path, width, height):
    """Head box (4,), xmin, ymin, xmax, ymax in [0, 1] of width and height; NaN without a file.

    The file counts pixels from 1 and names the first and last ones inside; these are the edges.

    Raises DataError if the file is not readable, or its box inverted or outside the image.
    """
    if not path.exists():
        return NO_BOX
    try:
        corners = ElementTree.parse(path).find("object/bndbox")
        box = [float(corners.find(key).text) for key in ("xmin", "ymin", "xmax", "ymax")]
    except (OSError, ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected a box at object/bndbox, found: {error}") from error
    if not (0 <= box[0] <= box[2] <= width and 0 <= box[1] <= box[3] <= height):
        raise DataError(f"{path}: expected a box inside {width} x {height}, found {box}")
    left, top = max(box[0] - 1, 0), max(box[1] - 1, 0)
    return np.array([left, top, *box[2:]]) / [width, height, width, height]


def read_samples(pets, names, xmls, settings):
    """A list of every usable Sample, and a Counter of the defects found on the way.

    `names` is {line: image name} of those wanted, `xmls` the folder of the boxes.

    Without `settings.add_unboxed`, None stands for an image without a box, so that the splits are
    drawn alike with and without them.
    """
    samples, defects = [], Counter()
    border = UNKNOWN if settings.border == "ignore" else 1

    def note(defect, message):
        defects[defect] += 1
        tqdm.write(f"{name}: {message}", file=sys.stderr)

    for line, name in tqdm(names.items(), unit=" images", disable=None):
        xml = xmls / f"{name}.xml"
        if not xml.exists() and line < len(pets.datasets[0]):  # only the first list has boxes
            note("xml missing", f"expected {xml}, found no such file")
        if not xml.exists() and not settings.add_unboxed:
            samples.append(None)  # half of the full set need not be decoded
            continue
        try:
            sample, frame = read_pixels(pets, line, settings.size, border)
        except DataError as error:
            note("image or trimap unusable", error)
            continue
        try:
            sample = sample._replace(box=read_box(xml, *frame) * settings.size)
        except DataError as error:
            note("xml or box unusable", error)
        samples.append(sample if settings.add_unboxed or sample.is_boxed else None)
    return samples, defects


def copies(samples, others):
    """Pairs (i, j) for which samples[i] is a near-duplicate of others[j]."""
    if not samples or not others:
        return ()
    return near_duplicates(*(torch.stack([s.small for s in some]) for some in (samples, others)))


def group(samples):
    """(N,) numbers, the same for samples of one picture, directly or by way of others."""
    groups = np.arange(len(samples))
    for i, j in copies(samples, samples):
        if groups[i] != groups[j]:
            groups[groups == groups[j]] = groups[i]
    return groups


def deal(breeds, groups, fractions, generator):
    """(N,) the part each sample goes to, a group as a whole, in random order.

    Each goes where the breed, and among equals where the whole, lies furthest behind its fraction.
    """
    parts, counts = np.zeros(len(groups), int), np.zeros((max([0, *breeds]) + 1, len(fractions)))
    for number in generator.permutation(np.unique(groups)):
        members = np.flatnonzero(groups == number)
        breed = breeds[members[0]]
        own = np.round((counts[breed] + len(members) / 2) / fractions, 9)
        part = np.lexsort((counts.sum(0) / fractions, own))[0]
        parts[members], counts[breed, part] = part, counts[breed, part] + len(members)
    return parts


def draw_splits(samples, settings):
    """{"train", "val", "test"} -> list of Sample in random order, fixed by the seed.

    Of every breed, val and test get their fractions, or a fold each, of the boxed samples. Samples
    without a box go to train, but for near-duplicates of val and test, which are left out; None
    goes nowhere and only takes part in the draw.
    Raises DataError if a split would be empty.
    """
    generator = np.random.default_rng(settings.seed)
    boxed = [i for i, sample in enumerate(samples) if sample is not None and sample.is_boxed]
    chosen = [samples[i] for i in boxed]
    val, test = settings.val_fraction, settings.test_fraction
    fractions = np.array([test, val, 1 - val - test])
    if settings.folds:
        fractions = np.full(settings.folds, 1 / settings.folds)
    breeds = [sample.breed for sample in chosen]
    parts = deal(breeds, group(chosen), fractions, generator)
    parts = (parts - (settings.fold or 0)) % len(fractions)  # test is 0 now, val is 1
    splits = {"train": list(set(range(len(samples))) - set(boxed)), "val": [], "test": []}
    for i, part in zip(boxed, parts, strict=True):
        splits[{0: "test", 1: "val"}.get(part, "train")].append(i)
    for split, members in splits.items():
        drawn = [samples[i] for i in generator.permutation(sorted(members)).astype(int)]
        splits[split] = [sample for sample in drawn if sample is not None]
    splits["train"] = without_copies(splits["train"], splits["val"] + splits["test"])
    for split, members in splits.items():
        if not members:
            flags = f"--val-fraction {val}, --test-fraction {test}"
            flags = f"--folds {settings.folds}" if settings.folds else flags
            found = f"none of {len(boxed)} usable images with a box"
            raise DataError(f"{flags}: expected at least one sample in {split}, found {found}")
    return splits


def without_copies(samples, others):
    """The samples that have a box, or are no near-duplicates of others."""
    found = {i for i, _ in copies(samples, others)}
    return [sample for i, sample in enumerate(samples) if i not in found or sample.is_boxed]


def hide(samples, settings):
    """Training samples of which only a share of the masks, boxes and labels is still known."""
    samples = list(samples)
    blanks = {
        "mask_share": lambda sample: {"mask": np.full_like(sample.mask, UNKNOWN)},
        "box_share": lambda sample: {"box": NO_BOX},
        "label_share": lambda sample: {"species": -1, "breed": -1},
    }
    breeds = np.array([sample.breed for sample in samples])
    for number, name in enumerate(SHARES):
        generator = np.random.default_rng([settings.seed, number])
        having = [i for i, s in enumerate(samples) if name != "box_share" or s.is_boxed]
        order = in_turn(np.array(having, int), breeds, generator)
        for i in order[max(1, round(getattr(settings, name) * len(order))) :]:
            samples[i] = samples[i]._replace(**blanks[name](samples[i]))
    return samples


def in_turn(numbers, breeds, generator):
    """Sample numbers in a random order of which every beginning has all breeds in proportion."""
    places = np.zeros(len(numbers))
    for breed in np.unique(breeds[numbers]):
        own = np.flatnonzero(breeds[numbers] == breed)
        places[own] = (generator.permutation(len(own)) + generator.random()) / len(own)
    return numbers[np.argsort(places)]


def write_splits(folder, splits, class_names, settings):
    """Write the H5 files of all splits, and open each as an experiment would."""
    values = {name: getattr(settings, name) for name in SETTINGS}
    about = {**PROVENANCE, **{k: v for k, v in values.items() if v is not None}}
    for split, samples in splits.items():
        images, masks, _, boxes, species, breeds, lines = zip(*samples, strict=True)
        lines = np.array(lines, np.uint16)  # HDF5 takes attributes of at most 64 KB
        about |= {"split": split, "source_lines": lines}
        arrays = np.stack(images), np.stack(masks), np.stack(boxes), species
        breeds = breeds if settings.breeds else None
        write_split(folder / split, *arrays, class_names, about, breeds)
        H5Dataset(split, folder, memory_limit=0)


def check_output(out, force):
    """Refuse an existing `out`; with `force`, only one with other files than this tool's."""
    if not out.exists():
        return
    if not force:
        raise DataError(f"--out {out}: expected a new folder (or --force), found one")
    ours = {out / split / f"{name}.h5" for split in SPLITS for name in (*DATASETS, "breeds")}
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
    """A row for each split: samples, what is known of them, and megabytes (10^6 bytes) on disk."""
    columns = ("samples", "masks", "boxes", *class_names, "MB")
    print("split" + "".join(f"{column:>9}" for column in columns))
    for split, samples in splits.items():
        masks = sum((sample.mask != UNKNOWN).any() for sample in samples)
        boxes = sum(sample.is_boxed for sample in samples)
        species = [sum(sample.species == label for sample in samples) for label in (0, 1)]
        megabytes = sum(path.stat().st_size for path in (out / split).iterdir()) / 1e6
        counts = (len(samples), masks, boxes, *species)
        print(f"{split:5}" + "".join(f"{count:9}" for count in counts) + f"{megabytes:9.1f}")


def a_path(text):
    """An argparse type: a path, where ~ is the home folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, found an empty one")
    return Path(text).expanduser()


def parse_arguments(argv):
    """The settings, checked; raises UserError for a wrong one."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser("prepare_pets.py", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--root", type=a_path, required=True, help=f"the folder that contains {PETS}/")
    add("--out", type=a_path, required=True, help="the folder to create")
    add("--download", action="store_true", help="let torchvision fetch it into --root (800 MB)")
    side = "side in pixels (256); the networks need a multiple of 32"
    add("--size", type=int, default=256, metavar="N", help=side)
    for split in ("val", "test"):
        add(f"--{split}-fraction", type=float, metavar="X", help="of the boxed images (0.2)")
    add("--folds", type=int, metavar="N", help="deal the boxed images to N parts, 3 or more")
    add("--fold", type=int, metavar="K", help="the part to test on, 0 to N - 1")
    add("--seed", type=int, default=0, metavar="N", help="decides which image goes where (0)")
    add("--add-unboxed", action="store_true", help="add the images without a box to train")
    add("--names", type=a_path, metavar="FILE", help="take the images listed in it only")
    border = "what the trimap's border is in the masks: pet, or not known (pet)"
    add("--border", choices=("pet", "ignore"), default="pet", help=border)
    for name in SHARES:
        what = f"share of train whose {name.split('_')[0]} is kept (1)"
        add("--" + name.replace("_", "-"), type=float, default=1.0, metavar="X", help=what)
    add("--breeds", action="store_true", help="write breeds.h5 too, the 37 breeds as a target")
    add("--force", action="store_true", help="replace --out once the new one is complete")
    settings = parser.parse_args(argv)
    check_settings(settings)
    settings.out = settings.out.resolve()  # so that a link is followed, not replaced
    return settings


def check_settings(settings):
    """Complain of values that make no sense, and fill in the fractions."""

    def expect(holds, flags, expected, found):
        if not holds:
            raise UserError(f"{flags}: expected {expected}, found {found}")

    for flag, least, found in (("size", 1, settings.size), ("seed", 0, settings.seed)):
        expect(found >= least, f"--{flag}", f"a whole number from {least} up", found)
    for name in SHARES:
        flag, found = "--" + name.replace("_", "-"), getattr(settings, name)
        expect(0 < found <= 1, flag, "a share above 0, at most 1", found)
    folds, fold, fractions = settings.folds, settings.fold, "--val-fraction, --test-fraction"
    val, test = settings.val_fraction, settings.test_fraction
    if folds is None and fold is None:
        val, test = 0.2 if val is None else val, 0.2 if test is None else test
        fits, found = val > 0 and test > 0 and val + test < 1, f"{val} and {test}"
        expect(fits, fractions, "both above 0, their sum below 1", found)
        settings.val_fraction, settings.test_fraction = val, test
    else:
        expect(folds is not None and folds >= 3, "--folds", "a whole number from 3 up", folds)
        fits = fold is not None and 0 <= fold < folds
        expect(fits, "--fold", f"a whole number from 0 to {folds - 1}", fold)
        expect(val is test is None, fractions, "none beside --folds", f"{val} and {test}")
        settings.val_fraction = settings.test_fraction = 1 / folds


def prepare(settings):
    """Read, split, write and report; raises DataError and OSError."""
    start = time.perf_counter()
    check_output(settings.out, settings.force)
    pets, names = open_pets(settings.root, settings.download)
    if settings.names:
        names = choose(names, settings.names)
    class_names = [name.lower() for name in pets.datasets[0].bin_classes]  # Cat is 0, Dog is 1
    xmls = settings.root / PETS / "annotations/xmls"
    with staged(settings.out, settings.force) as folder:
        samples, defects = read_samples(pets, names, xmls, settings)
        splits = draw_splits(samples, settings)
        used = sum(map(len, splits.values()))
        copied = sum(sample is not None for sample in samples) - used
        splits["train"] = hide(splits["train"], settings)
        write_splits(folder, splits, class_names, settings)
    print_summary(settings.out, splits, class_names)
    found = ", ".join(f"{defect}: {count}" for defect, count in defects.items()) or "none"
    print(f"defects: {found}; left out: {len(names) - used} of {len(names)} images", end="")
    print(f", {copied} of them near-duplicates of val or test images")
    print(f"{time.perf_counter() - start:.1f} s, written to {settings.out}")


def run(argv):
    """What `main` does, with every mistake and damage as a UserError or DataError."""
    try:
        prepare(parse_arguments(argv))
    except OSError as error:
        raise DataError(" ".join(str(error).split())) from error
    except MemoryError as error:
        found = "too little of it"
        message = f"--size: expected images that fit into memory, found {found}"
        raise UserError(message) from error


def main(argv=None):
    """Run the tool; returns the exit code: 0, 2 for a mistake or damage, 130 for Ctrl-C."""
    return run_tool("prepare_pets.py", run, argv)


if __name__ == "__main__":
    sys.exit(main())
