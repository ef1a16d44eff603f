"""Loss weightings that read the gradients of the tasks."""

import itertools

import torch
import torch.nn.functional as F

from parts.weightings import FactorWeights


class GradientWeights(FactorWeights):
    """Factors from the inner products of the tasks' gradients at the features that they share.

    The weighted loss is differentiated as a whole, so the weights act on the heads too. A negative
    factor, which `imtl_g` and `aligned_mtl` can give, would make a head worse, so it becomes 0.

    Args:
        weights: {task: float}; the method sees the gradients of the losses times these weights.
        method: (K, K) fp64 -> (K,), a function of the next section or functools.partial of one.
    """

    needs_gradients = True

    def __init__(self, weights, method):
        super().__init__(weights)
        self.method = method

    def from_gradients(self, matrix, present):
        """Set and return the weights (K,) of this batch. A GPU waits once.

        Args:
            matrix: (K, K) inner products of the gradients of the unweighted losses, in the order
                of the weights.
            present: (K,), 0 for a task without a known target, which is left out and gets the
                weight 0. A known task with a gradient of 0 is left out too, but keeps its given
                weight, as all tasks do where the matrix is not finite.
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
# takes a mean over the tasks or weights that sum to 1, the factors are K times those. The three
# that solve a quadratic problem try every subset of the tasks and keep the best: K <= 8.


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
    arXiv:1810.04650); 0 where a gradient is 0.
    """
    matrix, masks = matrix / matrix.trace().clamp(min=1e-30), _subsets(len(matrix))[:-1]
    system = F.pad(_blocks(matrix, masks), (0, 1, 0, 1))  # M w + multiplier = 0, sum of w = 1
    system[:, :-1, -1] = system[:, -1, :-1] = masks
    points = torch.linalg.pinv(system, hermitian=True)[:, :-1, -1].clamp(min=0)
    points = points / points.sum(1, keepdim=True)
    return len(matrix) * points[_first_least(_squares(points, matrix))]


def cagrad(matrix, c=0.5):
    """The best step for the worst task within c times the length of the mean gradient around the
    mean gradient, 0 <= c < 1 (CAGrad; Liu et al. 2021, arXiv:2110.14048). The authors' code can
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
    """The sum of the gradients, each projected onto the directions that harm no task (UPGrad;
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
    """Gradients of equal length, the aim of GradNorm with alpha = 0 (Chen et al. 2018,
    arXiv:1711.02257); a gradient of 0 gets 0.
    """
    inverse = 1 / matrix.diagonal().sqrt()
    inverse = torch.where(inverse.isfinite(), inverse, 0.0)
    return len(matrix) * inverse / inverse.sum().clamp(min=1e-30)


def _cosines(matrix):
    """Inner products of the unit gradients, 0 for a gradient of 0, and their norms (K,), then 1.

    A ridge of 1e-6 keeps the rounding of fp32 from deciding between dependent gradients.
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
    """(N, ...) -> (...): the first index of the least value, up to rounding."""
    least = values.amin(0)
    return (values <= least + 1e-9 * least.abs() + 1e-15).int().argmax(0)
