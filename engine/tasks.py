"""The three tasks, assembled: losses, metrics, drawing, and descriptions in words and JSON.

This is the only module of the engine that knows a task by name. A draw function takes an image
uint8 (3, H, W), a target or an output without batch dimension, and the class names; it returns the
image, drawn on at its own size, and words or "". A describe function takes an output and the
(width, height) of the picture that it describes.
"""

import torch
import torch.nn.functional as F

from MTL_Utils import (
    UNKNOWN,
    Task,
    bbox_known,
    bbox_loss,
    bbox_metrics,
    bin_known,
    bin_loss,
    bin_metrics,
    seg_known,
    seg_loss,
    seg_metrics,
)

BLUE, ORANGE = "#0072B2", "#E69F00"  # Okabe and Ito's, for colour-blind readers too
WHITE, BLACK = "#FFFFFF", "#000000"
TINT = 0.45  # opacity of the mask's colour


def line_width(image):
    """Width in pixels of a line in an image (3, H, W): 1 below a side of 450, 3 at 1000."""
    return max(1, round(max(image.shape[1:]) / 300))


def mask_of(value, size):
    """Logits or a target (1, h, w) -> (mask, unknown), bool (H, W) each, at `size` (H, W)."""
    if value.is_floating_point():
        mask = F.interpolate(value[None], size, mode="bilinear")[0, 0] > 0
        return mask, torch.zeros_like(mask)
    classes = F.interpolate(value[None].float(), size, mode="nearest-exact")[0, 0]
    return classes == 1, classes == UNKNOWN


def border(mask, width):
    """The pixels of a mask (H, W) at most `width` from its outside, along either axis."""
    rows = torch.arange(-width, mask.shape[0] + width).clamp(0, mask.shape[0] - 1)
    columns = torch.arange(-width, mask.shape[1] + width).clamp(0, mask.shape[1] - 1)
    tall, wide = mask[rows], mask[:, columns]  # padded by the mask's own edges
    inner = tall[: -2 * width] & tall[2 * width :] & wide[:, : -2 * width] & wide[:, 2 * width :]
    return mask & ~inner


def paint(image, mask, colour, opacity=1.0):
    """An image (3, H, W) with "#RRGGBB" over the pixels of a mask (H, W).

    torchvision's `draw_segmentation_masks` takes ten times as long, and rounds down, so that it
    darkens the pixels outside the mask too.
    """
    colour = torch.tensor(list(bytes.fromhex(colour[1:])), dtype=torch.uint8)[:, None, None]
    if opacity < 1:
        colour = torch.lerp(image.float(), colour.float(), opacity).round().to(torch.uint8)
    return torch.where(mask, colour, image)


def hatch(size, width):
    """Diagonal lines, white beside black: two bool masks of `size` (H, W)."""
    place = (torch.arange(size[0])[:, None] + torch.arange(size[1])) % (8 * width)
    return place < width, (place >= width) & (place < 2 * width)


def draw_seg(image, value, class_names):
    """Tint a mask and outline it on the inside; hatch what is unknown (255 in a target).

    Args:
        value: logits float (1, h, w) or a target uint8 (1, h, w), of any size.
    """
    size, width = image.shape[1:], line_width(image)
    mask, unknown = mask_of(value, size)
    image = paint(paint(image, mask, BLUE, TINT), border(mask, width), BLUE)
    if unknown.any():
        white, black = hatch(size, width)
        image = paint(paint(image, unknown & white, WHITE), unknown & black, BLACK)
    return image, ""


def draw_bbox(image, value, class_names):
    """Draw a box (4,) xyxy in [0, 1], cut to the frame, with a dark halo; say if it is NaN."""
    if not value.isfinite().all():
        return image, "box unknown"
    from torchvision.utils import draw_bounding_boxes  # takes seconds to import

    width, size = line_width(image), torch.tensor(image.shape[:0:-1]).repeat(2)  # W, H, W, H
    corners = (value.float().clamp(0, 1) * size).round().view(2, 2)
    top_left = torch.minimum(corners.amin(0), size[:2] - 1)
    box = torch.cat([top_left, torch.maximum(top_left, corners.amax(0) - 1)])  # both corners inside
    halo = box + width * torch.tensor([-1, -1, 1, 1])
    image = draw_bounding_boxes(image, halo[None], colors=BLACK, width=3 * width)
    return draw_bounding_boxes(image, box[None], colors=ORANGE, width=width), ""


def draw_bin(image, value, class_names):
    """The class in words: of a target in {0, 1, -1}, shape (), or of a logit, shape (1,)."""
    if value.ndim:
        label, probability = more_probable(value)
        return image, f"{class_names[label]}, probability {probability:.2f}"
    return image, class_names[int(value)] if value >= 0 else "class unknown"


def more_probable(logit):
    """The more probable class under a logit (1,), and its probability."""
    probability = logit.sigmoid().item()  # of class 1
    return int(probability > 0.5), max(probability, 1 - probability)


def describe_seg(output, size, class_names):
    """Logits (1, h, w) -> the mask, uint8 (height, width), 255 on the animal, and its area."""
    mask, _ = mask_of(output, size[::-1])
    area = round(mask.float().mean().item(), 4)
    return {"mask": mask.numpy().astype("uint8") * 255, "mask_area": area}


def describe_bbox(output, size, class_names):
    """A box (4,) in [0, 1] -> xmin, ymin, xmax, ymax in pixels."""
    return {"box": [round(value, 1) for value in (output * torch.tensor(size).repeat(2)).tolist()]}


def describe_bin(output, size, class_names):
    """A logit (1,) -> the more probable class and its probability."""
    label, probability = more_probable(output)
    return {"class": class_names[label], "probability": round(probability, 4)}


def mirror_seg(logits):
    """Logits (B, 1, H, W) of an image flipped left to right, as of the image."""
    return logits.flip(3)


def mirror_bbox(boxes):
    """Boxes (B, 4) xyxy in [0, 1] of an image flipped left to right, as of the image."""
    xmin, ymin, xmax, ymax = boxes.unbind(1)
    return torch.stack([1 - xmax, ymin, 1 - xmin, ymax], dim=1)


SEG = Task(
    loss=seg_loss,
    metrics=seg_metrics,
    known=seg_known,
    primary="iou",
    means={"miou": ("iou", "background_iou")},
    draw=draw_seg,
    describe=describe_seg,
    mirror=mirror_seg,
    reference="baseline",
)
BBOX = Task(
    loss=bbox_loss,
    metrics=bbox_metrics,
    known=bbox_known,
    primary="iou",
    draw=draw_bbox,
    describe=describe_bbox,
    mirror=mirror_bbox,
    reference="bbox_only",
)
BIN = Task(
    loss=bin_loss,
    metrics=bin_metrics,
    known=bin_known,
    primary="accuracy",
    means={"balanced_accuracy": ("recall_0", "recall_1")},
    draw=draw_bin,
    describe=describe_bin,
    reference="bin_only",
)
