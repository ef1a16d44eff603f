"""Losses, metrics and loss weighting: pure functions and small modules, no I/O.

Outputs and targets of the three tasks, for a batch of B:

    task    output                             target                     unknown
    seg     logits (B, 1, H, W)                (B, 1, H, W) in {0, 1}     never
    bbox    boxes (B, 4) xyxy in [0, 1]        (B, 4) xyxy in [0, 1]      NaN row
    bin     logits (B,)                        (B,) in {0, 1}             -1

A target that is negative or NaN is unknown. A loss returns the mean over the known samples, as a
scalar; 0 where nothing is known. Unknown samples are masked, not dropped, so that no shape depends
on the data and a GPU need not wait for the CPU.

A metric function returns {name: (B, 2)}: numerator and denominator of every sample, fp64. `ratios`
of the sums over a split are the metrics, so they do not depend on the batch size.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_iou


class Task(NamedTuple):
    """What an experiment says of one task; the first task of a script is its target task.

    Attributes:
        loss: (output, target) -> scalar.
        metrics: (output, target) -> {name: (B, 2) numerators and denominators}.
        draw: how the test picture shows the task, a function of engine/pictures.py.
    """

    loss: Callable
    metrics: Callable
    draw: Callable


def known(target):
    """(B, ...) -> bool (B,): whether a sample's target is known, so neither NaN nor negative."""
    return (target.view(len(target), -1) >= 0).all(1)


# ---------------------------------------------------------------------------------------- losses


def seg_loss(logits, target):
    """Binary cross-entropy plus soft Dice loss (Milletari et al. 2016, arXiv:1606.04797).

    Shape: logits (B, 1, H, W), target (B, 1, H, W) in {0, 1} -> scalar.
    """
    logits, target = logits.float(), target.float()
    probability = logits.sigmoid()
    overlap = 2 * (probability * target).sum((1, 2, 3)) + 1  # (B,); 1 keeps empty masks defined
    dice = overlap / (probability.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, target) + (1 - dice).mean()


def bbox_loss(boxes, target):
    """DIoU loss (Zheng et al. 2020, arXiv:1911.08287) plus L1 over the known boxes.

    Shape: boxes (B, 4), target (B, 4) xyxy in [0, 1], NaN rows skipped -> scalar.
    """
    boxes, valid = boxes.float(), known(target)
    target = torch.where(valid[:, None], target.float(), boxes.detach())  # a zero loss, no NaN
    each = 1 - distance_iou(boxes, target) + F.l1_loss(boxes, target, reduction="none").sum(1)
    return _known_mean(each, valid)


def distance_iou(boxes, others):
    """DIoU of each pair, as in torchvision's `distance_box_iou_loss`, for any boxes.

    That function picks the boxes that overlap by a mask, and a GPU has to wait for their number.

    Shape: (B, 4) and (B, 4) xyxy -> (B,) in [-1, 1].
    """
    larger, smaller = torch.maximum(boxes, others), torch.minimum(boxes, others)  # (B, 4)
    shared = _area((smaller[:, 2:] - larger[:, :2]).clamp(min=0))
    union = _area(boxes[:, 2:] - boxes[:, :2]) + _area(others[:, 2:] - others[:, :2]) - shared
    diagonal = (larger[:, 2:] - smaller[:, :2]).square().sum(1)  # of the box around both
    apart = (boxes[:, :2] + boxes[:, 2:] - others[:, :2] - others[:, 2:]).square().sum(1) / 4
    return shared / (union + 1e-7) - apart / (diagonal + 1e-7)  # torchvision's epsilon


def _area(sides):
    """(B, 2) -> (B,); its gradient reads nothing back, as that of prod would."""
    return sides[:, 0] * sides[:, 1]


def bin_loss(logits, target):
    """Binary cross-entropy over the known labels.

    Shape: logits (B,), target (B,) in {0, 1}, -1 skipped -> scalar.
    """
    each = F.binary_cross_entropy_with_logits(
        logits.float(), target.float().clamp(min=0), reduction="none"
    )
    return _known_mean(each, known(target))


def _known_mean(each, valid):
    return torch.where(valid, each, 0.0).sum() / valid.sum().clamp(min=1)


# --------------------------------------------------------------------------------------- metrics


def seg_metrics(logits, target):
    """Segmentation metrics of a batch at a probability threshold of 0.5.

    `iou` foreground IoU pooled over pixels, `image_iou` mean foreground IoU per image (1 where
    truth and prediction are both empty), `background_iou` pooled over pixels (its mean with `iou`
    is the two-class mIoU), `dice` and `pixel_accuracy` pooled over pixels.

    Shape: logits and target (B, 1, H, W) -> {name: (B, 2)}.
    """
    predicted, truth = logits.flatten(1) > 0, target.flatten(1) > 0  # (B, H W)
    true_positive = (predicted & truth).sum(1)
    either = (predicted | truth).sum(1)
    pixels = torch.full_like(either, predicted.shape[1])
    right = pixels - either + true_positive
    image_iou = torch.where(either > 0, true_positive / either.clamp(min=1), 1.0)
    return {
        "iou": _pairs(true_positive, either),
        "image_iou": _pairs(image_iou, torch.ones_like(image_iou)),
        "background_iou": _pairs(pixels - either, pixels - true_positive),
        "dice": _pairs(2 * true_positive, either + true_positive),
        "pixel_accuracy": _pairs(right, pixels),
    }


