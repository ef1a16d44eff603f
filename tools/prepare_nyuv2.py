"""Convert NYUv2, as distributed with MTAN, to the H5 layout of dataload.py.

    python tools/prepare_nyuv2.py --root nyuv2 --out data/nyuv2
    python tools/prepare_nyuv2.py --root nyuv2 --out data/nyuv2_papers --val-is-test

--root holds {train,val}/{image,label,depth,normal}/N.npy, N from 0, 795 and 654 of each: images
(H, W, 3) in [0, 1], labels (H, W) from -1 (unknown) to 12, depths (H, W, 1) in metres or 0
(unknown), normals (H, W, 3), the zero vector where unknown; H and W are 288 and 384.

The val of the source becomes the test split, on which papers report. A tenth of train, chosen by
--seed, becomes val, and near-duplicates stay together. --val-is-test does as the papers do: they
train on all of train and have no validation split, so val and test are the same here, and the best
epoch is chosen on the test images.

images.h5 and segments.h5 (255 = unknown) are uint8, depth.h5 is in whole millimetres, normals.h5
in units of 1 / 32767; the attributes scale_factor and _FillValue say so. The normals are of unit
length and along the axes of the image: x right, y down, z ahead, so that augmentation can turn
them. The directions of the source's axes are inferred from its depth, and printed.

One sample is in memory at a time. A bad file stops the tool with one line, and no output is left.
"""

import sys
import time
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.commandline import SEEDS, Parser
from parts.drawn_rooms import CLASS_NAMES
from parts.duplicates import thumbnails
from parts.errors import UserError, one_line
from parts.h5array import DataError
from parts.h5file import new_h5_file
from tools.shared import splitting
from tools.shared.common import as_path, command, to_stderr

KINDS = ("image", "label", "depth", "normal")  # folders of the source
SAMPLES = {"train": 795, "val": 654}  # as distributed
UNKNOWN, FILL = 255, -32768  # of segments and normals; that of depth is 0
MILLIMETRE, UNIT = 1e-3, 1 / 32767  # scale factors of depth and normals
FARTHEST = 65.0  # metres that fit into the file
SHORTEST, LONGEST = 0.1, 1.1  # normals in between have a direction; resizing has shortened some
STEP = 8  # pixels between the two depths whose difference shows how a surface is tilted
LOOKED_AT = 50  # samples from which the axes of the normals are inferred
NAMES = np.array([name.encode() for name in CLASS_NAMES], h5py.string_dtype("utf-8", 16))
LAYOUT = {  # of each file: the shape of a pixel, the dtype and the attributes of its dataset
    "images": ((3,), np.uint8, {}),
    "segments": ((), np.uint8, {"class_names": NAMES}),
    "depth": ((), np.uint16, {"scale_factor": MILLIMETRE, "_FillValue": np.uint16(0)}),
    "normals": ((3,), np.int16, {"scale_factor": UNIT, "_FillValue": np.int16(FILL)}),
}
PROVENANCE = {
    "source": "NYUv2 as distributed with MTAN, https://github.com/lorenmt/mtan",
    "citation": "Silberman et al., ECCV 2012; Liu, Johns, Davison: MTAN, CVPR 2019",
    "tool": "tools/prepare_nyuv2.py",
}


def find_samples(folder):
    """[(folder, N)] of a split of the source, N = 0, 1, ...; DataError unless all files exist."""
    for kind in KINDS:
        if not (folder / kind).is_dir():
            raise DataError(f"{folder / kind}: expected a folder of files N.npy, found none")
    paths = [[*(folder / kind).glob("*.npy")] for kind in KINDS]
    count = max(sum(path.stem.isdecimal() for path in own) for own in paths)
    if not count:
        raise DataError(f"{folder / KINDS[0]}: expected files 0.npy, 1.npy, ..., found none")
    for kind, number in product(KINDS, range(count)):
        path = folder / kind / f"{number}.npy"
        if not path.is_file():
            expected = f"a file for each sample, 0.npy to {count - 1}.npy"
            raise DataError(f"{path}: expected {expected}, found none")
    return [(folder, number) for number in range(count)]


def open_array(sample, kind):
    """The path of a file and its array, memory-mapped; raises DataError."""
    path = sample[0] / kind / f"{sample[1]}.npy"
    try:
        return path, np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy has no common class for what damaged files raise
        raise DataError(f"{path}: expected a whole .npy file, found: {one_line(error)}") from error


