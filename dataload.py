"""The data of every experiment: one split of the H5 layout.

    DATA_FOLDER/{train,val,test}/
        images.h5   "images"  (N, H, W, 3)             0-255, any real dtype
        masks.h5    "masks"   (N, H, W, 1) or (N, H, W) 0 background, 1 pet (or 0 ... K - 1),
                                                       255 or NaN = pixel not known
        bboxes.h5   "bboxes"  (N, 4)                   xmin, ymin, xmax, ymax in pixels,
                                                       NaN row = no box known
        binary.h5   "binary"  (N, 1) or (N,)           0 or 1; NaN or -1 = not known
        NAME.h5     "NAME"                             what the target of a task says

Only the files that the targets name are opened; where a split lacks one, that target is unknown.
Datasets are found by name; a file's only dataset may have any name. The attribute `class_names` of
a dataset names its classes. Files are opened read-only and without locks, so any number of runs can
share one folder, even on a read-only disk. To check a folder of your own:

    python tools/check_data.py DATA_FOLDER

Inside the program an image is uint8 (3, H, W) and its targets, those of parts/targets.py, are

    {"seg": uint8 (1, H, W) in {0, 1, 255}, 255 = unknown,
     "bbox": float32 (4,), xmin, ymin, xmax, ymax in [0, 1] of width and height, NaN = unknown,
     "bin": float32 scalar in {0, 1}, -1 = unknown}
"""

import operator
import os
import zlib
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.data import Dataset

from parts.duplicates import near_duplicates, thumbnails
from parts.h5array import SPLITS, DataError, H5Array, read_class_names
from parts.h5file import write_split
from parts.targets import PETS, Derived, Images, PixelTarget, with_sources

__all__ = ["SPLITS", "DataError", "H5Dataset", "check_splits", "likely_mistakes", "write_split"]
SLAB = 256  # samples that are processed at a time


