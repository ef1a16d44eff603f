"""matplotlib figures, written as PNG files. Import this late, as matplotlib takes long."""

import contextlib
import math
import warnings
from itertools import cycle
from statistics import fmean

import matplotlib.style
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from parts.files import replacing
from parts.fonts import families
from parts.paint import draw_all

DPI = 150
WIDTH = 8.0  # inches; fonts of 9 points are then readable at 800 pixels
SHARP = 450  # least side in pixels of an image that lines are drawn on


def draw_enlarged(image, answers, tasks, class_names):
    """`draw_all` on an image enlarged by a whole factor, so that lines look thin.

    Args:
        image: uint8 (3, H, W).
        answers: {task: target or output} without a batch dimension, but logits of scalars as (1,).
        class_names: {task: names of its classes}.
    """
    factor = max(1, math.ceil(SHARP / min(image.shape[1:])))
    image = F.interpolate(image[None], scale_factor=factor, mode="nearest")[0]
    return draw_all(image, answers, tasks, class_names)


def show(axis, picture, title, fontsize=9):
    """Show a picture uint8 (3, H, W) with a title on an axis; "$" in the title is no formula."""
    axis.imshow(picture.permute(1, 2, 0).numpy())
    axis.set_anchor("S")  # leaves the free space to the title
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=fontsize, parse_math=False, family=families(title))


@contextlib.contextmanager
def plain_style():
    """matplotlib's own settings, whatever the user's matplotlibrc says (LaTeX, fonts)."""
    with matplotlib.style.context("default"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # said by parts/fonts.py
        yield


def save(figure, path):
    """Write a figure as a PNG, as an atomic write; raises UserError."""
    with replacing(path) as temporary:
        figure.savefig(temporary)


def smoothed(values):
    """The mean around each value, over about a tenth of all of them; NaN are left out."""
    reach = len(values) // 20
    around = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    known = ([value for value in part if not math.isnan(value)] for part in around)
    return [fmean(part) if part else math.nan for part in known]


def save_conflict_picture(path, conflict):
    """Cosines and norms of the tasks' gradients at the shared features, by epoch and smoothed.

    Args:
        conflict: {"cosine": {(task, other): values}, "norm": {task: values}}, a value per epoch.
    """
    cosines = {" and ".join(pair): values for pair, values in conflict["cosine"].items()}
    panels = {"cosine": cosines, "norm": conflict["norm"]}
    with plain_style():
        figure = Figure(figsize=(WIDTH, 3.4), dpi=DPI, layout="constrained")
        for axis, (kind, series) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            for (label, values), dashes in zip(series.items(), cycle(("-", "--", "-.", ":"))):
                epochs = range(1, len(values) + 1)
                (line,) = axis.plot(epochs, smoothed(values), dashes, label=label)
                axis.plot(epochs, values, color=line.get_color(), alpha=0.2)
            axis.set(xlabel="epoch", title=f"{kind} of the tasks' gradients")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
            if series:
                axis.legend()
        figure.axes[0].axhline(0, color="grey", linestyle=":")
        figure.axes[1].set_yscale("log")
        save(figure, path)