def read(sample, kind, side):
    """float32 array of one file, of shape (*side, channels); DataError for anything else."""
    path, array = open_array(sample, kind)
    shape = {"label": tuple(side), "depth": (*side, 1)}.get(kind, (*side, 3))
    found = f"{array.shape} of dtype {array.dtype}"
    if array.shape != shape or array.dtype.kind not in "buif":
        raise DataError(f"{path}: expected real numbers of shape {shape}, found {found}")
    values = np.array(array, np.float32).reshape(*side, -1)
    check(path, values, np.isfinite(values), "finite numbers")
    return values


def check(path, values, right, expected):
    """DataError that shows the first wrong value, unless all are right."""
    if not right.all():
        raise DataError(f"{path}: expected {expected}, found {values[~right].flat[0]:g}")


def read_sample(sample, side):
    """{kind: float32 (H, W, C)} of one sample, its values checked; raises DataError."""
    values = {kind: read(sample, kind, side) for kind in KINDS}
    image, label, depth, normal = values.values()
    paths = [sample[0] / kind / f"{sample[1]}.npy" for kind in KINDS]
    check(paths[0], image, abs(image - 0.5) <= 0.6, "colours in [0, 1]")  # resizing may exceed it
    whole = (label >= -1) & (label < len(CLASS_NAMES)) & (label == np.rint(label))
    check(paths[1], label, whole, "whole numbers from -1 to 12")
    check(paths[2], depth, (depth >= 0) & (depth <= FARTHEST), f"metres from 0 to {FARTHEST:g}")
    length = np.linalg.norm(normal, axis=-1)
    check(paths[3], length, length <= LONGEST, "vectors of length 0 or 1")
    return values


def as_stored(values, signs):
    """{file: array} of what `read_sample` gives, the normals multiplied by `signs` (3,)."""
    image, label, depth, normal = (values[kind] for kind in KINDS)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    units = np.rint(normal * signs / np.maximum(length, SHORTEST) / UNIT)
    millimetres = np.where(depth > 0, np.maximum(np.rint(depth / MILLIMETRE), 1), 0)
    return {
        "images": np.clip(np.rint(image * 255), 0, 255).astype(np.uint8),
        "segments": np.where(label < 0, UNKNOWN, label)[..., 0].astype(np.uint8),
        "depth": millimetres[..., 0].astype(np.uint16),
        "normals": np.where(length < SHORTEST, FILL, units).astype(np.int16),
    }


