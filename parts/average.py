"""The average of the weights over training, which is validated, tested and saved."""

from itertools import chain

import torch
from torch.optim.swa_utils import AveragedModel


class WeightAverage(AveragedModel):
    """An exponential moving average of parameters and buffers; its window grows during the run.

    After n updates the next one keeps min(decay, (1 + n) / (10 + n)) of the average; the first one
    copies the weights. torch's own update reads its count from the device, so the host waits for a
    GPU in every step; this one counts on the host.

    Args:
        network: copied, not changed.
        decay: the largest share of the average that an update keeps.
    """

    def __init__(self, network, decay):
        super().__init__(network, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, network):
        """Update the average with the network's current weights."""
        count = int(self.n_averaged)  # on the CPU
        new = 1 - min(self.decay, (1 + count) / (10 + count)) if count else 1.0
        pairs = list(zip(_tensors(self.module), _tensors(network), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]  # of batch norms
        torch._foreach_lerp_(*map(list, zip(*floats, strict=True)), new)
        if counters:
            torch._foreach_copy_(*map(list, zip(*counters, strict=True)))
        self.n_averaged += 1


def _tensors(module):
    return chain(module.parameters(), module.buffers())