class H5Dataset(Dataset):
    """One split of the H5 layout above.

    `dataset[i]` is `(image, targets)` as the module docstring describes them. `dataset[[i, j]]` is
    the same with a leading batch dimension and images in channels_last format, read with one
    indexing operation per array. `DataLoader(dataset, batch_size=8)` works as with any data set;
    `DataLoader(dataset, sampler=lists_of_numbers, batch_size=None)` is faster.

    Args:
        split: "train", "val" or "test".
        data_folder_path: the folder that contains the splits.
        targets: {name: kind of target}, by default the three of the pets.
        memory_limit: bytes that images and other pixels may take in memory. A larger split is
            read from disk batch by batch; 0 forces that. Safe with DataLoader workers under fork
            and spawn, because no file stays open between two batches.

    Attributes:
        targets: {name: kind}, including the sources of derived targets.
        arrays: {"images" or name: `H5Array`} of the files that exist.
        side: (H, W) in pixels.
        class_names: {name: names of the classes}, () for targets without classes.
        in_memory: whether images and other pixels are held in memory.
        complete: the names of the pixel targets that are fully known, to the last pixel.
        known: {name: bool (N,)}, on the CPU: whether any part of each sample's target is known.
        source_lines: the line of each sample in the lists of its source; None if not recorded.

    Raises:
        DataError: a file is damaged or violates the layout, or there is no images.h5; uint8 images
            that stay on disk are read only when needed.
        IndexError: no sample has this number, or a list is empty.
    """

    def __init__(self, split, data_folder_path, targets=PETS, memory_limit=8 * 2**30):
        self.folder = Path(data_folder_path) / split
        self.targets = with_sources(targets)
        self.arrays = split_arrays(self.folder, self.targets)
        for array in self.arrays.values():
            array.read_header()
        self.kinds = {"images": Images(), **self.targets}
        for name, array in self.arrays.items():
            self.kinds[name].check_shape(array, self.arrays["images"].shape)
        self.length, height, width, _ = self.arrays["images"].shape
        self.side = (height, width)
        pixels = sum(self.kinds[name].per_pixel for name in self.arrays)
        self.in_memory = self.length * height * width * pixels <= memory_limit
        self.source_lines = self.arrays["images"].source_lines()
        self.class_names = {name: self._names(name) for name in self.targets}
        self.complete, self.known = set(), {}
        self._kept = {}  # {name: values}; None for pixels that are on disk or have no file
        for name in self.kinds:
            self._load(name)
        for name in self.targets.keys() - self.known.keys():
            self.known[name] = self._find_known(name)

    def _names(self, name):
        array, kind = self.arrays.get(name), self.targets[name]
        found = read_class_names(array, kind.classes) if array and kind.classes else None
        return found or kind.default_names

    def _load(self, name):
        """Keep the values of a target, or the images; of pixels, find out what is known."""
        array, kind = self.arrays.get(name), self.kinds[name]
        if isinstance(kind, PixelTarget):
            self._kept[name] = self._load_pixels(name, array, kind) if array else None
        elif array:
            self._kept[name] = kind.read(array, self.side)
        elif not isinstance(kind, Derived):
            self._kept[name] = kind.unknown(self.length, self.side)

    def _find_known(self, name):
        """Bool (N,): whether any part of a target is known, if `_load_pixels` has not found out."""
        kind = self.targets[name]
        if not isinstance(kind, Derived):
            none = torch.zeros(self.length, dtype=torch.bool)
            return kind.known(self._kept[name]) if name in self.arrays else none
        sources, found = with_sources({name: kind}).keys() & self._kept.keys(), []
        for start in range(0, self.length, SLAB):
            numbers = list(range(start, min(start + SLAB, self.length)))
            batch = {source: self._fetch(source, numbers) for source in sources}
            found.append(kind.known(kind.derive(batch)))
        return torch.cat(found)

    def _load_pixels(self, name, array, kind):
        """All pixels as one tensor, or None if they stay on disk; checks all but uint8 images.

        Of a target, this one pass also sets `known` and `complete`.
        """
        if name == "images" and not self.in_memory and kind.accepts_all(array.dtype):
            return None
        kept, known, complete = None, [], True
        for start, values in array.slabs(partial(kind.convert, array)):
            values = torch.from_numpy(values)
            if self.in_memory and kept is None:
                kept = torch.empty((self.length, *values.shape[1:]), dtype=values.dtype)
            if self.in_memory:
                kept[start : start + len(values)] = values
            if name != "images":
                known.append(kind.known(kind.batch(values)))
                complete &= kind.is_complete(values)
        if name != "images":
            self.known[name] = torch.cat(known)
            self.complete |= {name} if complete else set()
        return kept

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not hasattr(index, "__len__") or getattr(index, "shape", None) == ():
            images, targets = self._batch([self._number(index)])
            return images[0], {task: target[0] for task, target in targets.items()}
        if not len(index):
            raise IndexError("an empty list of samples")
        return self._batch([self._number(i) for i in index])

    def _number(self, index):
        """0 to N - 1 for an index that may count from the end."""
        index = operator.index(index)
        if not -self.length <= index < self.length:
            raise IndexError(f"sample {index} of a split of {self.length}")
        return index % self.length

    def _batch(self, numbers):
        """Images uint8 (B, 3, H, W) and targets with a leading B, for valid sample numbers."""
        return self._fetch("images", numbers), self._targets(numbers)

    def _targets(self, numbers):
        """{name: target} for valid sample numbers."""
        found = {n: self._fetch(n, numbers) for n in self._kept if n != "images"}
        for name, kind in self.targets.items():
            if isinstance(kind, Derived):
                found[name] = kind.derive(found)
        return {name: found[name] for name in self.targets}

    def _fetch(self, name, numbers):
        """The images or one target, for valid sample numbers."""
        kept, kind = self._kept[name], self.kinds[name]
        if kept is not None:
            # copies whole samples, 6 to 17 times as fast as `[indices]`, which copies bytes
            found = kept.index_select(0, torch.tensor(numbers, device=kept.device))
        elif name in self.arrays:
            array = self.arrays[name]
            found = torch.from_numpy(array.rows(numbers, partial(kind.convert, array)))
        else:
            found = kind.unknown(len(numbers), self.side)
        return kind.batch(found) if isinstance(kind, PixelTarget) else found

    def to(self, device):
        """Move a split that is in memory to the device, which then assembles the batches."""
        for name, kept in self._kept.items() if self.in_memory else ():
            self._kept[name] = None if kept is None else kept.to(device)
        return self

    @property
    def device(self):
        """Where the batches are assembled."""
        kept = self._kept["images"]
        return torch.device("cpu") if kept is None else kept.device

    @property
    def nbytes(self):
        """Bytes in memory."""
        return sum(kept.nbytes for kept in self._kept.values() if kept is not None)

    def kept(self, name):
        """All values of a target without pixels, as in a batch."""
        return self._kept[name]

    def slabs(self, name):
        """Yield all images, or the pixels of one target, in order: numpy (n, H, W) or (n, H, W, C),
        uint8 for images and classes."""
        if self._kept[name] is not None:
            yield from (part.cpu().numpy() for part in self._kept[name].split(SLAB))
        elif name in self.arrays:
            convert = partial(self.kinds[name].convert, self.arrays[name])
            yield from (values for _, values in self.arrays[name].slabs(convert))

    @cached_property
    def summary(self):
        """Checksum, thumbnails (N, 3, 24, 24) and largest value of the images, in one pass."""
        checksum, small, largest = 0, [], 0
        for images in self.slabs("images"):
            checksum = zlib.crc32(images, checksum)
            largest = max(largest, int(images.max()))
            small.append(thumbnails(torch.from_numpy(images).permute(0, 3, 1, 2)))
        return SimpleNamespace(checksum=checksum, thumbnails=torch.cat(small), largest=largest)

    def fingerprint(self):
        """{file: number of samples and a checksum of their values, as text} of each file read."""
        found = {"images": self.summary.checksum}
        for name in self.arrays.keys() - {"images"}:
            kept, kind, checksum = self._kept[name], self.kinds[name], 0
            is_small = not isinstance(kind, PixelTarget)
            for values in [kept.cpu().numpy()] if is_small else self.slabs(name):
                checksum = zlib.crc32(np.ascontiguousarray(values), checksum)
            found[kind.file] = checksum
        return {f: f"{self.length} samples of checksum {found[f]:08x}" for f in sorted(found)}


