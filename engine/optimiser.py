"""The optimiser of every run: Muon for the matrices and kernels inside the network, AdamW for the
rest, under one one-cycle schedule."""

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

SMALLEST = 16  # rows and columns from which on orthogonalising a matrix says something
WARM_UP = 0.2  # share of the schedule in which the rate rises


class Optimiser:
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) and AdamW as one.

    Muon makes the update of a matrix orthogonal, so that all its directions learn alike; a kernel
    (O, I, h, w) counts as a matrix (O, I h w). Scaled to the usual size of AdamW's updates (Liu et
    al. 2025, arXiv:2502.16982), both share one learning rate. Biases, norms, and matrices with
    fewer than 16 rows or columns go to AdamW; what has one dimension has no weight decay.

    `freeze` stops all weights from a bad step on; it does so on the device, so that the host need
    not wait to learn of it.

    Args:
        parameters: of the network and the loss weighting.
        learning_rate: the peak of the one-cycle schedule (Smith 2018, arXiv:1803.09820).
        weight_decay: decoupled, as AdamW's.
        total_steps: length of the schedule; `step` may be called this often.
    """

    def __init__(self, parameters, learning_rate, weight_decay, total_steps):
        parameters = list(parameters)
        self.kernels = [
            p for p in parameters if p.ndim > 1 and min(len(p), p[0].numel()) >= SMALLEST
        ]
        chosen = {id(p) for p in self.kernels}
        others = [p for p in parameters if id(p) not in chosen]
        self.matrices = [nn.Parameter(_matrix(p.detach(), p)) for p in self.kernels]  # same memory
        groups = [{"params": self.matrices, "weight_decay": weight_decay}]  # may be empty
        muon = torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw")
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, fused=True)
        self.bad = torch.zeros((), device=parameters[0].device)
        adamw.found_inf, adamw.grad_scale = self.bad, None  # the fused step heeds them
        self.parts = {"muon": muon, "adamw": adamw}
        rise = WARM_UP if WARM_UP * total_steps != 1 else 0.0  # torch would divide by 0
        for name, part in (("muon_schedule", muon), ("adamw_schedule", adamw)):
            self.parts[name] = OneCycleLR(
                part, learning_rate, total_steps, pct_start=rise, cycle_momentum=part is adamw
            )

    def freeze(self, bad):
        """Keep the weights as they are from now on if `bad`, a scalar bool tensor, is true."""
        self.bad.copy_(torch.maximum(self.bad, bad.to(self.bad)))

    @torch.no_grad()
    def step(self):
        """Update the weights and the learning rates."""
        before = [matrix.clone() for matrix in self.matrices]
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else _matrix(kernel.grad, kernel)
        self.parts["muon"].step()
        frozen = self.bad > 0
        for matrix, old in zip(self.matrices, before, strict=True):
            torch.where(frozen, old, matrix, out=matrix)
        self.parts["adamw"].step()
        self.parts["muon_schedule"].step()
        self.parts["adamw_schedule"].step()

    def zero_grad(self):
        """Forget the gradients."""
        for part in (*self.kernels, *self.matrices):
            part.grad = None
        self.parts["adamw"].zero_grad()

    def state_dict(self):
        """What `load_state_dict` needs to go on at the same step."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state):
        """Go on where `state` was taken."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def _matrix(tensor, kernel):
    """(O, I, h, w) as (O, I h w) in the order of the kernel's memory, so that the kernel's matrix
    is a view of it; (O, I) as it is."""
    channels_last = kernel.ndim == 4 and not kernel.is_contiguous()
    return (tensor.permute(0, 2, 3, 1) if channels_last else tensor).flatten(1)
