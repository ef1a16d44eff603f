"""Convert the Oxford-IIIT Pet folder to the H5 layout of dataload.py.

    python tools/prepare_pets.py --root DIR --out DATA [--download] [--add-unboxed] [--size 256]
    python tools/prepare_pets.py --root DIR --out DATA --folds 5 --fold 0
    python tools/prepare_pets.py --root DIR --out DATA --mask-share 0.1
    python tools/prepare_pets.py --root DIR --out DATA --names results/images.txt

The two lists of the source, trainval.txt and test.txt, are pooled and split again, breed by breed,
because only images of trainval.txt have head boxes. Images without a box are left out or, with
--add-unboxed, added to train; val and test are the same either way. Near-duplicates, of which the
source has some, stay in one split. With --folds N the images with a box are divided into N folds;
with --fold K, fold K is test and the next one is val, so each fold is tested once. The splits do
not depend on --size. With --names only the images listed in that file are used.

Images become squares. The mask is 1 on the animal and its border; with --border ignore the border
is 255, unknown; with --border class it is 2, a class of its own. --mask-share, --box-share and
--label-share keep a share of the masks, boxes and labels in train, chosen breed by breed; a smaller
share is part of a larger one. Damaged files are named and counted.

The data are written to DATA.partial-PID, which is renamed at the end: a killed run may leave that
folder, but never an incomplete DATA. The attribute `source_lines` of the files is the line of each
sample, from 0, in trainval.txt followed by test.txt. Size 256 needs about 4 GB of memory.
"""

import os
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import ConcatDataset
from torchvision.datasets import OxfordIIITPet
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import DataError
from parts.commandline import Parser, flag
from parts.errors import UserError
from parts.targets import UNKNOWN
from tools.shared import splitting
from tools.shared.common import command
from tools.shared.splitting import NO_BOX, Sample

PETS = "oxford-iiit-pet"  # the folder name torchvision looks for
LISTS = ("trainval", "test")
TARGETS = ("category", "binary-category", "segmentation")
BACKGROUND, BORDER = 2, 3  # in a trimap; 1 is the pet
BORDER_VALUES = {"pet": 1, "ignore": UNKNOWN, "class": 2}  # in a mask, by --border
MASK_NAMES = ("background", "pet", "border")
SHARES = ("mask_share", "box_share", "label_share")
KEPT = (  # settings that are written to the files
    *("seed", "size", "val_fraction", "test_fraction", "add_unboxed", "folds", "fold", "border"),
    *SHARES,
)
PROVENANCE = {
    "source": "Oxford-IIIT Pet, https://www.robots.ox.ac.uk/~vgg/data/pets/",
    "citation": "Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012",
    "licence": "CC BY-SA 4.0",
    "tool": "tools/prepare_pets.py",
}


def open_pets(root, download):
    """Both lists of the source as one data set, and {line: image name}; raises DataError.

    Sample i is a PIL image and its (breed 0-36, class 0 cat or 1 dog, PIL trimap).
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
    """The part of {line: image name} that a text file lists, in its order; raises DataError."""
    lines = {name: line for line, name in names.items()}
    listed = Counter(path.read_text(encoding="utf-8-sig", errors="replace").split())
    for name, count in listed.items():
        if name not in lines or count > 1:
            raise DataError(f"--names {path}: expected names of images, each once, found {name}")
    return {lines[name]: name for name in listed}


def read_pixels(pets, line, size, border_value):
    """A Sample without its box, and (width, height) of its source; raises DataError."""
    what = "image and trimap"
    try:
        image, (breed, species, trimap) = pets[line]
        what = "trimap"  # torchvision has opened both, but decoded only the image
        values = np.unique(trimap)
    except Exception as error:  # Pillow has no common class for what damaged files raise
        raise DataError(f"expected a readable {what}, found: {error}") from error
    if trimap.size != image.size or not set(values) <= {1, 2, 3}:
        found = f"{trimap.size} and {values[:5]}"
        raise DataError(f"expected a trimap of {image.size} with values 1, 2, 3, found {found}")
    trimap = np.asarray(trimap.resize((size, size), Image.Resampling.NEAREST))[..., None]
    mask = np.where(trimap == BORDER, border_value, trimap != BACKGROUND).astype(np.uint8)
    resized = splitting.resize(image, size)
    return Sample(*resized, mask, NO_BOX, species, breed, line), image.size


def read_box(path, width, height):
    """Head box (4,), xmin, ymin, xmax, ymax in [0, 1] of width and height; NaN without a file.

    The file has the first and last pixels inside, from 1; these are the edges. Raises DataError.
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