def split_arrays(folder, targets):
    """{"images" or name: H5Array} of a split's files for {name: kind of target}, their headers not
    read yet; DataError if there is no folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the split '{folder.name}' there")
    files = {name: kind.file for name, kind in targets.items() if kind.file}
    there = {n: f for n, f in files.items() if os.path.lexists(folder / f"{f}.h5")}
    return {name: H5Array(folder, file) for name, file in {"images": "images", **there}.items()}


def check_splits(datasets, needed=()):
    """Check that the splits of a {split: H5Dataset} fit together.

    Args:
        needed: names of the targets that must be known for some sample of every split.

    Raises:
        DataError: sides or class names differ between splits (both files are named), or a needed
            target is unknown throughout a split.
    """
    one, *others = datasets.values()
    for other in others:
        expected = f"the side of {one.arrays['images'].path}, {one.side}"
        other.arrays["images"].expect(one.side == other.side, expected, other.side)
        for name in one.arrays.keys() & other.arrays.keys() - {"images"}:
            names = one.class_names[name]
            expected = f"the class_names of {one.arrays[name].path}, {names}"
            found = other.class_names[name]
            other.arrays[name].expect(names == found, expected, found)
    for split, dataset in datasets.items():
        for name in needed:
            array, file = dataset.arrays.get(name), dataset.targets[name].file
            found = "none" if array or not file else "no such file"
            place = dataset.folder / f"{file}.h5" if file else f"{dataset.folder}: {name}"
            if not dataset.known[name].any():
                text = f"expected at least one known target in {split}, found {found}"
                raise DataError(f"{place}: {text}")


def likely_mistakes(datasets):
    """Yield a line for everything in {split: H5Dataset} that is valid but probably a mistake."""
    for dataset in datasets.values():
        if dataset.summary.largest <= 1:
            path = dataset.arrays["images"].path
            yield f"{path}: expected values 0-255, found none above 1"
        for name, kind in dataset.targets.items():
            if name in dataset.arrays:
                path = dataset.arrays[name].path
                yield from (f"{path}: {line}" for line in kind.likely_mistakes(dataset, name))
            elif kind.file:
                path = dataset.folder / f"{kind.file}.h5"
                yield f"{path}: expected targets of '{name}', found no such file; none is known"
    yield from shared_pictures(datasets)


def shared_pictures(datasets):
    """Yield a line for each split that repeats pictures of an earlier one."""
    earlier = []
    for split, dataset in datasets.items():
        own = dataset.summary.thumbnails
        found = {}
        for other, theirs in earlier:
            for i, j in near_duplicates(own, theirs):
                found.setdefault(i, f"sample {i} of {split} is sample {j} of {other}")
        if found:
            path, example = dataset.arrays["images"].path, next(iter(found.values()))
            text = f"found {len(found)} that repeat those of another: {example}"
            yield f"{path}: expected images of this split alone, {text}"
        earlier.append((split, own))
