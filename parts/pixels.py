"""Kinds of target with a value for every pixel: one of K classes, or numbers."""

from dataclasses import dataclass

import numpy as np
import torch

from parts.h5array import first_wrong
from parts.kind import PixelTarget
from parts.paint import BLACK, BLUE, PALETTE, border, dim, hatch, line_width, paint, resized

UNKNOWN = 255  # the value of a pixel whose class is unknown


def in_range(values, top):
    """Whether all values are from 0 to `top`; NaN is not."""
    return values.min() >= 0 and values.max() <= top


@dataclass(frozen=True)
class PixelClasses(PixelTarget):
    """One of K classes for every pixel: uint8 (B, 1, H, W) in 0 ... K - 1, 255 = unknown.

    The output is logits: (B, 1, H, W) of class 1 for two classes, else (B, K, H, W).

    Augmentation moves two classes by bilinear sampling: a pixel is unknown if at least half of
    what it shows is unknown, otherwise it gets the class of most of the known part. More classes
    are moved by nearest-pixel sampling. A mask without a known pixel stays without one.

    Args:
        file: holds (N, H, W, 1) or (N, H, W) of any real dtype; NaN is unknown too.
        classes: K, 2 to 254.
        names: of the classes, if the file has no attribute `class_names`.
        outside: the value outside the image under augmentation, a class or 255.
    """

    file: str
    classes: int = 2
    names: tuple = ()
    outside: int = 0

    per_pixel, dtype = 1, torch.uint8

    def __post_init__(self):
        if not 2 <= self.classes <= UNKNOWN - 1:
            raise ValueError(f"classes: expected 2-{UNKNOWN - 1}, found {self.classes}")

    @property
    def default_names(self):
        binary = ("background", "foreground") if self.classes == 2 else super().default_names
        return tuple(self.names) or binary

    def check_shape(self, array, images):
        fits = array.shape[:3] == images[:3] and array.shape[3:] in ((), (1,))
        array.expect(fits, f"one mask for each image, {(*images[:3], 1)}", array.shape)

    def convert(self, array, values, start):
        values = values.reshape(values.shape[:3])
        if self.accepts_all(values.dtype):
            return values.astype(np.uint8, copy=False)
        top, unknown = self.classes - 1, None
        if not in_range(values, top):
            unknown = np.isnan(values) | (values == UNKNOWN)
            values = np.where(unknown, values.dtype.type(0), values)
        rounded = np.rint(values, casting="unsafe") if values.dtype.kind == "f" else values
        if not in_range(values, top) or (rounded is not values and (rounded != values).any()):
            wrong = ~((values >= 0) & (values <= top)) | (rounded != values)
            expected = "0, 1 or 255" if top == 1 else f"0-{top} or 255"
            array.expect(False, expected, first_wrong(values, wrong, start))
        rounded = rounded.astype(np.uint8, copy=False)
        return rounded if unknown is None else np.where(unknown, np.uint8(UNKNOWN), rounded)

    def accepts_all(self, dtype):
        return dtype == np.bool_

    def is_complete(self, kept):
        return not (kept == UNKNOWN).any()

    def known(self, target):
        return (target.flatten(1) != UNKNOWN).any(1)

    def unknown(self, count, side):
        return torch.full((count, *side), UNKNOWN, dtype=torch.uint8)

    def planes(self, target, complete):
        if self.classes > 2:
            return None
        plane = target.float()
        if complete:
            return plane
        unknown = target == UNKNOWN
        # unknown pixels count half in the mask, so that the known ones beside them decide
        return torch.cat([plane.masked_fill_(unknown, 0.5), unknown.float()], dim=1)

    def moved(self, target, planes, view, complete):
        if self.classes > 2:
            found = view.sample(target.float()).to(torch.uint8)
        else:
            found = (planes[:, :1] > 0.5).to(torch.uint8)
            if not complete:
                found.masked_fill_(planes[:, 1:] >= 0.5, UNKNOWN)
        if self.outside:
            found.masked_fill_(view.outside(), self.outside)
        if not complete:
            found.masked_fill_(~self.known(target)[:, None, None, None], UNKNOWN)
        return found

    def counts(self, dataset, name):
        """(256,) the number of pixels with each value in a split."""
        return sum(np.bincount(part.ravel(), minlength=256) for part in dataset.slabs(name))

    def likely_mistakes(self, dataset, name):
        counts = self.counts(dataset, name)
        names, empty = dataset.class_names[name], np.flatnonzero(counts[: self.classes] == 0)
        if counts[: self.classes].any() and self.classes == 2 and not counts[1]:
            yield "expected foreground, found no pixel of value 1"
        elif counts[: self.classes].any() and self.classes > 2 and len(empty):
            yield f"expected all classes, found no pixel of '{names[empty[0]]}'"

    def summary(self, dataset, name):
        counts, names = self.counts(dataset, name), dataset.class_names[name]
        known = max(counts[: self.classes].sum(), 1)
        shares = (f"{names[k]} {counts[k] / known:.1%}" for k in range(1, self.classes))
        return f"{', '.join(shares)}, pixels unknown {counts[UNKNOWN] / counts.sum():.1%}, masks "

    def labels(self, value, size):
        """Logits or a target (C, h, w) as class numbers, uint8 (H, W) at `size` (H, W)."""
        value = resized(value, size)
        if not value.is_floating_point():
            return value[0]
        return (value[0] > 0 if len(value) == 1 else value.argmax(0)).to(torch.uint8)

    def stored(self, outputs, side):
        first, *others = (self.labels(output, side) for output in outputs)
        for labels in others:
            first[labels != first] = UNKNOWN
        return first.numpy()

    def draw(self, image, value, names):
        """Two classes: dim the background and outline the foreground; more: tint each class but
        the first. Unknown pixels are hatched."""
        labels, width = self.labels(value, image.shape[1:]), line_width(image)
        unknown = labels == UNKNOWN
        if self.classes == 2:
            image = dim(image, (labels == 1) | unknown)
            image = paint(image, border(labels == 1, width), BLUE)
        else:
            for number in range(1, self.classes):
                colour = PALETTE[(number - 1) % len(PALETTE)]
                image = paint(image, labels == number, colour, 0.5)
        return hatch(image, unknown), ""

    def describe(self, output, size, names):
        """The mask, 255 on the foreground or the class numbers, and the area of the classes."""
        labels = self.labels(output, size[::-1])
        if self.classes == 2:
            area = round((labels == 1).float().mean().item(), 4)
            return {"mask": labels.numpy() * np.uint8(255), "mask_area": area}
        shares = torch.bincount(labels.flatten().long(), minlength=self.classes) / labels.numel()
        areas = zip(names, shares.tolist(), strict=True)
        return {"mask": labels.numpy(), "mask_area": {name: round(a, 4) for name, a in areas}}