def read_samples(pets, names, settings):
    """A list of the usable Samples of {line: image name}, and a Counter of the defects found.

    Without --add-unboxed, an image without a box becomes None, so that the splits are the same
    either way.
    """
    samples, defects = [], Counter()
    border_value = BORDER_VALUES[settings.border]

    def note(defect, message):
        defects[defect] += 1
        tqdm.write(f"{name}: {message}", file=sys.stderr)

    for line, name in tqdm(names.items(), unit=" images", disable=None):
        xml = settings.root / PETS / f"annotations/xmls/{name}.xml"
        if not xml.exists() and line < len(pets.datasets[0]):  # only the first list has boxes
            note("xml missing", f"expected {xml}, found no such file")
        if not xml.exists() and not settings.add_unboxed:
            samples.append(None)  # half of the full set need not be decoded
            continue
        try:
            sample, side = read_pixels(pets, line, settings.size, border_value)
        except DataError as error:
            note("image or trimap unusable", error)
            continue
        try:
            sample = sample._replace(box=read_box(xml, *side) * settings.size)
        except DataError as error:
            note("xml or box unusable", error)
        samples.append(sample if settings.add_unboxed or sample.has_box else None)
    return samples, defects


def draw_splits(samples, settings):
    """{"train", "val", "test"} -> list of Sample in random order, determined by the seed.

    Val and test each get their fraction, or a fold, of the boxed samples of every breed. Samples
    without a box go to train, except near-duplicates of val and test samples, which are left out.
    A sample that is None goes nowhere, but takes part in the draw.
    """
    generator = np.random.default_rng(settings.seed)
    boxed = [i for i, sample in enumerate(samples) if sample is not None and sample.has_box]
    chosen = [samples[i] for i in boxed]
    val, test = settings.val_fraction, settings.test_fraction
    fractions = np.array([test, val, 1 - val - test])
    if settings.folds:
        fractions = np.full(settings.folds, 1 / settings.folds)
    breeds = [sample.breed for sample in chosen]
    parts = splitting.distribute(breeds, splitting.group(chosen), fractions, generator)
    parts = (parts - (settings.fold or 0)) % len(fractions)  # test is 0 now, val is 1
    splits = {"train": list(set(range(len(samples))) - set(boxed)), "val": [], "test": []}
    for i, part in zip(boxed, parts, strict=True):
        splits[{0: "test", 1: "val"}.get(part, "train")].append(i)
    for split, members in splits.items():
        drawn = [samples[i] for i in generator.permutation(sorted(members)).astype(int)]
        splits[split] = [sample for sample in drawn if sample is not None]
    return splitting.without_copies(splits)


def keep_shares(samples, settings):
    """Training samples that keep only a share of their masks, boxes and labels."""
    samples, breeds = list(samples), np.array([sample.breed for sample in samples])
    mask = np.full((settings.size, settings.size, 1), UNKNOWN, np.uint8)
    unknown = ({"mask": mask}, {"box": NO_BOX}, {"label": -1, "breed": -1})
    for number, (name, blank) in enumerate(zip(SHARES, unknown, strict=True)):
        generator = np.random.default_rng([settings.seed, number])
        candidates = [i for i, s in enumerate(samples) if name != "box_share" or s.has_box]
        order = stratified_order(np.array(candidates, int), breeds, generator)
        for i in order[max(1, round(getattr(settings, name) * len(order))) :]:
            samples[i] = samples[i]._replace(**blank)
    return samples


