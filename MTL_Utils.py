"""Losses, metrics, tasks and loss weighting: pure functions and small modules, no I/O.

Outputs and targets, for a batch of B (the kinds of target are those of parts/targets.py):

    kind                     output                         target                       unknown
    PixelClasses, 2 classes  logits (B, 1, H, W)            uint8 (B, 1, H, W)           255
    PixelClasses, K classes  logits (B, K, H, W)            uint8 (B, 1, H, W)           255
    PixelValues              (B, C, H, W)                   (B, C, H, W)                 NaN
    Box                      boxes (B, 4) xyxy in [0, 1]    (B, 4) xyxy in [0, 1]        NaN
    Label, 2 classes         logits (B,)                    (B,) in {0, 1}               -1
    Label, K classes         logits (B, K)                  int64 (B,) in 0 ... K - 1    -1
    Values, Derived          (B, C), or (B,) for one        (B, C)                       NaN

A loss function returns the loss of every sample, fp32 (B,): 0 and without gradient where nothing is
known. A metric function returns {name: (B, 2)}: numerator and denominator of every sample, fp64;
0 and 0 where nothing is known. A metric is the ratio of their sums over a split, so it does not
depend on the batch size. Unknown values are masked, not dropped, so that no shape depends on the
data and a GPU need not wait for the CPU.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from parts.targets import PETS, UNKNOWN, Target
from parts.weightings import (  # noqa: F401  offered here, beside the losses
    DynamicWeightAverage,
    FactorWeights,
    FixedWeights,
    InverseLossWeights,
    RandomWeights,
    UncertaintyWeights,
)


@dataclass(frozen=True)
class Task:
    """Everything about one task. The first task of a script chooses the best epoch.

    `draw`, `describe` and `mirror` default to those of the target's kind (parts/kind.py).
    """

    target: Target  # its kind: file, valid and unknown values, how augmentation moves it
    loss: Callable  # (output, target) -> fp32 (B,), finite and without gradient where unknown
    metrics: Callable  # (output, target) -> {metric: fp64 (B, 2)}, 0 and 0 where unknown
    primary: str  # the metric that chooses the best epoch and is shown first
    higher_is_better: bool = True  # of the primary metric
    means: Mapping = field(default_factory=dict)  # {metric: metrics that it is the mean of}
    lower_is_better: tuple = ()  # other metrics that are better when lower
    counted: tuple = ()  # metrics that count in delta MTL; only the primary one if empty
    reference: str | None = None  # NAME of the script that trains this task alone
    draw: Callable | None = None  # (image uint8 (3, H, W), value, names) -> (image, words)
    describe: Callable | None = None  # (output, (width, height), names) -> {name: value}
    mirror: Callable | None = None  # output of an image flipped left to right -> of the image

    def __post_init__(self):
        for name in ("draw", "describe", "mirror"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(self.target, name))

    def known(self, target):
        """Targets (B, ...) -> bool (B,): whether any part of each is known."""
        return self.target.known(target)

    def ratios(self, sums):
        """{metric: numerator / denominator} from {metric: (2,) sums}, and `means`; NaN for 0 / 0.

        A mean is taken over its defined metrics.
        """
        pairs = torch.stack(list(sums.values()))
        values = dict(zip(sums, (pairs[:, 0] / pairs[:, 1]).tolist(), strict=True))
        means = {}
        for name, parts in self.means.items():
            defined = [values[part] for part in parts if values[part] == values[part]]
            means[name] = fmean(defined) if defined else float("nan")
        return values | means


# ---------------------------------------------------------------------------------------- losses


def seg_loss(logits, target):
    """Binary cross-entropy plus soft Dice loss (Milletari et al. 2016, arXiv:1606.04797).

    Both cover the known pixels of a sample.

    Shape: logits (B, 1, H, W), target (B, 1, H, W) in {0, 1, 255} -> (B,).
    """
    logits, target = logits.flatten(1).float(), target.flatten(1)  # (B, H W)
    valid = (target != UNKNOWN).float()
    truth = target * valid
    entropy = F.binary_cross_entropy_with_logits(logits, truth, weight=valid, reduction="none")
    probability = logits.sigmoid() * valid
    overlap = 2 * (probability * truth).sum(1) + 1  # (B,); 1 keeps empty masks defined
    dice = overlap / (probability.sum(1) + truth.sum(1) + 1)
    return entropy.sum(1) / valid.sum(1).clamp(min=1) + 1 - dice


def bbox_loss(boxes, target):
    """DIoU loss (Zheng et al. 2020, arXiv:1911.08287) plus L1.

    Shape: boxes (B, 4), target (B, 4) xyxy in [0, 1] or NaN -> (B,).
    """
    boxes, valid = boxes.float(), ~target.isnan().any(1)
    target = torch.where(valid[:, None], target.float(), boxes.detach())  # a zero loss, no NaN
    each = 1 - distance_iou(boxes, target) + F.l1_loss(boxes, target, reduction="none").sum(1)
    return torch.where(valid, each, 0.0)


def distance_iou(boxes, others):
    """DIoU of each pair, as in torchvision's `distance_box_iou_loss`, for any boxes.

    That function selects overlapping boxes with a mask, so a GPU has to wait for their number.

    Shape: (B, 4) and (B, 4) xyxy -> (B,) in [-1, 1].
    """
    larger, smaller = torch.maximum(boxes, others), torch.minimum(boxes, others)  # (B, 4)
    shared = _area((smaller[:, 2:] - larger[:, :2]).clamp(min=0))
    union = _area(boxes[:, 2:] - boxes[:, :2]) + _area(others[:, 2:] - others[:, :2]) - shared
    diagonal = (larger[:, 2:] - smaller[:, :2]).square().sum(1)  # of the box around both
    apart = (boxes[:, :2] + boxes[:, 2:] - others[:, :2] - others[:, 2:]).square().sum(1) / 4
    return shared / (union + 1e-7) - apart / (diagonal + 1e-7)  # torchvision's epsilon


def _area(sides):
    """(B, 2) -> (B,), without prod, whose gradient makes a GPU wait."""
    return sides[:, 0] * sides[:, 1]


def bin_loss(logits, target):
    """Binary cross-entropy.

    Shape: logits (B,), target (B,) in {0, 1, -1} -> (B,).
    """
    valid = target >= 0
    truth = torch.where(valid, target.float(), 0.0)
    each = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    return torch.where(valid, each, 0.0)


def class_loss(logits, target):
    """Cross-entropy over K classes.

    Shape: logits (B, K), target int64 (B,) in {0, ..., K - 1, -1} -> (B,).
    """
    return F.cross_entropy(logits.float(), target, ignore_index=-1, reduction="none")


def pixel_class_loss(logits, target):
    """Mean cross-entropy over the known pixels of a sample, for K classes.

    Shape: logits (B, K, H, W), target uint8 (B, 1, H, W) in {0, ..., K - 1, 255} -> (B,).
    """
    labels = target[:, 0].long()  # (B, H, W)
    each = F.cross_entropy(logits.float(), labels, ignore_index=UNKNOWN, reduction="none")
    return each.sum((1, 2)) / (labels != UNKNOWN).sum((1, 2)).clamp(min=1)


def value_loss(output, target):
    """Mean absolute error over the known values of a sample.

    Shape: output and target (B, ...) with equally many values, NaN = unknown -> (B,).
    """
    target = target.reshape(len(target), -1)
    valid = ~target.isnan()
    output = output.float().reshape(target.shape)
    error = (output - torch.where(valid, target, output.detach())).abs()
    return error.sum(1) / valid.sum(1).clamp(min=1)


# --------------------------------------------------------------------------------------- metrics


def seg_metrics(logits, target):
    """Segmentation metrics over the known pixels at a probability threshold of 0.5.

    `iou`, `background_iou` (their mean is the two-class mIoU), `dice` and `pixel_accuracy` are
    pooled over pixels; `image_iou` is the mean foreground IoU per image (1 where truth and
    prediction are both empty).

    Shape: logits (B, 1, H, W), target (B, 1, H, W) in {0, 1, 255} -> {name: (B, 2)}.
    """
    target = target.flatten(1)  # (B, H W)
    valid = target != UNKNOWN
    predicted, truth = (logits.flatten(1) > 0) & valid, (target > 0) & valid
    true_positive = (predicted & truth).sum(1)
    either = (predicted | truth).sum(1)
    pixels = valid.sum(1)
    image_iou = torch.where(either > 0, true_positive / either.clamp(min=1), 1.0)
    return {
        "iou": _pairs(true_positive, either),
        "image_iou": _pairs(image_iou * (pixels > 0), pixels > 0),
        "background_iou": _pairs(pixels - either, pixels - true_positive),
        "dice": _pairs(2 * true_positive, either + true_positive),
        "pixel_accuracy": _pairs(pixels - either + true_positive, pixels),
    }


def bbox_metrics(boxes, target):
    """`iou`, the mean IoU, and `iou_above_half`, the share of IoU > 0.5, over the known boxes.

    Shape: boxes and target (B, 4) xyxy in [0, 1] -> {name: (B, 2)}.
    """
    valid = ~target.isnan().any(1)
    iou = box_iou(boxes.float(), torch.nan_to_num(target.float())).diagonal()  # (B,)
    return {
        "iou": _pairs(torch.where(valid, iou, 0.0), valid),
        "iou_above_half": _pairs(valid & (iou > 0.5), valid),
    }


def bin_metrics(logits, target):
    """`accuracy`, `recall_0` and `recall_1` over the known labels, at a threshold of 0.5.

    The recalls are the shares of class 0 and class 1 that are predicted correctly; their mean is
    the balanced accuracy.

    Shape: logits and target (B,) -> {name: (B, 2)}.
    """
    zero, one = target == 0, target == 1
    right = (logits > 0) == one
    return {
        "accuracy": _pairs(right & (zero | one), zero | one),
        "recall_0": _pairs(right & zero, zero),
        "recall_1": _pairs(right & one, one),
    }


def class_metrics(logits, target):
    """`accuracy` over the known labels.

    Shape: logits (B, K), target (B,) -> {name: (B, 2)}.
    """
    return {"accuracy": _pairs(logits.argmax(1) == target, target >= 0)}


def pixel_class_metrics(logits, target):
    """`iou_0` ... `iou_{K-1}`, the IoU of each class, and `pixel_accuracy`, over the known pixels.

    The mIoU is their mean over the classes that occur (`means` of a Task).

    Shape: logits (B, K, H, W), target (B, 1, H, W) in {0, ..., K - 1, 255} -> {name: (B, 2)}.
    """
    truth, predicted = target.flatten(1), logits.argmax(1).flatten(1)  # (B, H W)
    valid = truth != UNKNOWN
    found = {}
    for k in range(logits.shape[1]):
        one, other = (truth == k) & valid, (predicted == k) & valid
        found[f"iou_{k}"] = _pairs((one & other).sum(1), (one | other).sum(1))
    right = (truth == predicted) & valid
    return found | {"pixel_accuracy": _pairs(right.sum(1), valid.sum(1))}


def value_metrics(output, target):
    """`absolute_error`, the mean over all known values.

    Shape: output and target (B, ...) with equally many values, NaN = unknown -> {name: (B, 2)}.
    """
    target = target.reshape(len(target), -1)
    valid = ~target.isnan()
    error = (output.reshape(target.shape) - target).abs().double()
    return {"absolute_error": _pairs(torch.where(valid, error, 0.0).sum(1), valid.sum(1))}


def _pairs(numerator, denominator):
    return torch.stack([numerator.double(), denominator.double()], dim=1)


# ------------------------------------------------------------------------------- tasks of the pets

SEG = Task(
    PETS["seg"],
    seg_loss,
    seg_metrics,
    primary="iou",
    means={"miou": ("iou", "background_iou")},
    reference="baseline",
)
BBOX = Task(PETS["bbox"], bbox_loss, bbox_metrics, primary="iou", reference="bbox_only")
BIN = Task(
    PETS["bin"],
    bin_loss,
    bin_metrics,
    primary="accuracy",
    means={"balanced_accuracy": ("recall_0", "recall_1")},
    reference="bin_only",
)
