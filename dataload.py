"""The data of every experiment: one split of the H5 layout, and its joint augmentation.

    DATA_FOLDER/{train,val,test}/
        images.h5   "images"  (N, H, W, 3)             0-255, any real dtype
        masks.h5    "masks"   (N, H, W, 1) or (N, H, W) 0 background, 1 pet,
                                                       255 or NaN = pixel not known
        bboxes.h5   "bboxes"  (N, 4)                   xmin, ymin, xmax, ymax in pixels,
                                                       NaN row = no box known
        binary.h5   "binary"  (N, 1) or (N,)           0 or 1; NaN or -1 = not known
        breeds.h5   "breeds"  (N, 1) or (N,)           0-36; NaN or -1 = not known; optional

Datasets are found by name; a file that holds a single dataset may call it anything. The attribute
`class_names` of "binary" names the two classes. Files are opened read-only and without locks, so
any number of runs share one folder, on a read-only disk too. To check a folder of your own:

    python tools/check_data.py DATA_FOLDER

Inside the program an image is uint8 (3, H, W) and its targets are

    {"seg": uint8 (1, H, W) in {0, 1, 255}, 255 = unknown,
     "bbox": float32 (4,), xmin, ymin, xmax, ymax in [0, 1] of width and height, NaN = unknown,
     "bin": float32 scalar in {0, 1}, -1 = unknown,
     "breed": int64 scalar in 0-36, -1 = unknown; only where there is a file breeds.h5}
"""

import math
import operator
import zlib
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import resize

from parts.h5array import (
    BREEDS,
    DATASETS,
    UNKNOWN,
    DataError,
    H5Array,
    read_boxes,
    read_class_names,
    read_labels,
)

SPLITS = ("train", "val", "test")
ERASED_AREA = 0.1  # of an image, by augmentation
SLAB = 256  # samples that are processed at a time
THUMBNAIL = 24  # side in pixels of the thumbnails that are compared to find near-duplicates
ALIKE = 0.7  # least correlation of two thumbnails that show the same picture