def stratified_order(numbers, breeds, generator):
    """Sample numbers in a random order whose every prefix has all breeds in proportion."""
    places = np.zeros(len(numbers))
    for breed in np.unique(breeds[numbers]):
        own = np.flatnonzero(breeds[numbers] == breed)
        places[own] = (generator.permutation(len(own)) + generator.random()) / len(own)
    return numbers[np.argsort(places)]


def parse(argv):
    """The settings; raises UserError for values that do not fit together."""
    parser = Parser("prepare_pets.py", __doc__)
    add = parser.add_argument
    add("--root", required=True, metavar="DIR", help=f"folder with {PETS}/")
    add("--download", action="store_true", help="download it to --root first (800 MB)")
    splitting.add_flags(add)
    add("--folds", type=int, metavar="N", help="divide the images with a box into N >= 3 folds")
    add("--fold", type=int, metavar="K", help="the fold to test on, 0 to N - 1")
    add("--add-unboxed", action="store_true", help="add the images without a box to train")
    add("--names", metavar="FILE", help="use only the images listed in this file")
    border = "the animal's border in the masks: pet (default), unknown, or a class of its own"
    add("--border", choices=(*BORDER_VALUES,), default="pet", help=border)
    for name in SHARES:
        what = name.removesuffix("_share")
        text = f"share of the training images with a {what} that keep it (default: 1)"
        add(flag(name), type=float, default=1.0, metavar="X", help=text)
    add("--breeds", action="store_true", help="also write the 37 breeds, breeds.h5")
    settings = parser.parse_args(argv)
    for name in SHARES:
        if not 0 < (share := getattr(settings, name)) <= 1:
            raise UserError(f"{flag(name)}: expected a share above 0, at most 1, found {share}")
    folds, fold = settings.folds, settings.fold
    if folds is not None or fold is not None:
        if folds is None or folds < 3:
            raise UserError(f"--folds: expected a whole number from 3 up, found {folds}")
        if fold is None or not 0 <= fold < folds:
            raise UserError(f"--fold: expected a whole number from 0 to {folds - 1}, found {fold}")
        if given := [x for x in (settings.val_fraction, settings.test_fraction) if x is not None]:
            message = f"expected none beside --folds, found {given[0]}"
            raise UserError(f"--val-fraction, --test-fraction: {message}")
        settings.val_fraction = settings.test_fraction = 1 / folds
    splitting.check_flags(settings, "root", "names")
    return settings


@command
def main(argv):
    """Read the images, divide them, write the splits and report."""
    start, settings = time.perf_counter(), parse(argv)
    out = settings.out
    splitting.check_output(out, settings.force)
    pets, names = open_pets(settings.root, settings.download)
    if settings.names:
        names = choose(names, settings.names)
    class_names = [name.lower() for name in pets.datasets[0].bin_classes]  # Cat is 0, Dog is 1
    with splitting.staged(out, settings.force) as folder:
        samples, defects = read_samples(pets, names, settings)
        splits = draw_splits(samples, settings)
        used = sum(map(len, splits.values()))
        copied = sum(sample is not None for sample in samples) - used
        splits["train"] = keep_shares(splits["train"], settings)
        about = {name: value for name in KEPT if (value := getattr(settings, name)) is not None}
        classes = {"binary": class_names}
        classes |= {"breeds": pets.datasets[0].classes} if settings.breeds else {}
        classes |= {"masks": MASK_NAMES} if settings.border == "class" else {}
        splitting.save(folder, splits, classes, PROVENANCE | about)
    splitting.print_summary(out, splits, class_names)
    found = ", ".join(f"{defect}: {count}" for defect, count in defects.items()) or "none"
    print(f"defects: {found}; left out: {len(names) - used} of {len(names)} images", end="")
    print(f", {copied} of them near-duplicates of val or test images")
    print(f"{time.perf_counter() - start:.1f} s, written to {out}")


if __name__ == "__main__":
    sys.exit(main())
