"""The base of all kinds of target.

A kind defines a target's file in the H5 layout, its valid and unknown values, the shape of a batch,
how augmentation moves it, and how it is drawn and described in JSON. B is the batch size, (H, W)
the size of the image in pixels.

In `draw` and `describe`, a `value` is a target or an output without its batch dimension, but a
scalar logit has the shape (1,). `names` are the names of the classes.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from parts.h5array import first_wrong


class View(NamedTuple):
    """What augmentation did to a batch.

    Attributes:
        forward: (B, 3, 3) affine maps of input to output, both in [-1, 1] of width and height.
        grid: (B, h, w, 2), the point (x, y) in [-1, 1] of the input for each pixel of the output.
    """

    forward: torch.Tensor
    grid: torch.Tensor

    def sample(self, values):
        """The nearest pixels of float values (B, C, H, W): (B, C, h, w), 0 outside the image."""
        return F.grid_sample(values, self.grid, mode="nearest", align_corners=False)

    def outside(self):
        """Bool (B, 1, h, w): whether a pixel of the output shows no part of the input."""
        return (self.grid.abs() > 1).any(-1)[:, None]

    def linear(self):
        """(B, 2, 2) maps of offsets (x, y) in pixels of the input to those of the output."""
        height, width = self.grid.shape[1:3]
        ratio = self.forward.new_tensor([[1.0, width / height], [height / width, 1.0]])
        return self.forward[:, :2, :2] * ratio


class Target:
    """The base of all kinds, with the defaults for a target that augmentation does not change.

    Attributes:
        file: name of the H5 file and of the dataset in it; None for a derived target.
        classes: number of classes, 0 if there are none.
        per_pixel: bytes in memory for each pixel of a sample; 0 for a target without pixels.
        stored: (outputs of one or more networks for a sample, (H, W)) -> the target on which they
            agree, as a file holds it, or None; None itself where no file holds such a target.
        fills: whether `draw` fills the image, which is then shown beside the others.
    """

    file = None
    classes = 0
    per_pixel = 0
    stored = None
    fills = False

    @property
    def default_names(self):
        """The names of the classes if the file has none."""
        return tuple(f"class {number}" for number in range(self.classes))

    def check_shape(self, array, images):
        """Check the shape of an H5Array against that of the images; raises DataError."""
        raise NotImplementedError

    def known(self, target):
        """Targets (B, ...) -> bool (B,): whether anything of them is known."""
        raise NotImplementedError

    def unknown(self, count, side):
        """The targets of `count` samples, all unknown."""
        raise NotImplementedError

    def planes(self, target, complete):
        """Float (B, P, H, W) to be resized and moved with the image, or None.

        Args:
            complete: whether no pixel of the whole split is unknown.
        """
        return None

    def moved(self, target, planes, view, complete):
        """The target after augmentation, from what `planes` gave, moved, and the View."""
        return target

    def likely_mistakes(self, dataset, name):
        """Yield a line for everything in a split that is valid but probably a mistake."""
        yield from ()

    def summary(self, dataset, name):
        """What a split holds, in words, for the report on a data folder."""
        return ""

    def draw(self, image, value, names):
        """An image uint8 (3, H, W) with the value drawn on it, and words or ""."""
        return image, ""

    def describe(self, output, size, names):
        """{name: value for JSON} of an output, for a picture of `size` (width, height).

        An array uint8 (height, width) is written as a picture, any other array as a .npy file.
        """
        return {}

    def mirror(self, output):
        """The output (B, ...) for images flipped left to right -> that for the images."""
        return output


class PixelTarget(Target):
    """A target with a value for every pixel, which may be too large for the memory."""

    def convert(self, array, values, start):
        """Values as stored in an H5Array -> (n, H, W) or (n, H, W, C) as kept, all checked.

        Args:
            start: number of the first sample; DataError names the first wrong one.
        """
        raise NotImplementedError

    def batch(self, kept):
        """(B, H, W) or (B, H, W, C) as kept -> the target, (B, C, H, W)."""
        return kept[:, None]

    def is_complete(self, kept):
        """Whether everything is known of values as kept, to the last pixel."""
        return True

    def accepts_all(self, dtype):
        """Whether every value of the stored dtype is valid, so that none needs a check."""
        return False

    def mirror(self, output):
        return output.flip(3)


class Images(PixelTarget):
    """The images themselves: uint8, (B, 3, H, W) in a batch."""

    file, per_pixel, dtype = "images", 3, torch.uint8

    def check_shape(self, array, images):
        fits = len(array.shape) == 4 and array.shape[3] == 3 and min(array.shape) > 0
        array.expect(fits, "(N, H, W, 3) with N, H and W above 0", array.shape)

    def convert(self, array, values, start):
        if not self.accepts_all(values.dtype):
            wrong = ~((values >= 0) & (values <= 255))  # NaN is wrong too
            if wrong.any():
                array.expect(False, "values 0-255", first_wrong(values, wrong, start))
        values = np.rint(values, casting="unsafe") if values.dtype.kind == "f" else values
        return values.astype(np.uint8, copy=False)

    def batch(self, kept):
        return kept.permute(0, 3, 1, 2)

    def accepts_all(self, dtype):
        return dtype in (np.uint8, np.bool_)
