"""The joint augmentation of images and their targets."""

import math

import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import resize

from parts.errors import SettingError
from parts.targets import Derived, View, with_sources

ERASED_AREA = 0.1  # of an image


class Augment:
    """Random flip, rotation, scale, stretch, shift, colour and erasing of images and targets.

    Each sample has its own affine map; one bilinear `grid_sample` applies them to the whole batch,
    images and target planes together, on their device. (torchvision.transforms.v2 draws one map per
    call, so it would need a call per sample.) Each target moves as its kind says
    (parts/targets.py); derived ones are computed again. Outside the image, pixels are grey 128
    before the brightness changes.

    Args:
        tasks: {name: Task}, whose targets are moved.
        degrees: rotation drawn from [-degrees, degrees].
        scale: (smallest, largest) magnification, drawn log-uniformly.
        stretch: largest ratio by which width and height are magnified differently, at least 1.
        shift: largest shift as a share of the side.
        colour: c; brightness shifts by up to 128 c, contrast and saturation scale by 1 -+ c, each
            channel by 1 -+ c / 2.
        erase: share of the images in which a rectangle of a tenth of the area turns grey.

    Attributes:
        complete: names of the targets that are known to the last pixel; set by the run. It saves
            time and does not change the result.

    Raises:
        SettingError: an argument is out of range; the message begins with its name.
    """

    def __init__(self, tasks, degrees, scale, stretch, shift, colour, erase):
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
                raise SettingError(f"{name}: expected {expected}, found {found}")
        self.kinds = with_sources({name: task.target for name, task in tasks.items()})
        self.degrees, self.scale, self.stretch = degrees, scale, stretch
        self.shift, self.colour, self.erase = shift, colour, erase
        self.complete = frozenset()

    def __call__(self, images, targets, generator, side=None):
        """Images uint8 (B, 3, H, W) and targets -> float32 images in [0, 255] and targets.

        Images and targets are first resized to `side` (h, w), if that differs. All random
        numbers come from `generator`, on the CPU, so they are the same on any device.
        """
        kinds = {name: kind for name, kind in self.kinds.items() if name in targets}
        planes = {n: kind.planes(targets[n], n in self.complete) for n, kind in kinds.items()}
        planes = {name: plane for name, plane in planes.items() if plane is not None}
        if side and tuple(side) != tuple(images.shape[-2:]):
            images, planes = resize(images, side), {n: resize(p, side) for n, p in planes.items()}
        size, (height, width) = len(images), images.shape[-2:]
        forward = self.draw_affine(size, width / height, generator)
        drawn = [forward, torch.linalg.inv(forward)[:, :2]]  # input -> output, output -> input
        drawn += self.draw_colour(size, generator)
        drawn += self.draw_erased(size, height, width, generator)
        forward, backward, *look = copy_to(images.device, drawn)
        view = View(forward, affine_grid(backward, height, width))
        images, planes = sample_together(images, planes, view.grid)
        moved = {
            name: kind.moved(targets[name], planes.get(name), view, name in self.complete)
            for name, kind in kinds.items()
            if not isinstance(kind, Derived)
        }
        derived = {n: k for n, k in kinds.items() if isinstance(k, Derived)}
        moved |= {name: kind.derive(moved) for name, kind in derived.items()}
        return recoloured(images, *look), targets | moved

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


def sample_together(images, planes, grid):
    """Images (B, 3, H, W) minus 128 and planes {name: (B, P, H, W)} at the points of a grid
    (B, h, w, 2), in one bilinear sampling; 0 outside the image."""
    (size, _, *side), counts = images.shape, [plane.shape[1] for plane in planes.values()]
    stacked = torch.empty(size, 3 + sum(counts), *side, device=images.device)
    stacked[:, :3] = images
    stacked[:, :3] -= 128  # so that the zeros outside the image are grey
    if planes:
        stacked[:, 3:] = torch.cat(list(planes.values()), dim=1)
    images, *moved = F.grid_sample(stacked, grid, align_corners=False).split([3, *counts], dim=1)
    return images, dict(zip(planes, moved, strict=True))


def recoloured(images, colour, brightness, rows, columns):
    """Images (B, 3, H, W) minus 128 -> in [0, 255], with new colours and erased rectangles."""
    pixels = torch.baddbmm(brightness, colour, images.flatten(2))  # (B, 3, H W)
    pixels = pixels.view(images.shape)
    pixels *= ~(rows & columns)
    return pixels.add_(128).clamp_(0, 255)


def copy_to(device, tensors):
    """Copies of CPU tensors on the device, without waiting for a GPU."""
    if device.type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


def affine_grid(maps, height, width):
    """torch's `affine_grid` without aligned corners: (B, 2, 3) -> (B, H, W, 2), points to sample.

    It adds the contributions of x and y. On a CPU that takes a third of the time of torch's own,
    which multiplies matrices for every pixel.
    """
    y, x = ((2 * torch.arange(n, device=maps.device) + 1) / n - 1 for n in (height, width))
    across = maps[:, None, :, 0] * x[:, None]  # (B, W, 2)
    down = maps[:, None, :, 1] * y[:, None] + maps[:, None, :, 2]  # (B, H, 2)
    return across[:, None] + down[:, :, None]