class H5Dataset(Dataset):
    """One split of the H5 layout above.

    `dataset[i]` is `(image, targets)` as the module docstring describes them, and `dataset[[i, j]]`
    the same with a leading batch dimension, from one indexing operation per array, images in
    channels_last format. `DataLoader(dataset, batch_size=8)` works as with any data set;
    `DataLoader(dataset, sampler=lists_of_numbers, batch_size=None)` is faster.

    Args:
        split: "train", "val" or "test".
        data_folder_path: the folder that contains the splits.
        memory_limit: bytes that images and masks, as uint8, may take in memory. A larger split is
            read from disk batch by batch; 0 forces that. Safe with DataLoader workers under fork
            and spawn, because no file stays open between two batches.

    Attributes:
        arrays: the `H5Array` by name.
        side: (H, W) in pixels.
        class_names: the names of class 0 and class 1.
        in_memory: whether images and masks are held in memory.
        unknown_pixels: whether any mask has an unknown pixel.
        known: {target: bool (N,)}, on the CPU: whether it is known for each sample; for a mask,
            whether any of its pixels is.
        source_lines: the line of each sample in the lists of its source; None if not recorded.

    Raises:
        DataError: a file is missing or damaged, or its content violates the layout; uint8 images
            that stay on disk are read only when they are needed.
        IndexError: no sample has this number, or a list is empty.
    """

    def __init__(self, split, data_folder_path, memory_limit=8 * 2**30):
        self.arrays = split_arrays(Path(data_folder_path) / split)
        for array in self.arrays.values():
            array.read_header()
        for array in self.arrays.values():
            array.check_shape(self.arrays["images"].shape)
        self.length, height, width, _ = self.arrays["images"].shape
        self.side = (height, width)
        self.in_memory = self.length * height * width * 4 <= memory_limit
        self.class_names = read_class_names(self.arrays["binary"])
        self.source_lines = self.arrays["images"].source_lines()
        self.bboxes = read_boxes(self.arrays["bboxes"], self.side)
        self.binary = read_labels(self.arrays["binary"])
        self.known = {"seg": torch.zeros(self.length, dtype=torch.bool)}  # filled by _load
        self.known |= {"bbox": ~self.bboxes.isnan().any(1), "bin": self.binary >= 0}
        self.unknown_pixels = False  # set by _load
        self.breeds = None
        if "breeds" in self.arrays:
            self.breeds = read_labels(self.arrays["breeds"], BREEDS).long()
            self.known["breed"] = self.breeds >= 0
        self.images, self.masks = self._load("images"), self._load("masks")

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
        indices = torch.tensor(numbers, device=self.bboxes.device)
        if self.in_memory:
            # copies whole samples, where `[indices]` copies bytes: 6 to 17 times as fast
            images, masks = (kept.index_select(0, indices) for kept in (self.images, self.masks))
        else:
            rows = (self.arrays[name].rows(numbers) for name in ("images", "masks"))
            images, masks = map(torch.from_numpy, rows)
        targets = {
            "seg": masks[:, None],  # (B, H, W) -> (B, 1, H, W)
            "bbox": self.bboxes[indices],
            "bin": self.binary[indices],
        }
        if self.breeds is not None:
            targets["breed"] = self.breeds[indices]
        return images.permute(0, 3, 1, 2), targets  # (B, H, W, 3) -> (B, 3, H, W)

    def _load(self, name):
        """Images or masks as one uint8 tensor; if they stay on disk, None after a check."""
        array = self.arrays[name]
        shape = (self.length, *self.side, 3) if name == "images" else (self.length, *self.side)
        kept = torch.empty(shape, dtype=torch.uint8) if self.in_memory else None
        if name == "images" and not self.in_memory and array.accepts_any_value():
            return None
        for start, values in array.slabs():
            part = slice(start, start + len(values))
            if self.in_memory:
                kept[part] = torch.from_numpy(values)
            if name == "masks":
                self.known["seg"][part] = torch.from_numpy((values != UNKNOWN).any((1, 2)))
                self.unknown_pixels |= bool((values == UNKNOWN).any())
        return kept

    def to(self, device):
        """Move a split that is in memory to the device, which then assembles the batches."""
        for name in (*DATASETS, "breeds") if self.in_memory else ():
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name).to(device))
        return self

    def slabs(self, name):
        """Yield all images as uint8 (n, H, W, 3) or all masks as uint8 (n, H, W), in order."""
        if self.in_memory:
            kept = self.images if name == "images" else self.masks
            yield from (part.cpu().numpy() for part in kept.split(SLAB))
        else:
            yield from (values for _, values in self.arrays[name].slabs())

    @cached_property
    def _summary(self):
        """Checksum, thumbnails (N, 3, 24, 24) and largest value of the images, from one pass."""
        checksum, small, largest = 0, [], 0
        for images in self.slabs("images"):
            checksum = zlib.crc32(images, checksum)
            largest = max(largest, int(images.max()))
            small.append(thumbnails(torch.from_numpy(images).permute(0, 3, 1, 2)))
        return SimpleNamespace(checksum=checksum, thumbnails=torch.cat(small), largest=largest)

    def fingerprint(self):
        """Number of samples, and a checksum of all images, masks, boxes and labels, as text."""
        checksum = self._summary.checksum
        for masks in self.slabs("masks"):
            checksum = zlib.crc32(masks, checksum)
        for values in (self.bboxes, self.binary, self.breeds):
            if values is not None:
                checksum = zlib.crc32(values.cpu().numpy(), checksum)
        return f"{self.length} samples of checksum {checksum:08x}"


