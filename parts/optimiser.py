"""The optimiser of every run: Muon for the matrices and kernels inside the network, AdamW for the
rest, under one one-cycle schedule."""

import torch
from torch.optim.lr_scheduler import OneCycleLR

from parts.precision import native_bf16

SMALLEST = 16  # least rows and columns of a matrix that is worth orthogonalising
WARM_UP = 0.2  # share of the schedule in which the learning rate rises
MOMENTUM = 0.95  # of Muon
POLYNOMIALS = (  # a x + b x^3 + c x^5, one after the other: see inverse_root
    (7.362528, -20.7434, 15.16055),
    (2.917538, -2.182405, 0.4755292),
    (2.04631, -1.429475, 0.3933524),
)


class Optimiser:
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) and AdamW as one.

    Muon orthogonalises the update of a matrix, so that it is equally large in all directions; a
    kernel (O, I, h, w) counts as a matrix (O, I h w). Scaled to the usual size of AdamW's updates
    (Liu et al. 2025, arXiv:2502.16982), both share one learning rate. Biases, norms, and matrices
    with fewer than 16 rows or columns go to AdamW; one-dimensional parameters have no weight decay.

    Args:
        parameters: {factor: parameters}, whose learning rates are multiplied by the factor.
        learning_rate: the peak of the one-cycle schedule (Smith 2018, arXiv:1803.09820).
        weight_decay: decoupled, as in AdamW.
        total_steps: length of the schedule, the largest number of calls of `step`.
    """

    def __init__(self, parameters, learning_rate, weight_decay, total_steps):
        groups, self.muons = [], []
        for factor, chosen in parameters.items():
            matrices, others = split_by_size(chosen)
            self.muons.append(Muon(matrices))
            for is_vector in (False, True):
                vectors = [p for p in others if (p.ndim <= 1) is is_vector]
                decay = 0.0 if is_vector else weight_decay
                groups.append({"params": vectors, "weight_decay": decay, "factor": factor})
        self.adamw = torch.optim.AdamW(groups, fused=True)
        rise = WARM_UP if WARM_UP * total_steps != 1 else 0.0  # torch would divide by 0
        peaks = [learning_rate * group["factor"] for group in groups]
        self.schedule = OneCycleLR(self.adamw, peaks, total_steps, pct_start=rise)
        self.peak = learning_rate

    def step(self):
        """Update the weights and the learning rates."""
        for muon, group in zip(self.muons, self.adamw.param_groups[::2], strict=True):
            muon.step(group["lr"], group["weight_decay"])
        self.adamw.step()
        self.schedule.step()

    def state_dict(self):
        """What `load_state_dict` needs to continue at the same step."""
        return {
            "momentum": [momentum for muon in self.muons for momentum in muon.momentum],
            "adamw": self.adamw.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state):
        """Continue where `state` was taken, with this optimiser's peak learning rate."""
        momenta = [momentum for muon in self.muons for momentum in muon.momentum]
        for mine, saved in zip(momenta, state["momentum"], strict=True):
            mine.copy_(saved)
        self.adamw.load_state_dict(state["adamw"])
        self.schedule.load_state_dict(state["schedule"])
        for group in self.adamw.param_groups:
            # exactly 1 for the same rate; a part that does not learn has rates of 0
            ratio = self.peak * group["factor"] / (group["max_lr"] or 1)
            for name in ("lr", "initial_lr", "max_lr", "min_lr"):
                group[name] *= ratio


def split_by_size(parameters):
    """The parameters that Muon takes, and the others."""
    parameters = list(parameters)
    is_matrix = [p.ndim > 1 and min(len(p), p[0].numel()) >= SMALLEST for p in parameters]
    matrices = [p for p, chosen in zip(parameters, is_matrix, strict=True) if chosen]
    return matrices, [p for p, chosen in zip(parameters, is_matrix, strict=True) if not chosen]


class Muon:
    """Muon with Nesterov momentum and few kernel launches on a GPU.

    The Gram matrix of an update, rows by rows, is small. The iterations multiply only Gram
    matrices, stacked for all updates with the same number of rows; the long side takes part only at
    the beginning and the end ("Gram Newton-Schulz",
    https://dao-lab.ai/blog/2026/gram-newton-schulz). All products are in bf16 if the hardware has
    it, else in fp32.

    Args:
        kernels: parameters (O, I, h, w) or (O, I).
    """

    def __init__(self, kernels):
        self.kernels = kernels
        self.matrices = [_matrix(kernel.detach(), kernel) for kernel in kernels]  # same memory
        self.momentum = [torch.zeros_like(matrix) for matrix in self.matrices]

    @torch.no_grad()
    def step(self, rate, decay):
        """Update the kernels that have a gradient.

        The gradients are overwritten, because new memory for the updates would take longer.
        """
        places = [i for i, kernel in enumerate(self.kernels) if kernel.grad is not None]
        if not places:
            return
        matrices = [self.matrices[i] for i in places]
        momentum = [self.momentum[i] for i in places]
        updates = [_matrix(self.kernels[i].grad, self.kernels[i]) for i in places]
        torch._foreach_lerp_(momentum, updates, 1 - MOMENTUM)
        torch._foreach_lerp_(updates, momentum, MOMENTUM)
        torch._foreach_mul_(matrices, 1 - rate * decay)
        dtype = torch.bfloat16 if native_bf16(matrices[0].device) else torch.float32
        for rows in sorted({len(matrix) for matrix in matrices}):
            alike = [pair for pair in zip(matrices, updates, strict=True) if len(pair[0]) == rows]
            rounded = [update.to(dtype) for _, update in alike]
            roots = inverse_root(torch.stack([update @ update.mT for update in rounded]))
            for (matrix, _), update, root in zip(alike, rounded, roots, strict=True):
                size = 0.2 * matrix.shape[1] ** 0.5  # root mean square 0.2, as AdamW's updates
                matrix.add_(root @ update, alpha=-rate * size)


def inverse_root(gram):
    """Stacked Gram matrices X X^T (k, m, m) -> R (k, m, m) with R X almost orthogonal.

    X is divided by the root of the norm of X X^T, a tighter bound on the largest singular value
    than the norm of X (Grishina et al. 2025, arXiv:2506.10935). Singular values that are then above
    0.03 become 0.96 to 1.04; smaller ones grow up to 44-fold. The three polynomials are those of
    Polar Express (Amsel et al. 2025, arXiv:2505.16932, theorem 4.1) for degree 5 and this range. A
    higher degree, with larger coefficients, or a wider range would not survive rounding to bf16.
    """
    size = torch.linalg.matrix_norm(gram, keepdim=True, dtype=torch.float32).clamp(min=1e-14)
    gram, factor, root = (gram / size).to(gram.dtype), None, None
    for a, b, c in POLYNOMIALS:
        if factor is not None:
            gram = gram @ factor @ factor  # of X after the polynomials so far
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        root = factor if root is None else factor @ root
    return (root * size.rsqrt()).to(gram.dtype)


def _matrix(tensor, kernel):
    """(O, I, h, w) as (O, I h w) in the order of the kernel's memory, so that the kernel's matrix
    is a view of it; (O, I) as it is; transposed where that has fewer rows."""
    channels_last = kernel.ndim == 4 and not kernel.is_contiguous()
    matrix = (tensor.permute(0, 2, 3, 1) if channels_last else tensor).flatten(1)
    return matrix if len(matrix) <= matrix.shape[1] else matrix.mT
