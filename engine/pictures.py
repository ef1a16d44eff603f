"""The loss curve and the test picture. Colours are Okabe and Ito's, told apart by all readers."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from engine.artefacts import replacing

BLUE, ORANGE = "#0072B2", "#E69F00"


def draw_seg(axis, value, class_names):
    """Outline and tint a mask: logits or {0, 1} of (1, H, W)."""
    mask = (value[0] > 0).float().numpy()
    tint = torch.tensor(matplotlib.colors.to_rgb(BLUE)).expand(*mask.shape, 3).numpy()
    axis.imshow(tint, alpha=0.45 * mask)
    if mask.min() < mask.max():
        axis.contour(mask, levels=[0.5], colors=BLUE, linewidths=1.5)


def draw_bbox(axis, value, class_names):
    """Draw a box (4,) xyxy in [0, 1] of the axis's image; nothing where it is unknown."""
    if value.isnan().any():
        return
    height, width = axis.images[0].get_array().shape[:2]
    x0, y0, x1, y1 = (value * torch.tensor([width, height, width, height])).tolist()
    box = plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=ORANGE, linewidth=2)
    axis.add_patch(box)


def draw_bin(axis, value, class_names):
    """Write the class below the image: a target in {0, 1, -1}, shape (), or a logit, shape (1,)."""
    if value.ndim:
        probability = value.sigmoid().item()
        label = int(probability > 0.5)
        text = f"{class_names[label]}, probability {max(probability, 1 - probability):.2f}"
    else:
        text = class_names[int(value)] if value >= 0 else "class unknown"
    axis.set_xlabel(text, fontsize=11)


def save_test_picture(path, image, targets, outputs, metrics, tasks, class_names):
    """One sample: the image, the truth and the prediction, each task drawn as its script says.

    Args:
        image: uint8 (3, H, W).
        targets: {task: target} without a batch dimension.
        outputs: {task: output} without a batch dimension, but logits of scalars as (1,).
        metrics: {name: value} of this sample; those that end in "iou" go to the title.
    """
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.9), dpi=100, layout="constrained")
    for axis in axes:
        axis.imshow(image.permute(1, 2, 0).numpy())
        axis.set_xticks([])
        axis.set_yticks([])
    for name, task in tasks.items():
        task.draw(axes[1], targets[name], class_names)
        task.draw(axes[2], outputs[name], class_names)
    scores = [
        f"{name.replace('_', ' ').replace('iou', 'IoU')} {value:.2f}"
        for name, value in metrics.items()
        if name.split("_", 1)[1] == "iou"
    ]
    titles = ("image", "truth", "prediction: " + ", ".join(scores))
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=11)
    _save(figure, path)


def save_loss_picture(path, history, task):
    """Training and validation loss of one task over the epochs, and its validation IoU."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), dpi=100, layout="constrained")
    epochs = range(1, len(history["train"][f"{task}_loss"]) + 1)
    left.plot(epochs, history["train"][f"{task}_loss"], color=BLUE, label="training (augmented)")
    left.plot(epochs, history["val"][f"{task}_loss"], color=ORANGE, label="validation")
    left.set_ylabel(f"{task} loss")
    right.plot(epochs, history["val"][f"{task}_iou"], color=ORANGE, label="validation")
    right.set_ylabel(f"{task} IoU")
    for axis in (left, right):
        best = history["best_epoch"]
        axis.axvline(best, color="grey", linestyle=":", label=f"best epoch, {best}")
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    _save(figure, path)


def _save(figure, path):
    with replacing(path) as temporary:
        figure.savefig(temporary)
    plt.close(figure)
