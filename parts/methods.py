"""All loss weightings by name, for a script with a constant METHOD."""

from functools import partial

from parts.errors import SettingError
from parts.gradients import (
    GradientWeights,
    aligned_mtl,
    cagrad,
    equal_norms,
    imtl_g,
    mgda,
    pcgrad,
    upgrad,
)
from parts.weightings import (
    DynamicWeightAverage,
    FixedWeights,
    InverseLossWeights,
    RandomWeights,
    UncertaintyWeights,
)

WEIGHTINGS = {
    "fixed": FixedWeights,
    "uncertainty": UncertaintyWeights,
    "dwa": DynamicWeightAverage,
    "random": RandomWeights,
    "inverse_loss": InverseLossWeights,
    **{
        method.__name__: partial(GradientWeights, method=method)
        for method in (pcgrad, mgda, cagrad, upgrad, imtl_g, aligned_mtl, equal_norms)
    },
}


def choose(method, weights):
    """A new loss weighting.

    Args:
        method: a key of WEIGHTINGS.
        weights: {task: float}.

    Raises:
        SettingError: there is no such method, or it cannot start at one of the weights.
    """
    if method not in WEIGHTINGS:
        raise SettingError(f"method: expected one of {', '.join(WEIGHTINGS)}, found {method}")
    return WEIGHTINGS[method](weights)
