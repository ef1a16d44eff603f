"""The loss curve and the test picture. Colours are Okabe and Ito's, told apart by all readers."""

import math
import textwrap

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from engine.artefacts import replacing

BLUE, ORANGE = "#0072B2", "#E69F00"
HALO = [withStroke(linewidth=4, foreground="black")]  # keeps a line visible on any fur
WIDTH = 8.0  # inches; with fonts of 9 points readable when shown 800 pixels wide
DPI = 150


def draw_seg(axis, value, class_names):
    """Outline and tint a mask: logits or {0, 1} of (1, H, W)."""
    mask = (value[0] > 0).float().numpy()
    tint = torch.tensor(matplotlib.colors.to_rgb(BLUE)).expand(*mask.shape, 3).numpy()
    axis.imshow(tint, alpha=0.45 * mask)
    if mask.min() < mask.max():
        axis.contour(mask, levels=[0.5], colors=BLUE, linewidths=1.2)
    return ""


def draw_bbox(axis, value, class_names):
    """Draw a box (4,) xyxy in [0, 1] of the axis's image; where it is NaN, say so instead."""
    if value.isnan().any():
        return "box unknown"
    height, width = axis.images[0].get_array().shape[:2]
    x0, y0, x1, y1 = (value * torch.tensor([width, height, width, height]) - 0.5).tolist()
    box = plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=ORANGE, linewidth=2)
    box.set(path_effects=HALO, zorder=3)
    axis.add_patch(box)
    return ""


def draw_bin(axis, value, class_names):
    """The class in words: of a target in {0, 1, -1}, shape (), or of a logit, shape (1,)."""
    if value.ndim:
        probability = value.sigmoid().item()
        label = int(probability > 0.5)
        return f"{class_names[label]}, probability {max(probability, 1 - probability):.2f}"
    return class_names[int(value)] if value >= 0 else "class unknown"


def draw_sample(axis, image, values, tasks, class_names):
    """Show an image with what `values` say of it; the texts of the tasks are returned, joined.

    A draw function of a task gets (axis, value, class_names), draws, and returns what is to be said
    in words, or "". A task without a value is left out.

    Args:
        image: uint8 (3, H, W).
        values: {task: target or output} without a batch dimension, but logits of scalars as (1,).
    """
    axis.imshow(image.permute(1, 2, 0).numpy())
    axis.set_anchor("S")  # what room is left is for the title
    axis.set_xticks([])
    axis.set_yticks([])
    texts = [
        task.draw(axis, values[name], class_names) for name, task in tasks.items() if name in values
    ]
    axis.set(xlim=(-0.5, image.shape[2] - 0.5), ylim=(image.shape[1] - 0.5, -0.5))
    return ", ".join(filter(None, texts))


def ious(metrics):
    """'seg IoU 0.91, bbox IoU 0.83' of {name: value}; what is NaN, so unknown, is left out."""
    shown = (f"{name.removesuffix('_iou')} IoU {value:.2f}" for name, value in _ious(metrics))
    return ", ".join(shown)


def _ious(metrics):
    for name, value in metrics.items():
        if name.split("_", 1)[1] == "iou" and not math.isnan(value):
            yield name, value


def save_test_picture(path, image, targets, outputs, metrics, tasks, class_names):
    """One sample: the image, the truth and the prediction, each task drawn as its script says.

    Args:
        image: uint8 (3, H, W).
        targets: {task: target} without a batch dimension.
        outputs: {task: output} without a batch dimension, but logits of scalars as (1,).
        metrics: {name: value} of this sample; those that end in "iou" go to the title.
    """
    figure, axes = plt.subplots(1, 3, dpi=DPI, layout="constrained")
    draw_sample(axes[0], image, {}, tasks, class_names)
    truth = draw_sample(axes[1], image, targets, tasks, class_names)
    prediction = draw_sample(axes[2], image, outputs, tasks, class_names)
    titles = (
        ["image"],
        ["truth: " + truth if truth else "truth"],
        ["prediction: " + prediction if prediction else "prediction", ious(metrics)],
    )
    titles = ["\n".join(textwrap.fill(line, 40) for line in lines) for lines in titles]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
    rows = 1 + max(title.count("\n") for title in titles)
    panel = WIDTH / 3 * image.shape[1] / image.shape[2]
    figure.set_size_inches(WIDTH, panel + 0.2 + 0.16 * rows)
    _save(figure, path)


def save_loss_picture(path, history, task):
    """Training and validation loss of one task over the epochs, and its validation IoU."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.4), dpi=DPI, layout="constrained")
    losses, val_losses = (history[part][f"{task}_loss"] for part in ("train", "val"))
    curve = {"marker": "." if len(losses) < 20 else ""}  # a single epoch is no line
    epochs = range(1, len(losses) + 1)
    left.plot(epochs, losses, color=BLUE, linestyle="--", label="training, augmented", **curve)
    left.plot(epochs, val_losses, color=ORANGE, label="validation", **curve)
    right.plot(epochs, history["val"][f"{task}_iou"], color=ORANGE, label="validation", **curve)
    left.set(ylabel=f"{task} loss", title=f"{task} loss")
    right.set(ylabel=f"{task} IoU", title=f"{task} IoU of the validation split")
    _mark_best(left, history, "loss", task)
    _mark_best(right, history, "iou", task)
    _save(figure, path)


def _mark_best(axis, history, metric, task):
    """Mark the best epoch on a panel of the loss picture, and label what all panels share."""
    best = history["best_epoch"]
    value = history["val"][f"{task}_{metric}"][best - 1]
    axis.axvline(best, color="grey", linestyle=":")
    label = f"best epoch, {best}: {value:.3f}"
    axis.plot(best, value, "*", color="black", markersize=10, linestyle="", label=label)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend()


def _save(figure, path):
    with replacing(path) as temporary:
        figure.savefig(temporary)
    plt.close(figure)
