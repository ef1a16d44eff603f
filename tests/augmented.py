"""Augmented batches, and the map that has moved each picture, measured.

Three spots, one in each colour channel, are found again in the result, and three pairs of places
determine an affine map. Places are (x, y) in pixels; pixel i covers [i, i + 1].
"""

from types import SimpleNamespace

import torch

from parts.augment import Augment
from parts.targets import PETS

HEIGHT, WIDTH = 48, 64  # not square, so that a mistake in the aspect shows
SPOTS = torch.tensor([[25.0, 21.0], [38.0, 20.0], [33.0, 31.0]])  # of red, green and blue
MANY = 400
TASKS = {name: SimpleNamespace(target=kind) for name, kind in PETS.items()}
OFF = {"degrees": 0, "scale": (1, 1), "stretch": 1, "shift": 0, "colour": 0, "erase": 0}
GEOMETRY = {"degrees": 25.0, "scale": (0.6, 1.5), "stretch": 1.3, "shift": 0.1}
BOX = torch.tensor([0.3, 0.25, 0.5, 0.6])
EVERYTHING = GEOMETRY | {"colour": 0.4, "erase": 0.3}


def augment(image, count=None, masks=None, boxes=None, seed=0, side=None, **settings):
    """`count` copies of an image (3, H, W), or images (B, 3, H, W), with targets, augmented."""
    images = image.expand(count, -1, -1, -1) if count else image
    targets = {
        "seg": torch.zeros_like(images[:, :1]) if masks is None else masks,
        "bbox": torch.full((len(images), 4), torch.nan) if boxes is None else boxes,
        "bin": torch.arange(len(images)) % 3 - 1.0,
    }
    generator = torch.Generator().manual_seed(seed)
    return Augment(TASKS, **OFF | settings)(images, targets, generator, side)


def pixel_centres(height, width):
    """x and y (H, W) in pixels."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return x, y


def spots(fine=1):
    """uint8 (3, fine H, fine W): grey 128 with one smooth bright spot in each channel."""
    x, y = (place / fine for place in pixel_centres(HEIGHT * fine, WIDTH * fine))
    square = (x - SPOTS[:, :1, None]) ** 2 + (y - SPOTS[:, 1:, None]) ** 2
    return (128 + 120 * torch.exp(-square / (2 * 1.5**2))).round().to(torch.uint8)


def measured(moved, size=(1.0, 1.0), fine=1):
    """The maps (B, 2, 3) of input to output pixels that moved `spots(fine)`, in pixels of `fine` 1.

    Args:
        moved: images (B, 3, h, w).
        size: factors of width and height by which `side` had resized the image before.
    """
    weight = (moved - 128).double()
    x, y = (place / fine for place in pixel_centres(*moved.shape[-2:]))
    centre = torch.stack([(weight * x).sum((2, 3)), (weight * y).sum((2, 3))], dim=2)
    centre = centre / weight.sum((2, 3))[..., None]  # (B, 3 spots, 2)
    corners = torch.cat([SPOTS * torch.tensor(size), torch.ones(3, 1)], dim=1).double()
    return torch.linalg.solve(corners, centre).mT


def taken_apart(maps, height=HEIGHT, width=WIDTH):
    """What a map does to the image: {name: (B,)}; width and height first, then the rotation."""
    linear, wide, high = maps[:, :, :2], maps[:, :, 0], maps[:, :, 1]
    middle = torch.tensor([width / 2, height / 2]).double()
    shift = (linear @ middle + maps[:, :, 2] - middle) / torch.tensor([width, height])
    ratio = wide.norm(dim=1) / high.norm(dim=1)
    return {
        "rotation": torch.atan2(-high[:, 0], high[:, 1]).rad2deg(),
        "zoom": torch.linalg.det(linear).abs().sqrt().log(),
        "stretch": ratio.log(),
        "shift x": shift[:, 0],
        "shift y": shift[:, 1],
        "flip": torch.linalg.det(linear).sign(),
    }


def fills(values, low, high):
    """Whether values are spread evenly over a whole range and do not leave it."""
    place = (values.sort().values - low) / (high - low)
    even = (torch.arange(len(place)) + 0.5) / len(place)
    return -0.01 < place[0] < 0.02 and 0.98 < place[-1] < 1.01 and (place - even).abs().max() < 0.07


def photograph(seed=0):
    """A smooth random image, uint8 (3, H, W), and a mask (1, H, W) of 0, 1 and 255 in pieces."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 5, 6, 8, generator=generator)
    options = {"size": (HEIGHT, WIDTH), "mode": "bicubic", "align_corners": False}
    fine = torch.nn.functional.interpolate(coarse, **options)[0].clamp(0, 1)
    mask = (fine[3:4] > 0.5).to(torch.uint8).masked_fill(fine[4:] > 0.7, 255)
    return (fine[:3] * 255).to(torch.uint8), mask