@dataclass(frozen=True)
class PixelValues(PixelTarget):
    """C numbers for every pixel, such as a depth: float32 (B, C, H, W), NaN = unknown.

    The output has the same shape. Augmentation takes the nearest pixel, so that the two sides of
    an edge are not mixed; outside the image, values are unknown.

    Args:
        file: holds (N, H, W, C), or (N, H, W) for one channel, of any real dtype, to be multiplied
            by the attribute `scale_factor` if there is one; NaN and the attribute `_FillValue` mean
            unknown (the CF conventions of netCDF).
        channels: C.
        move: (values (B, C, h, w), linear (B, 2, 2)) -> the values as seen after augmentation.
            `linear` maps offsets (x, y) in pixels before it to offsets after it: its determinant
            is s^2 for a zoom by s, and negative for a flip.
    """

    file: str
    channels: int = 1
    move: object = None

    dtype, fills = torch.float32, True

    @property
    def per_pixel(self):
        return 4 * self.channels

    def check_shape(self, array, images):
        shapes = [(*images[:3], self.channels), *([images[:3]] if self.channels == 1 else [])]
        array.expect(array.shape in shapes, f"{shapes[0]}", array.shape)

    def convert(self, array, values, start):
        values = values.reshape(*values.shape[:3], self.channels)
        with np.errstate(over="ignore"):
            found = values.astype(np.float32)
            if array.scale != 1:
                found *= np.float32(array.scale)
        if array.fill is not None:
            found[values == array.fill] = np.nan
        if np.isinf(found).any():
            wrong = first_wrong(values, np.isinf(found), start)
            array.expect(False, "numbers of 32 bits or NaN", wrong)
        return found

    def batch(self, kept):
        return kept.permute(0, 3, 1, 2)

    def is_complete(self, kept):
        return not kept.isnan().any()

    def known(self, target):
        return ~target.flatten(1).isnan().all(1)

    def unknown(self, count, side):
        return torch.full((count, *side, self.channels), torch.nan)

    def moved(self, target, planes, view, complete):
        found = view.sample(target)
        if self.move:
            found = self.move(found, view.linear())
        return found.masked_fill(view.outside(), torch.nan)

    def summary(self, dataset, name):
        parts = [part for part in dataset.slabs(name) if not np.isnan(part).all()]
        if not parts:
            return "values "
        low, high = min(map(np.nanmin, parts)), max(map(np.nanmax, parts))
        return f"values {low:.4g} to {high:.4g}, maps "

    def draw(self, image, value, names):
        """Grey from the smallest to the largest known value; three channels as RGB."""
        value = value.nan_to_num(torch.nan)  # makes infinities finite, keeps NaN
        value = resized(value.float(), image.shape[1:])
        unknown = value.isnan().any(0)
        low, high = value[:, ~unknown].aminmax() if not unknown.all() else (0.0, 1.0)
        shown = (255 * (value - low) / max(float(high - low), 1e-9)).nan_to_num(0)
        shown = shown[:3] if self.channels >= 3 else shown[:1].expand(3, -1, -1)
        words = f"{float(low):.3g} to {float(high):.3g}" if not unknown.all() else "unknown"
        return hatch(paint(shown.to(torch.uint8), unknown, BLACK), unknown), words

    def describe(self, output, size, names):
        """The values, float32 (height, width, C), and their mean."""
        values = resized(output.float(), size[::-1]).permute(1, 2, 0)
        return {"map": values.numpy(), "map_mean": round(values.mean().item(), 4)}
