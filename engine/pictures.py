"""Curves and test picture of a run. Colours are Okabe and Ito's, for colour-blind readers too."""

import math
import textwrap

from matplotlib.ticker import MaxNLocator

from parts.figures import DPI, WIDTH, Figure, draw_enlarged, plain_style, save, show
from parts.paint import BLUE, ORANGE


def save_test_picture(path, image, targets, outputs, scores, tasks, class_names):
    """One sample: the image, the truth and the prediction, each task drawn in its own way.

    Args:
        image: uint8 (3, H, W).
        targets: {task: target} without a batch dimension.
        outputs: {task: output} without a batch dimension, but logits of scalars as (1,).
        scores: {name: value} of this sample for the title; NaN is unknown and left out.
    """
    known = (f"{n.replace('_', ' ')} {v:.2f}" for n, v in scores.items() if not math.isnan(v))
    panels = {"image": ({}, ""), "truth": (targets, ""), "prediction": (outputs, ", ".join(known))}
    with plain_style():
        figure = Figure(dpi=DPI, layout="constrained")
        pictures = [draw_enlarged(image, a, tasks, class_names) for a, _ in panels.values()]
        widths, rows = [picture.shape[2] for picture, _ in pictures], 1
        axes = figure.subplots(1, 3, width_ratios=widths)
        for axis, (picture, words), (title, (_, text)) in zip(
            axes, pictures, panels.items(), strict=True
        ):
            lines = [f"{title}: {words}" if words else title, text]
            columns = round(120 * picture.shape[2] / sum(widths))  # of the text
            title = "\n".join(textwrap.fill(line, columns) for line in lines).strip()
            rows = max(rows, 1 + title.count("\n"))
            show(axis, picture, title)
        panel = WIDTH * pictures[0][0].shape[1] / sum(widths)
        figure.set_size_inches(WIDTH, panel + 0.2 + 0.16 * rows)
        save(figure, path)


def save_loss_picture(path, history, name, task):
    """Training and validation loss of one task over the epochs, and its primary metric."""
    with plain_style():
        figure = Figure(figsize=(WIDTH, 3.4), dpi=DPI, layout="constrained")
        left, right = figure.subplots(1, 2)
        start = {key: [value] for key, value in history.get("start", {}).items()}
        first = 0 if start else 1  # epoch 0 is that of the starting weights
        losses = history["train"][f"{name}_loss"]
        val_losses, series = (
            start.get(key, []) + history["val"][key]
            for key in (f"{name}_loss", f"{name}_{task.primary}")
        )
        metric = task.primary.replace("_", " ")
        curve = {"marker": "." if len(losses) < 20 else ""}  # a single epoch draws no line
        epochs = range(1, len(losses) + 1)
        left.plot(epochs, losses, color=BLUE, linestyle="--", label="training, augmented", **curve)
        epochs = range(first, first + len(val_losses))
        left.plot(epochs, val_losses, color=ORANGE, label="validation", **curve)
        right.plot(epochs, series, color=ORANGE, label="validation", **curve)
        left.set(ylabel=f"{name} loss", title=f"{name} loss")
        right.set(ylabel=f"{name} {metric}", title=f"{name} {metric} of the validation split")
        best = history["best_epoch"]
        _mark_best(left, best, val_losses[best - first])
        _mark_best(right, best, series[best - first])
        save(figure, path)


def _mark_best(axis, best, value):
    """Mark the best epoch, with its value, on a panel of the loss picture, and label the panel."""
    axis.axvline(best, color="grey", linestyle=":")
    label = f"best epoch, {best}: {value:.3f}"
    axis.plot(best, value, "*", color="black", markersize=10, linestyle="", label=label)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend()
