"""Painting on images (3, H, W), uint8 tensors. Colours are Okabe and Ito's, for colour-blind
readers too."""

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.utils import draw_bounding_boxes

from parts.errors import UserError

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
WHITE, BLACK = "#FFFFFF", "#000000"
PALETTE = (BLUE, ORANGE, GREEN, PINK, "#D55E00", "#56B4E9", "#F0E442", "#999999")


def line_width(image):
    """Width in pixels of a line in an image (3, H, W): 1 below a side of 300, 5 at 1000."""
    return max(1, round(max(image.shape[1:]) / 200))


def resized(value, size):
    """Values (C, h, w) at `size` (H, W): bilinear, or nearest for labels and if there are NaN."""
    if value.is_floating_point() and not value.isnan().any():
        return F.interpolate(value[None], size, mode="bilinear")[0]
    return F.interpolate(value[None].float(), size, mode="nearest-exact")[0].to(value.dtype)


def border(mask, width):
    """The pixels of a mask (H, W) at most `width` from its outside, along either axis."""
    rows = torch.arange(-width, mask.shape[0] + width).clamp(0, mask.shape[0] - 1)
    columns = torch.arange(-width, mask.shape[1] + width).clamp(0, mask.shape[1] - 1)
    tall, wide = mask[rows], mask[:, columns]  # padded by the mask's own edges
    inner = tall[: -2 * width] & tall[2 * width :] & wide[:, : -2 * width] & wide[:, 2 * width :]
    return mask & ~inner


def paint(image, mask, colour, opacity=1.0):
    """An image (3, H, W) with "#RRGGBB" over the pixels of a mask (H, W).

    torchvision's `draw_segmentation_masks` takes ten times as long and rounds down, which darkens
    the pixels outside the mask too.
    """
    colour = torch.tensor(list(bytes.fromhex(colour[1:])), dtype=torch.uint8)[:, None, None]
    if opacity < 1:
        colour = torch.lerp(image.float(), colour.float(), opacity).round().to(torch.uint8)
    return torch.where(mask, colour, image)


def hatch(image, mask):
    """An image (3, H, W) with diagonal lines, white beside black, over a mask (H, W)."""
    if not mask.any():
        return image
    height, width, line = *mask.shape, line_width(image)
    place = (torch.arange(height)[:, None] + torch.arange(width)) % (8 * line)
    image = paint(image, mask & (place < line), WHITE)
    return paint(image, mask & (place >= line) & (place < 2 * line), BLACK)


def draw_box(image, box):
    """An image (3, H, W) with a box (4,) xyxy in [0, 1], cut to the frame, with a dark halo."""
    width, size = line_width(image), torch.tensor(image.shape[:0:-1]).repeat(2)  # W, H, W, H
    corners = (box.float().clamp(0, 1) * size).round().view(2, 2)
    top_left = torch.minimum(corners.amin(0), size[:2] - 1)
    box = torch.cat([top_left, torch.maximum(top_left, corners.amax(0) - 1)])  # both corners inside
    halo = box + width * torch.tensor([-1, -1, 1, 1])
    image = draw_bounding_boxes(image, halo[None], colors=BLACK, width=3 * width)
    return draw_bounding_boxes(image, box[None], colors=ORANGE, width=width)


def draw_all(image, values, tasks, class_names):
    """An image (3, H, W) with {task: target or output} drawn on it, and the words of the tasks.

    Tasks that fill the image are drawn to its right: (3, H, W + M W) for M such tasks.
    """
    beside, words = [], []
    for name, task in tasks.items():
        if name in values:
            drawn, text = task.draw(image, values[name], class_names[name])
            words.append(text)
            if task.target.fills:
                beside.append(drawn)
            else:
                image = drawn
    return torch.cat([image, *beside], dim=2), ", ".join(filter(None, words))


def dim(image, mask, share=0.55):
    """An image (3, H, W) that is darker by `share` outside a mask (H, W)."""
    return paint(image, ~mask, BLACK, share)


def as_pixels(image):
    """An image as a NumPy array; UserError unless it is uint8 (H, W, 3)."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        found = f"{pixels.dtype} {pixels.shape}"
        raise UserError(f"predict: expected an image uint8 (H, W, 3), found {found}")
    return np.ascontiguousarray(pixels)
