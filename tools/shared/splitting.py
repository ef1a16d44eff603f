"""From samples to a data folder, for prepare_pets.py and prepare_folder.py."""

import os
import shutil
import stat
from collections import Counter, defaultdict
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from dataload import SPLITS, DataError, H5Dataset, write_split
from parts.commandline import SEEDS, whole_number
from parts.duplicates import near_duplicates, thumbnails
from parts.errors import UserError
from parts.targets import PETS, UNKNOWN, Label, PixelClasses
from tools.shared.common import as_path

NO_BOX = np.full(4, np.nan)
MOST_COLUMNS = 6  # of classes in a summary


class Sample(NamedTuple):
    """One image, resized to (S, S), and what is known about it."""

    image: np.ndarray  # uint8 (S, S, 3)
    thumbnail: torch.Tensor  # of the source image, to find near-duplicates
    mask: np.ndarray  # uint8 (S, S, 1) in {0, 1, 255}
    box: np.ndarray = NO_BOX  # (4,) xmin, ymin, xmax, ymax in pixels; NaN = unknown
    label: int = -1  # 0 to K - 1; -1 = unknown
    breed: int = -1  # 0-36; -1 = unknown
    line: int = -1  # in the lists of its source, from 0; -1 = in none
    split: str = ""  # "" = still to be chosen

    @property
    def has_mask(self):
        """Whether any pixel of the mask is known."""
        return (self.mask != UNKNOWN).any()

    @property
    def has_box(self):
        """Whether the box is known."""
        return not np.isnan(self.box).any()