def split_arrays(folder):
    """{name: H5Array} of a split, the headers not read yet; DataError if there is no folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the split '{folder.name}' there")
    names = [*DATASETS, *(["breeds"] if (folder / "breeds.h5").exists() else [])]
    return {name: H5Array(folder, name) for name in names}


def check_splits(datasets, tasks=("seg",)):
    """Refuse a {split: H5Dataset} whose splits do not fit together.

    Args:
        tasks: those that need a known target in every split.

    Raises:
        DataError: sides, class names or kinds of files differ between splits (both files are
            named), or nothing is known for a task in some split.
    """
    one, *others = datasets.values()
    for other in others:
        for name, what in {"images": "side", "binary": "class_names"}.items():
            expected, found = getattr(one, what), getattr(other, what)
            expected = f"the {what} of {one.arrays[name].path}, {expected}"
            other.arrays[name].expect(getattr(one, what) == found, expected, found)
        for lacking, having in ((one, other), (other, one)):
            for name in having.arrays.keys() - lacking.arrays.keys():
                missing = lacking.arrays["images"].path.with_name(f"{name}.h5")
                expected = f"a file like {having.arrays[name].path}"
                raise DataError(f"{missing}: expected {expected}, found none")
    files = {"seg": "masks", "bbox": "bboxes", "bin": "binary", "breed": "breeds"}
    for split, dataset in datasets.items():
        for task in set(tasks) & dataset.known.keys():
            needed = f"at least one known target in {split}"
            dataset.arrays[files[task]].expect(dataset.known[task].any(), needed, "none")


def warnings(datasets):
    """Yield a line for everything in {split: H5Dataset} that is valid but probably a mistake."""
    for dataset in datasets.values():
        yield from _unlikely(dataset)
    yield from shared_pictures(datasets)


def _unlikely(dataset):
    """Yield a line for each file of a split whose values are probably a mistake."""
    arrays, boxes, labels = dataset.arrays, dataset.bboxes.cpu(), dataset.binary
    if dataset._summary.largest <= 1:
        yield f"{arrays['images'].path}: expected values 0-255, found none above 1"
    if dataset.known["seg"].any() and not any((m == 1).any() for m in dataset.slabs("masks")):
        yield f"{arrays['masks'].path}: expected foreground, found no pixel of value 1"
    known = boxes[dataset.known["bbox"]] * torch.tensor(dataset.side * 2).flip(0)
    if not len(known):
        yield f"{arrays['bboxes'].path}: expected boxes, found no known one"
    elif known.max() <= 1:
        yield f"{arrays['bboxes'].path}: expected boxes in pixels, found none beyond 1"
    found = [dataset.class_names[int(label)] for label in {*labels.tolist()} - {-1.0}]
    if len(found) == 1:
        yield f"{arrays['binary'].path}: expected both classes, found only '{found[0]}'"


def shared_pictures(datasets):
    """Yield a line for each split that repeats pictures of an earlier one."""
    earlier = []
    for split, dataset in datasets.items():
        own = dataset._summary.thumbnails
        found = {}
        for other, theirs in earlier:
            for i, j in near_duplicates(own, theirs):
                found.setdefault(i, f"sample {i} of {split} is sample {j} of {other}")
        if found:
            path, example = dataset.arrays["images"].path, next(iter(found.values()))
            text = f"found {len(found)} that another split has too, or nearly so: {example}"
            yield f"{path}: expected images of this split alone, {text}"
        earlier.append((split, own))


def thumbnails(images):
    """uint8 (N, 3, 24, 24) of uint8 (N, 3, H, W), each pixel the mean of what it covers."""
    return resize(images, (THUMBNAIL, THUMBNAIL))


def near_duplicates(one, other):
    """Pairs (i, j) of thumbnails one[i] and other[j] that show the same picture, in order of i.

    Mirrored, resized and recompressed copies and slight crops are found too. The test is the
    correlation of the thumbnails, each minus its local means: among 848 real photos it is at least
    0.71 for the 7 pairs that show the same picture and at most 0.59 for all others.

    Args:
        one, other: uint8 (N, 3, 24, 24) and (M, 3, 24, 24).
    """
    even, odd = _details(other)
    for start in range(0, len(one), SLAB):
        own_even, own_odd = _details(one[start : start + SLAB])
        # mirroring only flips the sign of the odd part
        alike = own_even @ even.T + (own_odd @ odd.T).abs() >= ALIKE
        for i, j in alike.nonzero().tolist():
            yield start + i, j


def _details(small):
    """Unit vectors of thumbnails minus their local means, 0 for a thumbnail of one colour.

    Returns:
        their parts that are even and odd along the width, (N, 864) each.
    """
    small = small.float()
    small = small - F.avg_pool2d(small, 7, 1, 3, count_include_pad=False)
    small = F.normalize(small.flatten(1), dim=1).view(small.shape)
    left, right = (part[..., : THUMBNAIL // 2] for part in (small, small.flip(-1)))
    return tuple((part / math.sqrt(2)).flatten(1) for part in (left + right, left - right))


def write_split(folder, images, masks, bboxes, binary, class_names, provenance, breeds=None):
    """Write one split in the layout of the module docstring; the inverse of H5Dataset.

    Arrays are stored contiguously, so that a sample or a whole file is one read.

    Args:
        folder: created; must not hold the files yet.
        images: uint8 (N, H, W, 3).
        masks: uint8 (N, H, W, 1) in {0, 1, 255}.
        bboxes, binary, breeds: (N, 4) and (N, 1) or (N,) as in the module docstring.
        class_names: the names of class 0 and class 1.
        provenance: {name: string or number}, the attributes of every file.

    Raises:
        DataError: a file exists already, or the disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"images": images, "masks": masks}
    arrays["bboxes"] = np.asarray(bboxes, np.float32).reshape(-1, 4)
    arrays["binary"] = np.asarray(binary, np.int8).reshape(-1, 1)
    if breeds is not None:
        arrays["breeds"] = np.asarray(breeds, np.int8).reshape(-1, 1)
    names = [name.encode() for name in class_names]
    text = h5py.string_dtype("utf-8", max(map(len, [*names, b" "])))  # of fixed length: no heap
    for name, array in arrays.items():
        path = folder / f"{name}.h5"
        try:
            with h5py.File(path, "x") as file:
                dataset = file.create_dataset(name, data=array)
                if name == "binary":
                    dataset.attrs["class_names"] = np.array(names, text)
                file.attrs.update(provenance)
        except (OSError, RuntimeError) as error:  # h5py raises either where the disk is full
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: cannot be written ({reason})") from error


