"""The data of every experiment: one split of the H5 layout, and its joint augmentation.

    DATA_FOLDER/{train,val,test}/
        images.h5   "images"  (N, H, W, 3)             0-255, any real dtype
        masks.h5    "masks"   (N, H, W, 1) or (N, H, W) 0 background, 1 pet
        bboxes.h5   "bboxes"  (N, 4)                   xmin, ymin, xmax, ymax in pixels,
                                                       NaN row = no box known
        binary.h5   "binary"  (N, 1) or (N,)           0 or 1; NaN or -1 = not known

Datasets are found by name; a file that holds a single dataset may call it anything. The attribute
`class_names` of "binary" names the two classes. Files are opened read-only and without locks, so
any number of runs share one folder, on a read-only disk too.

Inside the program an image is uint8 (3, H, W) and its targets are

    {"seg": uint8 (1, H, W) in {0, 1},
     "bbox": float32 (4,), xmin, ymin, xmax, ymax in [0, 1] of width and height, NaN = unknown,
     "bin": float32 scalar in {0, 1}, -1 = unknown}
"""

import math
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

SPLITS = ("train", "val", "test")
DATASETS = ("images", "masks", "bboxes", "binary")  # each in the file of its name
DEFAULT_CLASS_NAMES = ("class 0", "class 1")
SLAB_BYTES = 32 * 2**20  # converted at a time, so a float64 file never stands in memory whole
ERASED_AREA = 0.1  # of an image, by augmentation
BOX_TOLERANCE = 1e-3  # pixels by which rounding may push a box over the frame


