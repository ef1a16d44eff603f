"""Losses, metrics and loss weighting: pure functions and small modules, no I/O.

Outputs and targets of the tasks, for a batch of B:

    task     output                         target                          unknown
    seg      logits (B, 1, H, W)            uint8 (B, 1, H, W) in {0, 1}    255, for each pixel
    bbox     boxes (B, 4) xyxy in [0, 1]    (B, 4) xyxy in [0, 1]           NaN in the row
    bin      logits (B,)                    (B,) in {0, 1}                  -1
    class    logits (B, K)                  int64 (B,) in 0 ... K - 1       -1

A loss function returns the loss of every sample, fp32 (B,): 0 and without gradient where nothing is
known. A metric function returns {name: (B, 2)}: numerator and denominator of every sample, fp64;
0 and 0 where nothing is known. The ratios of their sums over a split are the metrics, so they do
not depend on the batch size. What is unknown is masked, not dropped, so that no shape depends on
the data and a GPU need not wait for the CPU.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

UNKNOWN = 255  # in a mask: a pixel that may be foreground or background


@dataclass(frozen=True)
class Task:
    """Everything about one task. The first task of a script chooses the best epoch.

    A `value` is a target or an output without its batch dimension, but the logit of a scalar is
    (1,). A uint8 array (height, width) that `describe` gives is written as a picture.
    """

    loss: Callable  # (output, target) -> fp32 (B,), finite and without gradient where unknown
    metrics: Callable  # (output, target) -> {metric: fp64 (B, 2)}, 0 and 0 where unknown
    known: Callable  # target -> bool (B,), whether anything of a sample's target is known
    primary: str  # the metric that chooses the best epoch and is shown first
    higher_is_better: bool = True
    means: Mapping = field(default_factory=dict)  # {metric: (a, b)}, the mean of two others
    # (image uint8 (3, H, W), value, class_names) -> (image uint8 (3, H, W), words)
    draw: Callable = lambda image, value, class_names: (image, "")
    # (value, (width, height), class_names) -> {name: what JSON can say}
    describe: Callable = lambda output, size, class_names: {}
    mirror: Callable = lambda output: output  # of an image flipped left to right -> of the image
    reference: str | None = None  # NAME of the script that trains this task alone

    def ratios(self, sums):
        """{metric: numerator / denominator} of {metric: (2,) sums}, and `means`; NaN for 0 / 0."""
        pairs = torch.stack(list(sums.values()))
        values = dict(zip(sums, (pairs[:, 0] / pairs[:, 1]).tolist(), strict=True))
        means = {name: (values[a] + values[b]) / 2 for name, (a, b) in self.means.items()}
        return values | means


# ---------------------------------------------------------------------------- what is known


def seg_known(target):
    """uint8 (B, 1, H, W) -> bool (B,): whether any pixel is known."""
    return (target.flatten(1) != UNKNOWN).any(1)


def bbox_known(target):
    """(B, 4) -> bool (B,): whether there is no NaN in the box."""
    return ~target.isnan().any(1)


def bin_known(target):
    """Labels (B,) -> bool (B,): whether they are not negative."""
    return target >= 0


class_known = bin_known


# ---------------------------------------------------------------------------------------- losses


def seg_loss(logits, target):
    """Binary cross-entropy plus soft Dice loss (Milletari et al. 2016, arXiv:1606.04797).

    Both are taken over the known pixels of a sample.

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
    boxes, valid = boxes.float(), bbox_known(target)
    target = torch.where(valid[:, None], target.float(), boxes.detach())  # a zero loss, no NaN
    each = 1 - distance_iou(boxes, target) + F.l1_loss(boxes, target, reduction="none").sum(1)
    return torch.where(valid, each, 0.0)


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
    """Binary cross-entropy.

    Shape: logits (B,), target (B,) in {0, 1, -1} -> (B,).
    """
    valid = bin_known(target)
    truth = torch.where(valid, target.float(), 0.0)
    each = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    return torch.where(valid, each, 0.0)


def class_loss(logits, target):
    """Cross-entropy over K classes.

    Shape: logits (B, K), target int64 (B,) in {0, ..., K - 1, -1} -> (B,).
    """
    return F.cross_entropy(logits.float(), target, ignore_index=-1, reduction="none")


# --------------------------------------------------------------------------------------- metrics