def resize(picture, size):
    """An RGB picture -> uint8 (size, size, 3), antialiased, and the picture's thumbnail."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    resized = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized), thumbnails(pixels[None])[0]


def add_flags(add):
    """Add the flags that both tools have, by the `add_argument` of a parser."""
    add("--out", required=True, metavar="DATA", help="folder to create")
    side = "image side in pixels, a multiple of 32 for the networks (default: 256)"
    add("--size", type=whole_number(1, 8192), default=256, metavar="N", help=side)
    for split in ("val", "test"):
        text = f"share of the images for {split} (default: 0.2)"
        add(f"--{split}-fraction", type=float, metavar="X", help=text)
    add("--seed", type=SEEDS, default=0, metavar="N", help="random seed (default: 0)")
    text = "replace an existing DATA when the new one is complete"
    add("--force", action="store_true", help=text)


def check_flags(options, *paths):
    """Turn --out and the named flags into paths, and check the fractions; raises UserError."""
    for name in ("out", *paths):
        if getattr(options, name) is not None:
            setattr(options, name, as_path(getattr(options, name), f"--{name}"))
    options.out = options.out.resolve()  # so that a link is followed, not replaced
    val, test = options.val_fraction, options.test_fraction
    val, test = 0.2 if val is None else val, 0.2 if test is None else test
    if not (val > 0 and test > 0 and val + test < 1):
        message = f"expected both above 0, their sum below 1, found {val} and {test}"
        raise UserError(f"--val-fraction, --test-fraction: {message}")
    options.val_fraction, options.test_fraction = val, test


def identical(samples, others):
    """Pairs (i, j) for which samples[i] and others[j] have the same thumbnail."""
    places = defaultdict(list)
    for j, other in enumerate(others):
        places[other.thumbnail.numpy().tobytes()].append(j)
    for i, sample in enumerate(samples):
        yield from ((i, j) for j in places[sample.thumbnail.numpy().tobytes()])


def copies(samples, others):
    """Pairs (i, j) for which samples[i] is a near-duplicate of others[j]."""
    if not samples or not others:
        return ()
    pair = (torch.stack([s.thumbnail for s in some]) for some in (samples, others))
    return near_duplicates(*pair)


def group(samples, find_pairs=copies):
    """(N,) numbers, the same for samples that are alike, directly or through others.

    `find_pairs` is `copies` or `identical`.
    """
    groups = np.arange(len(samples))
    for i, j in find_pairs(samples, samples):
        if groups[i] != groups[j]:
            groups[groups == groups[j]] = groups[i]
    return groups


def without_copies(splits, find_pairs=copies):
    """{split: [Sample]} without the samples in train that are like val or test samples.

    Samples whose split was given stay where they are.
    """
    copied = {i for i, _ in find_pairs(splits["train"], splits["val"] + splits["test"])}
    train = enumerate(splits["train"])
    return splits | {"train": [s for i, s in train if i not in copied or s.split]}


def distribute(strata, groups, fractions, generator):
    """(N,) part of each sample, from 0; samples of one group get the same part.

    In random order, each group goes to the part that is furthest below its fraction of the stratum
    (a whole number from 0, such as the breed) and, among equals, of all samples.
    """
    parts, counts = np.zeros(len(groups), int), np.zeros((max([0, *strata]) + 1, len(fractions)))
    for number in generator.permutation(np.unique(groups)):
        members = np.flatnonzero(groups == number)
        stratum = strata[members[0]]
        filled = np.round((counts[stratum] + len(members) / 2) / fractions, 9)
        part = np.lexsort((counts.sum(0) / fractions, filled))[0]
        parts[members], counts[stratum, part] = part, counts[stratum, part] + len(members)
    return parts


def check_output(out, force):
    """DataError if `out` exists; with `force`, only if it holds anything but H5 splits."""
    if not out.exists():
        return
    if not force:
        raise DataError(f"--out {out}: expected a new folder (or --force), found one")
    for path in (out, *out.rglob("*")):
        is_ours = path.suffix == ".h5" and path.parent in [out / split for split in SPLITS]
        if not path.is_dir() and not is_ours:
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
        remove(partial)
        raise
    remove(replaced)


def remove(folder):
    """Delete a folder, if it exists, even one copied from a read-only disk."""
    for root, _, _ in os.walk(folder):
        os.chmod(root, stat.S_IRWXU)
    shutil.rmtree(folder, ignore_errors=True)


def save(folder, splits, class_names, about):
    """Write the H5 files of {split: [Sample]} and check them; raises UserError.

    Args:
        class_names: {file: names of its classes}; labels are written to "binary" and "classes",
            and breeds to "breeds", if named here.
        about: {name: value}, the attributes of every file.
    """
    for split, samples in splits.items():
        if not samples:
            found = f"none of {sum(map(len, splits.values()))}; change the fractions or the folds"
            raise UserError(f"--out: expected at least one image in {split}, found {found}")
    for split, samples in splits.items():
        images, _, masks, boxes, labels, breeds, lines, _ = zip(*samples, strict=True)
        arrays = {
            "images": np.stack(images),
            "masks": np.stack(masks),
            "bboxes": np.stack(boxes).astype(np.float32),
        }
        for file, values in (("binary", labels), ("classes", labels), ("breeds", breeds)):
            if file in class_names:
                arrays[file] = np.array(values, np.int16)[:, None]
        attributes = about | {"split": split}
        if max(lines) >= 0:
            attributes["source_lines"] = np.array(lines, np.uint16)  # HDF5 takes at most 64 KB
        write_split(folder / split, arrays, attributes, class_names)
        H5Dataset(split, folder, targets(class_names), memory_limit=0)


def targets(class_names):
    """The targets of the written files, for a check."""
    kinds = {"breed": "breeds", "class": "classes"}
    labels = {t: Label(f, len(class_names[f])) for t, f in kinds.items() if f in class_names}
    masks = PixelClasses("masks", len(class_names.get("masks", "01")))
    return PETS | {"seg": masks} | labels


def print_summary(out, splits, class_names):
    """A row for each split: samples, what is known of them, and megabytes (10^6 bytes) on disk."""
    many = len(class_names) > MOST_COLUMNS
    rows = {"split": ["samples", "masks", "boxes", *(["labels"] if many else class_names), "MB"]}
    for split, samples in splits.items():
        labels = Counter(s.label for s in samples if s.label >= 0)
        counts = [labels.total()] if many else [labels[i] for i in range(len(class_names))]
        known = [sum(s.has_mask for s in samples), sum(s.has_box for s in samples), *counts]
        megabytes = sum(path.stat().st_size for path in (out / split).iterdir()) / 1e6
        rows[split] = [len(samples), *known, f"{megabytes:.1f}"]
    widths = [max(8, len(column)) for column in rows["split"]]
    for name, cells in rows.items():
        row = (f" {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        print(f"{name:5}{''.join(row)}")
