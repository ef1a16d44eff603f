"""All kinds of target; those without a value per pixel are defined here.

    PixelClasses   one of K classes for every pixel      PixelValues   numbers for every pixel
    Box            one box                               Label         one of K classes
    Values         a vector                              Derived       computed from other targets

`PETS` are the targets of the pets, by the names of their tasks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import box_iou

from parts.errors import UserError
from parts.h5array import first_wrong
from parts.kind import Images, PixelTarget, Target, View
from parts.paint import draw_box
from parts.pixels import UNKNOWN, PixelClasses, PixelValues

__all__ = [
    "PETS",
    "UNKNOWN",
    "Box",
    "Derived",
    "Images",
    "Label",
    "PixelClasses",
    "PixelTarget",
    "PixelValues",
    "Target",
    "Values",
    "View",
    "with_sources",
]

BOX_TOLERANCE = 1e-3  # pixels by which rounding may push a box out of the image
AGREEING = 0.8  # least IoU of two boxes that are taken for the same
LEAST_VISIBLE = 0.7  # share of a box that augmentation must leave in the image


@dataclass(frozen=True)
class Box(Target):
    """One box: float32 (B, 4) xmin, ymin, xmax, ymax in [0, 1] of width and height, NaN = unknown.

    The output has the same shape. Augmentation maps the inscribed ellipse, which is closer to a
    head than the corners and does not grow with every rotation. A box with less than 0.7 of its
    area left in the image becomes unknown; any other is cropped to the image.

    Args:
        file: holds (N, 4) in pixels; a row of NaN = no box known.
    """

    file: str

    def check_shape(self, array, images):
        array.expect(array.shape == (images[0], 4), f"({images[0]}, 4)", array.shape)

    def read(self, array, side):
        """(N, 4) float32 as in a batch, from a file of pixels; raises DataError."""
        pixels = array.values()
        (height, width), known = side, ~np.isnan(pixels).all(axis=1)
        inside = (pixels[:, :2] >= -BOX_TOLERANCE).all(axis=1)
        inside &= (pixels[:, 2:] <= np.array([width, height]) + BOX_TOLERANCE).all(axis=1)
        boxes = np.clip(pixels / [width, height, width, height], 0, 1).astype(np.float32)
        wrong = known & ~(inside & (boxes[:, :2] < boxes[:, 2:]).all(axis=1))
        if wrong.any():
            row = int(wrong.argmax())
            expected = f"xmin < xmax and ymin < ymax inside {width} x {height}, or four NaN"
            array.expect(False, expected, f"{pixels[row].tolist()} in sample {row}")
        return torch.from_numpy(boxes)

    def known(self, target):
        return ~target.isnan().any(1)

    def unknown(self, count, side):
        return torch.full((count, 4), torch.nan)

    def moved(self, target, planes, view, complete):
        return move_boxes(target, view.forward)

    def likely_mistakes(self, dataset, name):
        width_height = torch.tensor(dataset.side * 2).flip(0)
        known = dataset.kept(name)[dataset.known[name]].cpu() * width_height
        if not len(known):
            yield "expected boxes, found no known one"
        elif known.max() <= 1:
            yield "expected boxes in pixels, found none beyond 1"

    def summary(self, dataset, name):
        boxes = dataset.kept(name)[dataset.known[name]]
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1).mean() if len(boxes) else 0
        return f"mean area {area:.1%}, "

    def draw(self, image, value, names):
        if not value.isfinite().all():
            return image, "box unknown"
        return draw_box(image, value), ""

    def describe(self, output, size, names):
        """xmin, ymin, xmax, ymax in pixels of the picture."""
        corners = (output * torch.tensor(size).repeat(2)).tolist()
        return {"box": [round(value, 1) for value in corners]}

    def stored(self, outputs, side):
        boxes, (height, width) = torch.stack(outputs), side
        if box_iou(boxes, boxes).min() < AGREEING:
            return None
        return (boxes.mean(0) * torch.tensor([width, height, width, height])).numpy()

    def mirror(self, output):
        xmin, ymin, xmax, ymax = output.unbind(1)
        return torch.stack([1 - xmax, ymin, 1 - xmin, ymax], dim=1)


@dataclass(frozen=True)
class Label(Target):
    """One of K classes, -1 = unknown: float32 (B,) in {0, 1} for two classes, else int64 (B,).

    The output is logits: (B,) of class 1 for two classes, else (B, K).

    Args:
        file: holds (N, 1) or (N,) whole numbers from 0; NaN or -1 = unknown.
        classes: K, 2 or more.
    """

    file: str
    classes: int = 2

    def __post_init__(self):
        if self.classes < 2:
            raise ValueError(f"classes: expected two or more, found {self.classes}")

    def check_shape(self, array, images):
        check_column(array, images, 1)

    def read(self, array, side):
        """(N,) as in a batch; raises DataError."""
        labels = array.values().reshape(-1)
        labels[np.isnan(labels)] = -1
        wrong = ~np.isin(labels, np.arange(-1, self.classes))
        if wrong.any():
            binary = "0, 1, -1 or NaN"
            expected = binary if self.classes == 2 else f"0-{self.classes - 1}, -1 or NaN"
            array.expect(False, expected, first_wrong(labels, wrong, 0))
        return torch.from_numpy(labels.astype(np.float32 if self.classes == 2 else np.int64))

    def known(self, target):
        return target >= 0

    def unknown(self, count, side):
        return torch.full((count,), -1, dtype=torch.float32 if self.classes == 2 else torch.int64)

    def counts(self, dataset, name):
        """The number of samples of each class in a split, a list of K."""
        labels = dataset.kept(name)[dataset.known[name]].long()
        return torch.bincount(labels, minlength=self.classes).tolist()

    def likely_mistakes(self, dataset, name):
        counts, names = self.counts(dataset, name), dataset.class_names[name]
        if sum(count > 0 for count in counts) == 1:
            found = names[max(range(self.classes), key=counts.__getitem__)]
            expected = "both" if self.classes == 2 else "several"
            yield f"expected {expected} classes, found only '{found}'"

    def summary(self, dataset, name):
        counts, names = self.counts(dataset, name), dataset.class_names[name]
        if self.classes > 9:
            return f"{sum(count > 0 for count in counts)} of {self.classes} classes, "
        return "".join(f"{n} {names[k]}, " for k, n in enumerate(counts))

    def most_probable(self, output):
        """The most probable class under logits (1,) or (K,), and its probability."""
        if self.classes > 2:
            probability, number = output.softmax(0).max(0)
            return int(number), probability.item()
        one = output.sigmoid().item()
        return int(one > 0.5), max(one, 1 - one)

    def draw(self, image, value, names):
        """The class in words: of a target, shape (), or of logits."""
        if value.ndim:
            number, probability = self.most_probable(value)
            return image, f"{names[number]}, probability {as_probability(probability)}"
        return image, names[int(value)] if value >= 0 else "class unknown"

    def describe(self, output, size, names):
        """The most probable class and its probability."""
        number, probability = self.most_probable(output)
        probability = min(round(probability, 4), 0.9999)  # no rounding makes it certain
        return {"class": names[number], "probability": probability}

    def stored(self, outputs, side):
        numbers = {self.most_probable(output)[0] for output in outputs}
        return np.array(numbers.pop()) if len(numbers) == 1 else None


@dataclass(frozen=True)
class Values(Target):
    """A vector that augmentation does not change: float32 (B, size), NaN = unknown.

    The output has the same shape, or (B,) for one value.

    Args:
        file: holds (N, size), or (N,) for one value.
        size: of the vector.
    """

    file: str
    size: int = 1

    def check_shape(self, array, images):
        check_column(array, images, self.size)

    def read(self, array, side):
        """(N, size) as in a batch; raises DataError."""
        stored = array.values().reshape(-1, self.size)
        with np.errstate(over="ignore"):
            values = stored.astype(np.float32)
        if np.isinf(values).any():
            expected = "numbers of 32 bits or NaN"
            array.expect(False, expected, first_wrong(stored, np.isinf(values), 0))
        return torch.from_numpy(values)

    def known(self, target):
        return ~target.reshape(len(target), -1).isnan().all(1)

    def unknown(self, count, side):
        return torch.full((count, self.size), torch.nan)

    def summary(self, dataset, name):
        values = dataset.kept(name)
        known = values[~values.isnan()]
        return f"values {known.min():.4g} to {known.max():.4g}, " if len(known) else ""

    def draw(self, image, value, names):
        return image, " ".join(
            "unknown" if v != v else f"{v:.3g}" for v in value.flatten().tolist()
        )

    def describe(self, output, size, names):
        """The value, or a list of them."""
        values = [round(value, 4) for value in output.flatten().tolist()]
        return {"value": values[0] if len(values) == 1 else values}


class Derived(Values):
    """A target computed from others after augmentation: float (B,) or (B, C), NaN = unknown.

    Args:
        function: (batch of each source, in their order) -> the target.
        sources: the kinds of target that it is computed from, by name; derived ones too. A source
            that is also a task of the script has that task's name and target.
    """

    def __init__(self, function: Callable, **sources):
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "sources", sources)
        super().__init__(file=None)

    def derive(self, targets):
        """The target, from a batch {name: target} of all targets that are not derived."""
        values = (
            kind.derive(targets) if isinstance(kind, Derived) else targets[name]
            for name, kind in self.sources.items()
        )
        return self.function(*values)

    def summary(self, dataset, name):
        return ""  # its sources have theirs

    def __eq__(self, other):
        return self is other

    __hash__ = object.__hash__


def with_sources(kinds):
    """{name: kind} with the sources of derived targets; UserError if two of a name differ."""
    found, waiting = dict(kinds), list(kinds.items())
    for name, kind in waiting:
        for source, other in getattr(kind, "sources", {}).items():
            if source not in found:
                waiting.append((source, other))
            if found.setdefault(source, other) != other:
                raise UserError(
                    f"TASKS: expected '{name}' to be computed from the target of '{source}', "
                    "found another target of that name"
                )
    return found


def check_column(array, images, size):
    """DataError unless an H5Array has `size` values for each image."""
    shapes = [(images[0], size), *([images[:1]] if size == 1 else [])]
    array.expect(array.shape in shapes, f"({images[0]}, {size})", array.shape)


def as_probability(value):
    """A probability with two digits, never rounded up to 1."""
    return f"{value:.2f}" if value < 0.995 else "0.99+"


def move_boxes(boxes, maps):
    """Boxes (B, 4) in [0, 1] under affine `maps` (B, 3, 3) of [-1, 1] coordinates.

    Returns (B, 4) boxes cropped to the image; NaN if less than LEAST_VISIBLE of the area is left.
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
    return torch.where((visible >= LEAST_VISIBLE)[:, None], cut, torch.nan)


PETS = {"seg": PixelClasses("masks"), "bbox": Box("bboxes"), "bin": Label("binary")}
