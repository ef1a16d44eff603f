"""The data of every experiment: one split of the H5 layout, and its joint augmentation.

    DATA_FOLDER/{train,val,test}/
        images.h5   "images"  (N, H, W, 3)             0-255, any real dtype
        masks.h5    "masks"   (N, H, W, 1) or (N, H, W) 0 background, 1 pet
        bboxes.h5   "bboxes"  (N, 4)                   xmin, ymin, xmax, ymax in pixels,
                                                       NaN row = no box known
        binary.h5   "binary"  (N, 1) or (N,)           0 or 1; NaN or -1 = not known

Datasets are found by name; a file that holds a single dataset may call it anything. The attribute
`class_names` of "binary" names the two classes. Files are opened read-only and without locks, so
any number of runs share one folder, on a read-only disk too. To check a folder of your own:

    python dataload.py DATA_FOLDER

Inside the program an image is uint8 (3, H, W) and its targets are

    {"seg": uint8 (1, H, W) in {0, 1},
     "bbox": float32 (4,), xmin, ymin, xmax, ymax in [0, 1] of width and height, NaN = unknown,
     "bin": float32 scalar in {0, 1}, -1 = unknown}
"""

import hashlib
import math
import sys
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import resize

from h5array import DATASETS, DataError, H5Array, read_boxes, read_labels

SPLITS = ("train", "val", "test")
ERASED_AREA = 0.1  # of an image, by augmentation


class H5Dataset(Dataset):
    """One split of the H5 layout above.

    `dataset[i]` is `(image, targets)` as the module docstring describes them, and
    `dataset.batch([i, j])` the same with a leading batch dimension, from one indexing operation per
    array, images in channels_last format. `DataLoader(dataset, collate_fn=first)` uses `batch`.

    Args:
        split: "train", "val" or "test".
        data_folder_path: the folder that contains the splits.
        memory_limit: bytes that images and masks, as uint8, may take in memory. A larger split is
            read from disk batch by batch; 0 forces that. Safe with DataLoader workers under fork
            and spawn, because no file stays open between two batches.

    Attributes:
        arrays: the four `H5Array` by name.
        side: (H, W) in pixels.
        class_names: the names of class 0 and class 1.
        in_memory: whether images and masks are held in memory.

    Raises:
        DataError: a file is missing or damaged, or its content is not what the layout says; uint8
            images that stay on disk are not read before they are asked for.
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
        self.images, self.masks = self._load("images"), self._load("masks")
        self.bboxes = read_boxes(self.arrays["bboxes"], self.side)
        self.binary, self.class_names = read_labels(self.arrays["binary"])

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not -self.length <= index < self.length:
            raise IndexError(f"sample {index} of a split of {self.length}")
        images, targets = self.batch([index % self.length])
        return images[0], {task: target[0] for task, target in targets.items()}

    def __getitems__(self, indices):
        """What a DataLoader asks for: a list of one element, the batch; see `first`."""
        return [self.batch(indices)]

    def batch(self, indices):
        """Images uint8 (B, 3, H, W) and targets with a leading B, for a list of sample numbers."""
        indices = torch.as_tensor(indices)
        if self.in_memory:
            # `[indices]` copies byte by byte, this sample by sample: 6 to 17 times as fast
            images, masks = (kept.index_select(0, indices) for kept in (self.images, self.masks))
        else:
            rows = (self.arrays[name].rows(indices.tolist()) for name in ("images", "masks"))
            images, masks = map(torch.from_numpy, rows)
        targets = {
            "seg": masks[:, None],  # (B, H, W) -> (B, 1, H, W)
            "bbox": self.bboxes[indices],
            "bin": self.binary[indices],
        }
        return images.permute(0, 3, 1, 2), targets  # (B, H, W, 3) -> (B, 3, H, W)

    def _load(self, name):
        """Images or masks as one uint8 tensor; None, and only checked, if they stay on disk."""
        array = self.arrays[name]
        shape = (self.length, *self.side, 3) if name == "images" else (self.length, *self.side)
        kept = torch.empty(shape, dtype=torch.uint8) if self.in_memory else None
        for start, values in array.slabs() if self.in_memory or not array.takes_any() else ():
            if self.in_memory:
                kept[start : start + len(values)] = torch.from_numpy(values)
        return kept

    def digests(self):
        """Yield a hash of each image, the same where all pixels are."""
        slabs = [(0, self.images.numpy())] if self.in_memory else self.arrays["images"].slabs()
        for image in chain.from_iterable(images for _, images in slabs):
            yield hashlib.sha1(image, usedforsecurity=False).digest()


def first(samples):
    """The collate function for H5Dataset, whose `__getitems__` has put the batch together."""
    return samples[0]


def split_arrays(folder):
    """The four H5Array of a split by name, their headers not read yet; DataError if no folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the split '{folder.name}' there")
    return {name: H5Array(folder, name) for name in DATASETS}


def warnings(datasets):
    """Yield a line for what is valid in {split: H5Dataset} and yet probably a mistake."""
    places = {}  # hash of an image -> the sample that has it
    for split, dataset in datasets.items():
        images, binary = dataset.arrays["images"].path, dataset.arrays["binary"].path
        known = [dataset.class_names[int(label)] for label in {*dataset.binary.tolist()} - {-1.0}]
        if len(known) == 1:
            yield f"{binary}: expected both classes, found only '{known[0]}'"
        own = {digest: f"sample {i} of {split}" for i, digest in enumerate(dataset.digests())}
        shared = [f"{own[digest]} is {places[digest]}" for digest in own if digest in places]
        if shared:
            found = f"{len(shared)} that another has too, the first: {shared[0]}"
            yield f"{images}: expected images of this split alone, found {found}"
        places |= own