class Augment:
    """Random flip, rotation, scale, stretch, shift, colour and erasing, for image, mask and box.

    One affine map per sample, applied to the whole batch by one bilinear `grid_sample` of image and
    mask, on whatever device they are; torchvision.transforms.v2 draws one map per call, so it would
    have to take the samples one by one. What lies outside the frame is background, and grey 128
    before the brightness changes. A pixel is unknown if at least half of what it shows is;
    otherwise it is what most of the known part is. A mask without a known pixel stays one.

    A box is mapped as its inscribed ellipse, which is closer to a head than the corners are and
    does not grow with every rotation. A box of which less than `MIN_VISIBLE` stays in the frame
    becomes unknown; any other is cut to the frame.

    Args:
        degrees: rotation drawn from [-degrees, degrees].
        scale: (smallest, largest) magnification, drawn log-uniformly.
        stretch: largest ratio by which width and height are magnified differently, at least 1.
        shift: largest shift as a fraction of the side.
        colour: c; brightness shifts by up to 128 c, contrast and saturation scale by 1 -+ c, each
            channel by 1 -+ c / 2.
        erase: share of the images in which a rectangle of a tenth of the area turns grey.

    Attributes:
        unknown_pixels: whether masks may hold unknown pixels. If they hold none, False saves one
            plane of five and gives the same results.

    Raises:
        ValueError: an argument is out of range; the message begins with its name.
    """

    MIN_VISIBLE = 0.7
    unknown_pixels = True

    def __init__(self, degrees, scale, stretch, shift, colour, erase):
        fits = len(scale) == 2 and 0.1 <= scale[0] <= scale[1] <= 10
        shares = {"shift": shift, "colour": colour}
        for holds, name, expected, found in (
            (0 <= degrees <= 180, "degrees", "0-180", degrees),
            (fits, "scale", "two numbers, 0.1 <= smallest <= largest <= 10", scale),
            (1 <= stretch <= 10, "stretch", "1-10", stretch),
            (0 <= erase <= 1, "erase", "0-1", erase),
            *((0 <= v < 1, name, "at least 0 and below 1", v) for name, v in shares.items()),
        ):
            if not holds:
                raise ValueError(f"{name}: expected {expected}, found {found}")
        self.degrees, self.scale, self.stretch = degrees, scale, stretch
        self.shift, self.colour, self.erase = shift, colour, erase

    def __call__(self, images, targets, generator, side=None):
        """Images uint8 (B, 3, H, W) and targets -> float32 images in [0, 255] and targets.

        Images and masks are first resized to `side` (h, w), if that differs. All random
        numbers come from `generator`, on the CPU, so they are the same on any device.
        """
        planes = [targets["seg"].float()]
        if self.unknown_pixels:
            unknown = targets["seg"] == UNKNOWN
            # unknown pixels count half in the mask, so that the known ones beside them decide
            planes = [planes[0].masked_fill_(unknown, 0.5), unknown.float()]
        if side and tuple(side) != tuple(images.shape[-2:]):
            images, planes = resize(images, side), [resize(plane, side) for plane in planes]
        size, (height, width) = len(images), images.shape[-2:]
        forward = self.draw_affine(size, width / height, generator)
        drawn = [forward, torch.linalg.inv(forward)[:, :2]]  # input -> output, output -> input
        drawn += self.draw_colour(size, generator)
        drawn += self.draw_erased(size, height, width, generator)
        forward, backward, colour, brightness, rows, columns = copy_to(images.device, drawn)
        grid = affine_grid(backward, height, width)
        stacked = torch.empty(size, 3 + len(planes), height, width, device=images.device)
        stacked[:, :3], stacked[:, 3:] = images, torch.cat(planes, dim=1)
        stacked[:, :3] -= 128  # so that the zeros from outside the frame are grey
        stacked = F.grid_sample(stacked, grid, align_corners=False)
        pixels = stacked[:, :3].flatten(2)  # (B, 3, H W)
        pixels = torch.baddbmm(brightness, colour, pixels).view(images.shape)
        pixels *= ~(rows & columns)
        masks = (stacked[:, 3:4] > 0.5).to(torch.uint8)
        if self.unknown_pixels:
            missing = unknown.flatten(1).all(1)[:, None, None, None]  # no pixel of it is known
            masks.masked_fill_((stacked[:, 4:] >= 0.5) | missing, UNKNOWN)
        moved = {
            **targets,
            "seg": masks,
            "bbox": move_boxes(targets["bbox"], forward, self.MIN_VISIBLE),
        }
        return pixels.add_(128).clamp_(0, 255), moved

    def draw_affine(self, size, aspect, generator):
        """(B, 3, 3) maps of input to output, both in [-1, 1] of width and height."""
        uniform = torch.rand(6, size, generator=generator) * 2 - 1  # in [-1, 1]
        angle = uniform[0] * math.radians(self.degrees)
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        zoom = torch.exp((low + high) / 2 + uniform[1] * (high - low) / 2)
        stretch = torch.exp(uniform[2] * math.log(self.stretch) / 2)
        zoom_x, zoom_y = zoom * stretch * torch.where(uniform[3] < 0, -1.0, 1.0), zoom / stretch
        maps = torch.eye(3).repeat(size, 1, 1)
        maps[:, 0, 0] = zoom_x * torch.cos(angle)
        maps[:, 0, 1] = -zoom_y * torch.sin(angle) / aspect
        maps[:, 1, 0] = zoom_x * torch.sin(angle) * aspect
        maps[:, 1, 1] = zoom_y * torch.cos(angle)
        maps[:, :2, 2] = uniform[4:].T * 2 * self.shift
        return maps

    def draw_colour(self, size, generator):
        """(B, 3, 3) matrices for RGB - 128, and (B, 1, 1) brightness to add."""
        uniform = torch.rand(6, size, 1, 1, generator=generator) * 2 - 1
        contrast, saturation = 1 + self.colour * uniform[0], 1 + self.colour * uniform[1]
        grey = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)  # ITU-R BT.601 luma, as a matrix
        matrix = contrast * (saturation * torch.eye(3) + (1 - saturation) * grey)
        channels = 1 + self.colour / 2 * uniform[3:].permute(1, 0, 2, 3)[..., 0]  # (B, 3, 1)
        return channels * matrix, 128 * self.colour * uniform[2]

    def draw_erased(self, size, height, width, generator):
        """Bool (B, 1, H, 1) rows and (B, 1, 1, W) columns of a rectangle in some images."""
        uniform = torch.rand(4, size, 1, generator=generator)
        erased = uniform[0] < self.erase  # (B, 1)
        ratio = 2 ** (uniform[1] * 2 - 1)
        half = math.sqrt(ERASED_AREA) / 2
        x = (torch.arange(width) + 0.5) / width  # (W,)
        y = (torch.arange(height) + 0.5) / height
        columns = ((x - uniform[2]).abs() < half * ratio.sqrt()) & erased  # (B, W)
        rows = (y - uniform[3]).abs() < half / ratio.sqrt()  # (B, H)
        return rows[:, None, :, None], columns[:, None, None]


