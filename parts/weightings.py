"""Loss weightings that read the losses; gradients.py has those that read gradients."""

import torch
from torch import nn

from parts.errors import SettingError


class FixedWeights(nn.Module):
    """Sum of the losses with constant weights.

    Every weighting takes {task: mean loss} and {task: 1. or 0., whether the batch has a known
    target}, scalar tensors, and returns the scalar to minimise. `weights()` returns the weights of
    the last batch, and `epoch_end` receives {task: mean of the unweighted losses over the known
    samples of the epoch}, NaN if there was none.

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

    Minimises the sum of exp(-s) loss + s over the tasks known in the batch, with a learned s = log
    variance for each. It starts where exp(-s) is the given weight, which absorbs a regression's
    factor 1/2.

    Raises:
        SettingError: a weight is not above 0.
    """

    def __init__(self, weights):
        super().__init__(weights)
        if not all(weight > 0 for weight in weights.values()):
            expected = "numbers above 0 with uncertainty weighting"
            raise SettingError(f"loss-weights: expected {expected}, found {self.fixed}")
        start = {task: nn.Parameter(-torch.tensor(float(w)).log()) for task, w in weights.items()}
        self.log_variance = nn.ParameterDict(start)

    def forward(self, losses, known):
        penalty = sum(self.log_variance[task] * known[task] for task in losses)
        return super().forward(losses, known) + penalty

    def weights(self):
        return {task: torch.exp(-s) for task, s in self.log_variance.items()}


class FactorWeights(FixedWeights):
    """The given weights times factors (K,), in their order, which a subclass sets."""

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

    They are the number of tasks times softmax(z), z standard normal; in the paper the weights sum
    to 1.
    """

    def batch_start(self, generator):
        """Draw the factors of the next batch."""
        z = torch.randn(len(self.factors), generator=generator)
        self.factors.copy_(len(z) * z.softmax(0))


class InverseLossWeights(FactorWeights):
    """Soft optimal uncertainty weighting (UW-SO; Kirchdorfer et al. 2024, arXiv:2408.07985).

    The factors are the number of known tasks times softmax(1 / loss / temperature) over them, with
    no gradient through the factors; in the paper they sum to 1. The temperature needs tuning.
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