def write_split(folder, images, masks, bboxes, binary, class_names, provenance):
    """Write one split in the layout of the module docstring; the inverse of H5Dataset.

    Arrays are stored contiguously: one sample is one read, so is a whole file, and h5py guesses no
    chunks.

    Args:
        folder: created; must not hold the files yet.
        images: uint8 (N, H, W, 3).
        masks: uint8 (N, H, W, 1) in {0, 1}.
        bboxes, binary: (N, 4) and (N, 1) or (N,) as in the module docstring.
        class_names: the names of class 0 and class 1.
        provenance: attributes (name -> string or number) put on every file.

    Raises:
        DataError: a file is there already, or the disk takes no more.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"images": images, "masks": masks}
    arrays["bboxes"] = np.asarray(bboxes, np.float32).reshape(-1, 4)
    arrays["binary"] = np.asarray(binary, np.int8).reshape(-1, 1)
    for name, array in arrays.items():
        path = folder / f"{name}.h5"
        try:
            with h5py.File(path, "x") as file:
                dataset = file.create_dataset(name, data=array)
                if name == "binary":
                    dataset.attrs["class_names"] = list(class_names)
                file.attrs.update(provenance)
        except (OSError, RuntimeError) as error:  # h5py raises either where the disk is full
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: cannot be written ({reason})") from error


class Augment:
    """Random flip, rotation, scale, stretch, shift, colour and erasing, for image, mask and box.

    One affine map per sample, applied to the whole batch by one bilinear `grid_sample` of image and
    mask, on whatever device they are; torchvision.transforms.v2 draws one map per call, so it would
    have to take the samples one by one. What comes from outside the frame is background, and grey
    128 before the brightness changes.

    A box is mapped as the ellipse inscribed in it, which is nearer to a head than the corners are
    and does not grow with every rotation. A box of which less than `MIN_VISIBLE` stays in the frame
    becomes unknown, any other is cut to the frame.

    Args:
        degrees: rotation drawn from [-degrees, degrees].
        scale: (smallest, largest) magnification, drawn log-uniformly.
        stretch: largest ratio by which width and height are magnified differently, at least 1.
        shift: largest shift as a fraction of the side.
        colour: c; brightness shifts by up to 128 c, contrast and saturation scale by 1 -+ c, each
            channel by 1 -+ c / 2.
        erase: share of the images in which a rectangle of a tenth of the area turns grey.
    """

    MIN_VISIBLE = 0.7

    def __init__(self, degrees, scale, stretch, shift, colour, erase):
        self.degrees, self.scale, self.stretch = degrees, scale, stretch
        self.shift, self.colour, self.erase = shift, colour, erase

    def __call__(self, images, targets, generator, side=None):
        """Images uint8 (B, 3, H, W) and targets -> float32 images in [0, 255] and targets.

        Images and masks are first resized to `side` (h, w), if that is another one. All random
        numbers come from `generator`, on the CPU, so they are the same on any device.
        """
        masks = targets["seg"]
        if side and side != tuple(images.shape[-2:]):
            images, masks = resize(images, side), resize(masks.float(), side)
        size, (height, width) = len(images), images.shape[-2:]
        forward = self.draw_affine(size, width / height, generator)
        colour, brightness = self.draw_colour(size, generator)
        along, across = self.draw_erased(size, height, width, generator)
        backward = torch.linalg.inv(forward)[:, :2]  # output -> input
        drawn = (forward, backward, colour, brightness, along, across)
        forward, backward, colour, brightness, along, across = send(drawn, images.device)
        grid = affine_grid(backward, height, width)
        stacked = torch.empty(size, 4, height, width, device=images.device)
        stacked[:, :3], stacked[:, 3:] = images, masks
        stacked[:, :3] -= 128  # so that the zeros from outside the frame are grey
        stacked = F.grid_sample(stacked, grid, align_corners=False)
        pixels = stacked[:, :3].flatten(2)  # (B, 3, H W)
        pixels = torch.baddbmm(brightness, colour, pixels).view(images.shape)
        pixels *= ~(along & across)
        moved = {
            **targets,
            "seg": (stacked[:, 3:] > 0.5).to(torch.uint8),
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
        wide, high = zoom * stretch * torch.where(uniform[3] < 0, -1.0, 1.0), zoom / stretch
        maps = torch.eye(3).repeat(size, 1, 1)
        maps[:, 0, 0] = wide * torch.cos(angle)
        maps[:, 0, 1] = -high * torch.sin(angle) / aspect
        maps[:, 1, 0] = wide * torch.sin(angle) * aspect
        maps[:, 1, 1] = high * torch.cos(angle)
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
        """Bool (B, 1, H, 1) and (B, 1, 1, W), rows and columns of a rectangle in some images."""
        uniform = torch.rand(4, size, 1, generator=generator)
        erased = uniform[0] < self.erase  # (B, 1)
        ratio = 2 ** (uniform[1] * 2 - 1)
        half = math.sqrt(ERASED_AREA) / 2
        x = (torch.arange(width) + 0.5) / width  # (W,)
        y = (torch.arange(height) + 0.5) / height
        across = ((x - uniform[2]).abs() < half * ratio.sqrt()) & erased  # (B, W)
        along = (y - uniform[3]).abs() < half / ratio.sqrt()  # (B, H)
        return along[:, None, :, None], across[:, None, None]


def send(tensors, device):
    """Tensors of the CPU on the device, without waiting for what a GPU is at."""
    if device.type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


def affine_grid(maps, height, width):
    """torch's `affine_grid` without aligned corners: (B, 2, 3) -> (B, H, W, 2), places to sample.

    It adds what x contributes to what y does, and so takes a third of the time on a CPU, where
    torch multiplies matrices for every pixel.
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


if __name__ == "__main__":
    from tools.check_data import main

    sys.exit(main())