def copy_to(device, tensors):
    """Copies of CPU tensors on the device, without waiting for a GPU to finish its work."""
    if device.type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


def affine_grid(maps, height, width):
    """torch's `affine_grid` without aligned corners: (B, 2, 3) -> (B, H, W, 2), points to sample.

    It adds the contributions of x and y. That takes a third of the time of torch's version on a
    CPU, which multiplies matrices for every pixel.
    """
    y, x = ((2 * torch.arange(n, device=maps.device) + 1) / n - 1 for n in (height, width))
    across = maps[:, None, :, 0] * x[:, None]  # (B, W, 2)
    down = maps[:, None, :, 1] * y[:, None] + maps[:, None, :, 2]  # (B, H, 2)
    return across[:, None] + down[:, :, None]


def move_boxes(boxes, maps, min_visible):
    """Boxes (B, 4) in [0, 1] under affine `maps` (B, 3, 3) of [-1, 1] coordinates.

    Returns (B, 4) boxes cut to the frame; NaN where less than `min_visible` of the area is left.
    """
    boxes = boxes * 2 - 1
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2  # (B, 2)
    linear, offset = maps[:, :2, :2], maps[:, :2, 2]
    centre = (linear @ centre[..., None])[..., 0] + offset
    half = torch.linalg.vector_norm(linear * half[:, None], dim=2)  # extent of the mapped ellipse
    boxes = (torch.cat([centre - half, centre + half], dim=1) + 1) / 2
    cut = boxes.clamp(0, 1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    visible = (cut[:, 2:] - cut[:, :2]).prod(1) / area
    return torch.where((visible >= min_visible)[:, None], cut, torch.nan)