def agreement(depth, normal):
    """(3, 2): for each axis, the sum of the evidence for x right, y down, z ahead, and of its size.

    On a plane the inverse depth falls in the direction to which its normal leans, whatever the
    focal length, and a visible surface faces the camera.
    """
    votes = [-normal[..., 2]]
    depth = depth[..., 0]
    inverse = np.where(depth > 0, 1 / np.maximum(depth, MILLIMETRE), np.nan)
    for along, leaning in ((inverse.T, normal[..., 0].T), (inverse, normal[..., 1])):
        first, last = along[:-STEP], along[STEP:]
        smooth = abs(last - first) < 0.1 * first  # False beside an unknown pixel
        fall = np.where(smooth, first - last, 0)
        votes.append(fall * leaning[STEP // 2 : -STEP // 2])
    z, x, y = ([vote.sum(), abs(vote).sum()] for vote in votes)
    return np.array([x, y, z], np.float64)


def find_axes(samples, side):
    """(3,) signs that turn the normals to x right, y down, z ahead; prints the axes found."""
    total = np.zeros((3, 2))
    for sample in samples[:: max(1, len(samples) // LOOKED_AT)]:
        total += agreement(read(sample, "depth", side), read(sample, "normal", side))
    share = total[:, 0] / np.maximum(total[:, 1], 1e-12)
    directions = zip("xyz", ("right", "down", "ahead"), ("left", "up", "back"), share, strict=True)
    words = ", ".join(f"{n} {b if s < 0 else a} ({abs(s):.2f})" for n, a, b, s in directions)
    print(f"axes of the normals: {words}; 1 is certain")
    if abs(share).min() < 0.1:
        to_stderr(f"prepare_nyuv2.py: expected normals that fit the depth, found {words}")
    return np.where(share < 0, -1, 1)


def divide(samples, side, settings):
    """(train, val) lists of the samples, with near-duplicates in the same one."""
    images = []
    for sample in tqdm(samples, desc="comparing", unit=" images", disable=None, leave=False):
        pixels = np.rint(read(sample, "image", side) * 255).clip(0, 255).astype(np.uint8)
        small = thumbnails(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
        images.append(SimpleNamespace(thumbnail=small))
    fractions = np.array([1 - settings.val_share, settings.val_share])
    generator = np.random.default_rng(settings.seed)
    parts = splitting.distribute([0] * len(samples), splitting.group(images), fractions, generator)
    divided = [[s for s, own in zip(samples, parts, strict=True) if own == part] for part in (0, 1)]
    if not all(divided):
        found = f"{len(divided[1])} of {len(samples)} samples in val (duplicates stay together)"
        raise UserError(f"--val-share: expected samples in train and in val, found {found}")
    return divided


def write(folder, samples, side, signs, about):
    """Write one split; returns {file: share of the pixels that are known}; raises DataError."""
    numbers = np.array([number for _, number in samples])
    known = dict.fromkeys(LAYOUT, 0.0)
    folder.mkdir()
    with ExitStack() as stack:
        stored = {}
        for name, (tail, dtype, attributes) in LAYOUT.items():
            file = stack.enter_context(new_h5_file(folder / f"{name}.h5"))
            file.attrs.update(about | {"split": folder.name, "source_lines": numbers})
            stored[name] = file.create_dataset(name, (len(samples), *side, *tail), dtype)
            stored[name].attrs.update(attributes)
        for row, sample in enumerate(tqdm(samples, folder.name, disable=None, leave=False)):
            for name, array in as_stored(read_sample(sample, side), signs).items():
                stored[name][row] = array
                unknown = {"segments": UNKNOWN, "depth": 0, "normals": FILL}.get(name, -1)
                known[name] += (array != unknown).mean() / len(samples)
    return known


def parse(argv):
    """The settings; raises UserError."""
    parser = Parser("prepare_nyuv2.py", __doc__)
    add = parser.add_argument
    add("--root", required=True, metavar="DIR", help="folder with train/ and val/")
    add("--out", required=True, metavar="DATA", help="folder to create")
    text = "share of train for val (default: 0.1)"
    add("--val-share", type=float, default=0.1, metavar="X", help=text)
    add("--seed", type=SEEDS, default=0, metavar="N", help="random seed (default: 0)")
    add("--val-is-test", action="store_true", help="keep train whole, and use test as val too")
    settings = parser.parse_args(argv)
    if not 0 < settings.val_share < 1:
        raise UserError(f"--val-share: expected between 0 and 1, found {settings.val_share}")
    settings.root = as_path(settings.root, "--root")
    settings.out = as_path(settings.out, "--out").resolve()
    if settings.out.exists():
        raise UserError(f"--out {settings.out}: expected a new folder, found one")
    return settings


@command
def main(argv):
    """Read the folder, check it, write the three splits and report."""
    start, settings = time.perf_counter(), parse(argv)
    source = {split: find_samples(settings.root / split) for split in SAMPLES}
    side = open_array(source["train"][0], "image")[1].shape[:2]
    found = {split: len(samples) for split, samples in source.items()}
    if found != SAMPLES:
        to_stderr(f"prepare_nyuv2.py: {settings.root}: expected {SAMPLES} samples, found {found}")
    with splitting.staged(settings.out, False) as folder:
        signs = find_axes(source["train"], side)
        train, val = source["train"], source["val"]
        if not settings.val_is_test:
            train, val = divide(train, side, settings)
        splits = {"train": train, "val": val, "test": source["val"]}
        about = PROVENANCE | {"seed": settings.seed, "val_is_test": settings.val_is_test}
        known = {s: write(folder / s, splits[s], side, signs, about) for s in splits}
    print("split  samples  known pixels of segments    depth  normals")
    for split, samples in splits.items():
        shares = "".join(f"{known[split][name]:9.1%}" for name in ("segments", "depth", "normals"))
        print(f"{split:5}{len(samples):9}{'':16}{shares}")
    print(f"{time.perf_counter() - start:.1f} s, written to {settings.out}")


if __name__ == "__main__":
    sys.exit(main())