def bbox_metrics(boxes, target):
    """`iou` mean IoU and `iou_above_half` share of IoU > 0.5, over the known boxes.

    Shape: boxes and target (B, 4) xyxy in [0, 1] -> {name: (B, 2)}.
    """
    valid = known(target)
    iou = box_iou(boxes.float(), torch.nan_to_num(target.float())).diagonal()  # (B,)
    return {
        "iou": _pairs(torch.where(valid, iou, 0.0), valid),
        "iou_above_half": _pairs(valid & (iou > 0.5), valid),
    }


def bin_metrics(logits, target):
    """Counts for accuracy and balanced accuracy over the known labels, at a threshold of 0.5.

    `recall_0` and `recall_1` are the shares of class 0 and class 1 that are recognised; their mean
    is the balanced accuracy.

    Shape: logits and target (B,) -> {name: (B, 2)}.
    """
    zero, one = target == 0, target == 1
    right = (logits > 0) == one
    return {
        "accuracy": _pairs(right & (zero | one), zero | one),
        "recall_0": _pairs(right & zero, zero),
        "recall_1": _pairs(right & one, one),
    }


MEANS = {  # metrics that are the mean of two pooled ones
    "seg_miou": ("seg_iou", "seg_background_iou"),
    "bin_balanced_accuracy": ("bin_recall_0", "bin_recall_1"),
}


def ratios(sums):
    """{name: numerator / denominator} of {name: (2,) sums}, and MEANS; NaN where unknown."""
    values = {name: (pair[0] / pair[1]).item() for name, pair in sums.items()}
    for name, (a, b) in MEANS.items():
        if a in values:
            values[name] = (values[a] + values[b]) / 2
    return values


def _pairs(numerator, denominator):
    return torch.stack([numerator.double(), denominator.double()], dim=1)


# -------------------------------------------------------------------------------- loss weighting


class FixedWeights(nn.Module):
    """Sum of the losses with weights that stay as they are.

    Every weighting takes {task: scalar loss} and returns the scalar to minimise, tells the current
    weights by `weights()`, and hears the epoch means of the unweighted losses by `epoch_end`.

    Args:
        weights: {task: float}.
    """

    def __init__(self, weights):
        super().__init__()
        self.fixed = dict(weights)

    def forward(self, losses):
        weights = self.weights()
        return sum(weights[task] * loss for task, loss in losses.items())

    def weights(self):
        return self.fixed

    def epoch_end(self, means):
        """Nothing to learn from the epoch."""


class UncertaintyWeights(FixedWeights):
    """Weights learned as homoscedastic uncertainty (Kendall et al. 2018, arXiv:1705.07115).

    Minimises sum of exp(-s) loss + s over the tasks, one learned s = log variance each, that starts
    where exp(-s) is the given weight. A regression's factor 1/2 is absorbed by the start.
    """

    def __init__(self, weights):
        super().__init__(weights)
        start = {task: nn.Parameter(-torch.tensor(float(w)).log()) for task, w in weights.items()}
        self.log_variance = nn.ParameterDict(start)

    def forward(self, losses):
        return super().forward(losses) + sum(self.log_variance[task] for task in losses)

    def weights(self):
        return {task: torch.exp(-s) for task, s in self.log_variance.items()}


class DynamicWeightAverage(FixedWeights):
    """Weights from the speed of each loss (DWA; Liu et al. 2019, arXiv:1803.10704).

    A task whose epoch mean fell less between the last two epochs weighs more: the given weights are
    multiplied by the number of tasks times softmax(mean[-1] / mean[-2] / temperature).
    """

    def __init__(self, weights, temperature=2.0):
        super().__init__(weights)
        self.temperature = temperature
        self.register_buffer("factors", torch.ones(len(weights)))
        self.register_buffer("previous", torch.full((len(weights),), torch.nan))

    def weights(self):
        return {task: w * f for (task, w), f in zip(self.fixed.items(), self.factors, strict=True)}

    def epoch_end(self, means):
        current = torch.tensor([means[task] for task in self.fixed]).to(self.previous)
        if not self.previous.isnan().any():
            speed = torch.where(self.previous > 0, current / self.previous, 1.0)  # 0: none known
            self.factors.copy_(len(speed) * torch.softmax(speed / self.temperature, 0))
        self.previous.copy_(current)