class DataError(Exception):
    """A missing, damaged or inconsistent data file; the message is one line that names the file."""


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
        side: (H, W) in pixels.
        class_names: the names of class 0 and class 1.
        in_memory: whether images and masks are held in memory.

    Raises:
        DataError: a file is missing or damaged, or its content is not what the layout says.
    """

    def __init__(self, split, data_folder_path, memory_limit=8 * 2**30):
        self.folder = Path(data_folder_path) / split
        self.split = split
        self.paths = {name: self.folder / f"{name}.h5" for name in DATASETS}
        shapes = self._check_layout()
        self.length, height, width = shapes["images"][:3]
        self.side = (height, width)
        self.in_memory = self.length * height * width * 4 <= memory_limit
        self.rows = {"images": (height, width, 3), "masks": (height, width)}
        self.images = self._load("images")
        self.masks = self._load("masks")
        self.bboxes = self._load_bboxes()
        self.binary, self.class_names = self._load_binary()

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
            images, masks = self.images[indices], self.masks[indices]
        else:
            images, masks = self._read_rows("images", indices), self._read_rows("masks", indices)
        targets = {
            "seg": masks[:, None],  # (B, H, W) -> (B, 1, H, W)
            "bbox": self.bboxes[indices],
            "bin": self.binary[indices],
        }
        return images.permute(0, 3, 1, 2), targets  # (B, H, W, 3) -> (B, 3, H, W)

    def _check_layout(self):
        """Shapes by dataset name, after every check that needs no values."""
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder}: no such folder; expected the split '{self.split}' there"
            )
        shapes = {name: self._shape(name) for name in DATASETS}
        images, masks = shapes["images"], shapes["masks"]
        self._expect("images", len(images) == 4 and images[3] == 3, "(N, H, W, 3)", images)
        self._expect("images", images[0] > 0, "at least one sample", images)
        self._expect("images", min(images[1:3]) > 0, "a height and width above 0", images)
        fits = masks[:3] == images[:3] and masks[3:] in ((), (1,))
        self._expect("masks", fits, f"one mask for each image, {(*images[:3], 1)}", masks)
        self._expect(
            "bboxes", shapes["bboxes"] == (images[0], 4), f"({images[0]}, 4)", shapes["bboxes"]
        )
        fits = shapes["binary"] in ((images[0],), (images[0], 1))
        self._expect("binary", fits, f"({images[0]}, 1)", shapes["binary"])
        return shapes

    def _expect(self, name, condition, expected, found):
        if not condition:
            raise DataError(f"{self.paths[name]}: expected {expected}, found {found}")

    def _shape(self, name):
        with _opened(self.paths[name]) as file:
            dataset = _find(file, name, self.paths[name])
            is_real = dataset.dtype.kind in "buif"
            self._expect(name, is_real, "real numbers", f"dtype {dataset.dtype}")
            return dataset.shape or ()

    def _load(self, name):
        """Images or masks as a uint8 tensor; checks every value, keeps none if too large."""
        shape = (self.length, *self.rows[name]) if self.in_memory else (0,)
        kept = torch.empty(shape, dtype=torch.uint8)
        largest = 0
        with _opened(self.paths[name]) as file:
            dataset = _find(file, name, self.paths[name])
            is_safe = name == "images" and dataset.dtype == np.uint8
            if is_safe and not self.in_memory:
                return kept
            for start, stop in _slabs(dataset):
                values = self._checked(name, dataset[start:stop], start)
                largest = max(largest, values.max())
                if self.in_memory:
                    kept[start:stop] = torch.from_numpy(values).view(-1, *self.rows[name])
            scaled = name == "images" and dataset.dtype.kind == "f" and largest == 1
            self._expect(name, not scaled, "values 0-255", "values 0-1; multiply by 255")
        return kept

    def _checked(self, name, values, start):
        """uint8 of real `values`, the samples from `start` on, that must fit the layout."""
        top = 255 if name == "images" else 1
        if values.dtype == np.bool_ or (values.dtype == np.uint8 and top == 255):
            return values.astype(np.uint8, copy=False)
        low, high = values.min(), values.max()  # NaN if any value is NaN
        if not (low >= 0 and high <= top):
            wrong = ~((values >= 0) & (values <= top))
            self._expect(name, False, f"values 0-{top}", _first(values, wrong, start))
        rounded = np.rint(values, casting="unsafe") if values.dtype.kind == "f" else values
        if name == "masks" and (rounded != values).any():
            self._expect(name, False, "values 0 or 1", _first(values, rounded != values, start))
        return rounded.astype(np.uint8, copy=False)

    def _load_bboxes(self):
        """(N, 4) float32 boxes as fractions of width and height; pixels are checked first."""
        with _opened(self.paths["bboxes"]) as file:
            boxes = _find(file, "bboxes", self.paths["bboxes"])[()].astype(np.float64)
        height, width = self.side
        unknown = np.isnan(boxes).all(axis=1)
        inside = (boxes[:, :2] >= -BOX_TOLERANCE).all(axis=1)
        inside &= (boxes[:, 2:] <= np.array([width, height]) + BOX_TOLERANCE).all(axis=1)
        wrong = ~unknown & ~(inside & (boxes[:, :2] < boxes[:, 2:]).all(axis=1))
        if wrong.any():
            expected = f"xmin < xmax and ymin < ymax inside {width} x {height}, or four NaN"
            row = int(wrong.argmax())
            self._expect("bboxes", False, expected, f"{boxes[row].tolist()} in sample {row}")
        boxes = np.clip(boxes / [width, height, width, height], 0, 1)
        return torch.from_numpy(boxes.astype(np.float32))

    def _load_binary(self):
        """(N,) float32 labels with -1 for unknown, and the two class names."""
        with _opened(self.paths["binary"]) as file:
            dataset = _find(file, "binary", self.paths["binary"])
            labels = dataset[()].reshape(-1).astype(np.float64)
            names = dataset.attrs.get("class_names", DEFAULT_CLASS_NAMES)
        names = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
        self._expect("binary", len(names) == 2, "two class_names", f"{len(names)}")
        labels[np.isnan(labels)] = -1
        wrong = ~np.isin(labels, (-1, 0, 1))
        if wrong.any():
            self._expect("binary", False, "0, 1, -1 or NaN", _first(labels, wrong, 0))
        return torch.from_numpy(labels.astype(np.float32)), names

    def _read_rows(self, name, indices):
        """uint8 rows from disk; the file is open only meanwhile, so workers share no handle."""
        with _opened(self.paths[name]) as file:
            dataset = _find(file, name, self.paths[name])
            rows = [self._checked(name, dataset[i : i + 1], i) for i in indices.tolist()]
        return torch.from_numpy(np.concatenate(rows)).view(-1, *self.rows[name])


def first(samples):
    """The collate function for H5Dataset, whose `__getitems__` has put the batch together."""
    return samples[0]


class _opened:
    """An H5 file open for reading, without locks; errors of the reader become DataError."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file")
        try:
            self.file = h5py.File(self.path, "r", locking=False)
        except OSError as error:
            raise DataError(f"{self.path}: not a readable HDF5 file ({_line(error)})") from error
        return self.file

    def __exit__(self, kind, error, traceback):
        self.file.close()
        if kind is not None and not issubclass(kind, DataError) and issubclass(kind, Exception):
            raise DataError(f"{self.path}: damaged ({_line(error)})") from error


def _line(error):
    return " ".join(str(error).split()) or type(error).__name__