def seg_metrics(logits, target):
    """Segmentation metrics over the known pixels at a probability threshold of 0.5.

    `iou` foreground IoU pooled over pixels, `image_iou` mean foreground IoU per image (1 where
    truth and prediction are both empty), `background_iou` pooled over pixels (its mean with `iou`
    is the two-class mIoU), `dice` and `pixel_accuracy` pooled over pixels.

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
    """`iou` mean IoU and `iou_above_half` share of IoU > 0.5, over the known boxes.

    Shape: boxes and target (B, 4) xyxy in [0, 1] -> {name: (B, 2)}.
    """
    from torchvision.ops import box_iou  # takes seconds to import

    valid = bbox_known(target)
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


def class_metrics(logits, target):
    """`accuracy` over the known labels.

    Shape: logits (B, K), target (B,) -> {name: (B, 2)}.
    """
    return {"accuracy": _pairs(logits.argmax(1) == target, class_known(target))}


def _pairs(numerator, denominator):
    return torch.stack([numerator.double(), denominator.double()], dim=1)


# -------------------------------------------------------------------------------- loss weighting


class FixedWeights(nn.Module):
    """Sum of the losses with constant weights.

    Every weighting takes {task: mean loss} and {task: 1. or 0., whether anything of it is known in
    the batch}, scalar tensors, and returns the scalar to minimise. `weights()` returns the weights
    of the last batch, and `epoch_end` receives {task: mean of the unweighted losses over the known
    samples of the epoch}, NaN where there was none.

    Args:
        weights: {task: float}; all other weightings multiply them by factors that average 1.
    """

    needs_gradients = False  # whether `from_gradients` must be called before each `forward`

    def __init__(self, weights):
        super().__init__()
        self.fixed = dict(weights)

    def forward(self, losses, known):
        weights = self.weights()
        return sum(weights[task] * loss for task, loss in losses.items())

    def weights(self):
        return self.fixed

    def epoch_end(self, means):
        """Nothing to learn from the epoch."""


class UncertaintyWeights(FixedWeights):
    """Weights learned as homoscedastic uncertainty (Kendall et al. 2018, arXiv:1705.07115).

    Minimises sum of exp(-s) loss + s over the tasks known in the batch, one learned s = log
    variance each, that starts where exp(-s) is the given weight. A regression's factor 1/2 is
    absorbed by the start.
    """

    def __init__(self, weights):
        super().__init__(weights)
        start = {task: nn.Parameter(-torch.tensor(float(w)).log()) for task, w in weights.items()}
        self.log_variance = nn.ParameterDict(start)

    def forward(self, losses, known):
        penalty = sum(self.log_variance[task] * known[task] for task in losses)
        return super().forward(losses, known) + penalty

    def weights(self):
        return {task: torch.exp(-s) for task, s in self.log_variance.items()}


class FactorWeights(FixedWeights):
    """The given weights times factors (K,) that a subclass writes, in the order of the weights."""

    def __init__(self, weights):
        super().__init__(weights)
        self.register_buffer("factors", torch.ones(len(weights)))

    def weights(self):
        return {task: w * f for (task, w), f in zip(self.fixed.items(), self.factors, strict=True)}


class DynamicWeightAverage(FactorWeights):
    """Weights from how fast each loss falls (DWA; Liu et al. 2019, arXiv:1803.10704).

    A task whose epoch mean fell less between the last two epochs weighs more: the factors are the
    number of tasks times softmax(mean[-1] / mean[-2] / temperature). A task without a known target
    in an epoch keeps its factor and its last mean.
    """

    def __init__(self, weights, temperature=2.0):
        super().__init__(weights)
        self.temperature = temperature
        self.register_buffer("previous", torch.full((len(weights),), torch.nan))

    def epoch_end(self, means):
        current = torch.tensor([means[task] for task in self.fixed]).to(self.previous)
        speed = current / self.previous
        moving = speed.isfinite()
        share = torch.where(moving, speed / self.temperature, -torch.inf).softmax(0)
        total = (self.factors * moving).sum()
        self.factors.copy_(torch.where(moving, share * total, self.factors))
        self.previous.copy_(torch.where(current.isnan(), self.previous, current))


class RandomWeights(FactorWeights):
    """Random loss weighting (RLW; Lin et al. 2022, arXiv:2111.10603), new factors for every batch.

    They are the number of tasks times softmax(z), z standard normal; in the paper the weights add
    up to 1.
    """

    def batch_start(self, generator):
        """Draw the factors of the next batch."""
        z = torch.randn(len(self.factors), generator=generator)
        self.factors.copy_(len(z) * z.softmax(0))


class InverseLossWeights(FactorWeights):
    """Soft optimal uncertainty weighting (UW-SO; Kirchdorfer et al. 2024, arXiv:2408.07985).

    The factors are the number of known tasks times softmax(1 / loss / temperature) over them, with
    no gradient through the factors; in the paper they add up to 1. The temperature needs tuning.
    """

    def __init__(self, weights, temperature=1.0):
        super().__init__(weights)
        self.temperature = temperature

    def forward(self, losses, known):
        values = torch.stack([losses[task].detach() for task in self.fixed])
        present = torch.stack([known[task] for task in self.fixed])
        inverse = 1 / values.clamp(min=1e-6) / self.temperature
        share = torch.where(present > 0, inverse, -torch.inf).softmax(0)
        self.factors.copy_(torch.where(present > 0, share * present.sum(), 0.0))
        return super().forward(losses, known)


class GradientWeights(FactorWeights):
    """Factors from the inner products of the tasks' gradients at the features that they share.

    The weighted loss is differentiated as a whole, so the heads feel the weights too. A negative
    factor, which `imtl_g` and `aligned_mtl` can give, would make a head unlearn: it becomes 0.

    Args:
        weights: {task: float}; the method sees the gradients of the losses times these weights.
        method: (K, K) fp64 -> (K,), a function of the next section or functools.partial of one.
    """

    needs_gradients = True

    def __init__(self, weights, method):
        super().__init__(weights)
        self.method = method

    def from_gradients(self, matrix, present):
        """The weights (K,) of this batch, for `forward` and `weights` as well. A GPU waits once.

        Args:
            matrix: (K, K) inner products of the gradients of the unweighted losses, in the order
                of the weights.
            present: (K,), 0 for a task without a known target: it has no vote and the weight 0. A
                known task whose gradient is 0 has no vote either, and keeps the given weight, as
                all do where the matrix is not finite.
        """
        given = torch.tensor(list(self.fixed.values()), dtype=torch.float64)
        table = torch.cat([matrix, present[:, None]], dim=1).cpu().double()
        matrix, present = table[:, :-1] * given * given[:, None], table[:, -1] > 0
        votes, factors = present & (matrix.diagonal() != 0), present.double()
        matrix = matrix[votes][:, votes]
        if len(matrix) and matrix.isfinite().all():
            factors[votes] = self.method(matrix).clamp(min=0)
        self.factors.copy_(factors)
        return torch.stack(list(self.weights().values()))


# ---------------------------------------------------- factors from inner products of gradients
#
# Each function takes M (K, K), the inner products of K gradients, fp64 on the CPU, and returns the
# factors (K,). Orthogonal gradients of equal length get 1 each (1 + c from CAGrad): where a paper
# takes a mean over the tasks or weights that add up to 1, the factors are K times those. The three
# that solve a quadratic problem do so on every subset of the tasks and take the best: K <= 8.


def pcgrad(matrix):
    """Each gradient without its conflicts with the others, one after the other (PCGrad; Yu et al.
    2020, arXiv:2001.06782). The paper draws the order; this is the mean over all orders, K <= 6.
    """
    rows, total = matrix.tolist(), torch.zeros_like(matrix[0])
    for i in range(len(rows)):
        orders = list(itertools.permutations(j for j in range(len(rows)) if j != i))
        for order in orders:
            factors = [float(j == i) for j in range(len(rows))]
            for j in order:
                conflict = sum(a * b for a, b in zip(rows[j], factors, strict=True))
                factors[j] -= min(conflict, 0) / (rows[j][j] or 1)
            total += torch.tensor(factors, dtype=total.dtype) / len(orders)
    return total


def mgda(matrix):
    """The shortest convex combination (MGDA; Désidéri 2012; Sener and Koltun 2018,
    arXiv:1810.04650). It is 0 where a gradient is 0.
    """
    matrix, masks = matrix / matrix.trace().clamp(min=1e-30), _subsets(len(matrix))[:-1]
    system = F.pad(_blocks(matrix, masks), (0, 1, 0, 1))  # M w + multiplier = 0, sum of w = 1
    system[:, :-1, -1] = system[:, -1, :-1] = masks
    points = torch.linalg.pinv(system, hermitian=True)[:, :-1, -1].clamp(min=0)
    points = points / points.sum(1, keepdim=True)
    return len(matrix) * points[_first_least(_squares(points, matrix))]


def cagrad(matrix, c=0.5):
    """The step that is best for the worst task, at most c times the length of the mean gradient
    away from that, 0 <= c < 1 (CAGrad; Liu et al. 2021, arXiv:2110.14048). The authors' code can
    divide it by 1 + c^2. Where the paper divides by a length of 0, the step is the mean gradient.
    """
    weights = mgda(matrix)[None] / len(matrix)
    matrix, masks = matrix / matrix.trace().clamp(min=1e-30), _subsets(len(matrix))[:-1]
    mean, radius = matrix.mean(1), c * matrix.mean().clamp(min=0).sqrt()
    # the least of mean . w + radius |w|_M on a subset: M w ~ level - mean, level from a quadratic
    inverse = torch.linalg.pinv(_blocks(matrix, masks), hermitian=True)
    one, other = (inverse @ masks[:, :, None])[..., 0], inverse @ mean
    a, b, d = one.sum(1).clamp(min=1e-30), other.sum(1), other @ mean - radius.square()
    level = (b + (b.square() - a * d).clamp(min=0).sqrt()) / a
    points = (level[:, None] * one - other).clamp(min=0)
    points = torch.cat([points / points.sum(1, keepdim=True), weights])
    points = torch.where(points.isfinite(), points, weights)
    lengths = _squares(points, matrix).clamp(min=0).sqrt()
    best = _first_least(points @ mean + radius * lengths)
    away = torch.where(lengths[best] > 1e-4, radius / lengths[best], 0.0)
    return 1 + len(matrix) * away * points[best]


def upgrad(matrix):
    """Each gradient projected onto the directions that harm no task, and the sum of these (UPGrad;
    Quinton and Rey 2024, arXiv:2406.16232).
    """
    cosines, norms = _cosines(matrix)
    inverse = torch.linalg.pinv(_blocks(cosines, _subsets(len(matrix))), hermitian=True)
    added = (-inverse @ cosines).clamp(min=0).transpose(1, 2)  # (subset, gradient, what is added)
    points = torch.eye(len(matrix)).to(matrix) + added
    best = _first_least(_squares(points, cosines))  # (K,): the subset of each gradient
    return norms @ points[best, range(len(matrix))] / norms


def imtl_g(matrix):
    """Equal projections of the step on all unit gradients (IMTL-G; Liu et al., "Towards impartial
    multi-task learning", ICLR 2021); 0 where no combination of gradients has them.
    """
    cosines, norms = _cosines(matrix)
    factors = torch.linalg.pinv(cosines, hermitian=True).sum(1) / norms
    total, size = factors.sum(), factors.abs().sum()
    return len(matrix) * factors / total if total.abs() > 1e-6 * size else 0 * factors


def aligned_mtl(matrix):
    """The principal components of the gradients at the length of the shortest (Aligned-MTL;
    Senushkin et al. 2023, arXiv:2305.19000), without those that fp32 cannot tell from 0.
    """
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > values.max() * len(matrix) * torch.finfo(torch.float32).eps
    if not kept.any():
        return torch.ones_like(values)
    values, vectors = values[kept], vectors[:, kept]
    return vectors @ ((values.min() / values).sqrt() * vectors.sum(0))


def equal_norms(matrix):
    """Gradients of equal length, as GradNorm aims at with alpha = 0 (Chen et al. 2018,
    arXiv:1711.02257); a gradient of 0 gets 0.
    """
    inverse = 1 / matrix.diagonal().sqrt()
    inverse = torch.where(inverse.isfinite(), inverse, 0.0)
    return len(matrix) * inverse / inverse.sum().clamp(min=1e-30)


def _cosines(matrix):
    """Inner products of the unit gradients, 0 for a gradient of 0, and the norms (K,), 1 for it.

    A ridge of 1e-6 keeps the rounding of fp32 from deciding between gradients that are dependent.
    """
    norms = matrix.diagonal().sqrt()
    norms = torch.where(norms > 0, norms, 1.0)
    return matrix / norms / norms[:, None] * (1 + 1e-6 * torch.eye(len(matrix)).to(matrix)), norms


def _subsets(k):
    """(2^K, K) in {0, 1}, the largest subset first, so that equal gradients get equal factors."""
    masks = torch.tensor(list(itertools.product((1.0, 0.0), repeat=k)), dtype=torch.float64)
    return masks[masks.sum(1).argsort(descending=True, stable=True)]


def _blocks(matrix, masks):
    """(N, K, K): the matrix, with 0 outside each subset."""
    return matrix * masks[:, :, None] * masks[:, None]


def _squares(points, matrix):
    """(..., K) -> (...): squared length of these combinations of the gradients."""
    return ((points @ matrix) * points).sum(-1)


def _first_least(values):
    """(N, ...) -> (...): the first index of the least value, but for rounding."""
    least = values.amin(0)
    return (values <= least + 1e-9 * least.abs() + 1e-15).int().argmax(0)