def _find(file, name, path):
    """The dataset called `name`, or the only one there is."""
    if isinstance(file.get(name), h5py.Dataset):
        return file[name]
    found = [key for key in file if isinstance(file.get(key), h5py.Dataset)]
    if len(found) != 1:
        raise DataError(f"{path}: expected a dataset '{name}', found {sorted(file) or 'nothing'}")
    return file[found[0]]


def _slabs(dataset):
    """(start, stop) ranges of samples that cover the dataset, of about SLAB_BYTES, whole chunks."""
    sample_bytes = max(1, dataset.dtype.itemsize * math.prod(dataset.shape[1:]))
    step = max(1, SLAB_BYTES // sample_bytes)
    chunk = dataset.chunks[0] if dataset.chunks else 1
    if chunk <= 4 * step:
        step = math.ceil(step / chunk) * chunk  # no chunk is decompressed twice
    for start in range(0, len(dataset), step):
        yield start, min(start + step, len(dataset))


def _first(values, wrong, start):
    """'VALUE in sample NUMBER' for the first wrong entry of a slab that begins at `start`."""
    position = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return f"{values[position]} in sample {start + int(position[0])}"


def write_split(folder, images, masks, bboxes, binary, class_names, provenance):
    """Write one split in the layout of the module docstring; the inverse of H5Dataset.

    Arrays are stored contiguously: one sample is one read, so is a whole file, and h5py guesses no
    chunks.

    Args:
        folder: created; must not hold the files yet.
        images: uint8 (N, H, W, 3).
        masks: uint8 (N, H, W, 1) in {0, 1}.
        bboxes: (N, 4) xmin, ymin, xmax, ymax in pixels, NaN rows for unknown.
        binary: (N,) or (N, 1) in {0, 1}, -1 for unknown.
        class_names: the names of class 0 and class 1.
        provenance: attributes (name -> string or number) put on every file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"images": images, "masks": masks}
    arrays["bboxes"] = np.asarray(bboxes, np.float32).reshape(-1, 4)
    arrays["binary"] = np.asarray(binary, np.int8).reshape(-1, 1)
    for name, array in arrays.items():
        with h5py.File(folder / f"{name}.h5", "x") as file:
            dataset = file.create_dataset(name, data=array)
            if name == "binary":
                dataset.attrs["class_names"] = list(class_names)
            file.attrs.update(provenance)


class Augment:
    """Random flip, rotation, scale, shift and colour of images, masks and boxes together.

    One affine map per sample, applied to the whole batch by one bilinear `grid_sample` of image and
    mask, on whatever device they are; torchvision.transforms.v2 draws one map per call, so it would
    have to take the samples one by one. What comes from outside the frame is grey 128 and
    background.

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

    def __call__(self, images, targets, generator):
        """Images uint8 (B, 3, H, W) and targets -> float32 images in [0, 255] and targets.

        All random numbers come from `generator`, on the CPU, so a run repeats on any device.
        """
        size, (height, width) = len(images), images.shape[-2:]
        forward = self.draw_affine(size, width / height, generator)
        colour, brightness = self.draw_colour(size, generator)
        device = images.device
        backward = torch.linalg.inv(forward)[:, :2].to(device, non_blocking=True)  # output -> input
        grid = F.affine_grid(backward, (size, 4, height, width), align_corners=False)
        stacked = torch.cat([images.float() - 128, targets["seg"].float()], dim=1)  # (B, 4, H, W)
        stacked = F.grid_sample(stacked, grid, align_corners=False)
        pixels = stacked[:, :3].flatten(2)  # (B, 3, H W)
        pixels = torch.baddbmm(brightness.to(device), colour.to(device), pixels).view(images.shape)
        pixels *= self.draw_kept(size, height, width, generator).to(device)
        moved = {
            **targets,
            "seg": (stacked[:, 3:] > 0.5).to(torch.uint8),
            "bbox": move_boxes(targets["bbox"], forward.to(device), self.MIN_VISIBLE),
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

    def draw_kept(self, size, height, width, generator):
        """(B, 1, H, W) bool, False in a rectangle of some of the images."""
        uniform = torch.rand(4, size, 1, generator=generator)
        erased = uniform[0] < self.erase  # (B, 1)
        ratio = 2 ** (uniform[1] * 2 - 1)
        half = math.sqrt(ERASED_AREA) / 2
        x = (torch.arange(width) + 0.5) / width  # (W,)
        y = (torch.arange(height) + 0.5) / height
        across = ((x - uniform[2]).abs() < half * ratio.sqrt()) & erased  # (B, W)
        along = (y - uniform[3]).abs() < half / ratio.sqrt()  # (B, H)
        return ~(along[:, None, :, None] & across[:, None, None])


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
