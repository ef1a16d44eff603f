"""Uncertainty: a bootstrap over test images, Student's t over runs, Holm's correction.

An estimate is an array (1 + RESAMPLES,): the value itself, then its values on images drawn with
replacement. The draws are the same for all estimates on equally many images, so the difference of
two estimates is paired.
"""

import math
from functools import lru_cache

import numpy as np

RESAMPLES = 2000
FEWEST = 5  # images; with fewer, a bootstrap is meaningless
ERROR = 0.05  # 1 - the confidence of every interval
NONE = (math.nan, math.nan)  # limits that are not known


@lru_cache(maxsize=4)
def draws(count):
    """(1 + RESAMPLES, count) numbers of draws of each image; 1 in the first row."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return np.concatenate([np.ones((1, count)), drawn])


def estimate(found, keys=None):
    """The estimate over the images of all or some `keys`; NaN if nothing is known.

    Args:
        found: {key: (N, parts, 2)} numerators and denominators. The value is the mean over the
            parts that are defined; a single part is a ratio of sums.
    """
    table = np.concatenate([found[key] for key in sorted(found if keys is None else keys)])
    sums = np.tensordot(draws(len(table)), table, axes=1)  # (1 + RESAMPLES, parts, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.ma.masked_invalid(sums[..., 0] / sums[..., 1]).mean(-1).filled(np.nan)
    if len(table) < FEWEST:
        ratios[1:] = np.nan
    return ratios


def limits(found):
    """Lower and upper limit of the 95 % percentile interval of an estimate, or NONE."""
    known = found[1:][np.isfinite(found[1:])]
    return tuple(np.percentile(known, (50 * ERROR, 100 - 50 * ERROR))) if len(known) else NONE


def within(t, freedom):
    """P(|T| <= t) of Student's t with a whole number of degrees of freedom.

    The finite sums of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    odd, angle = freedom % 2, math.atan(t / math.sqrt(freedom))
    total, term = 0.0, math.sin(angle) * (math.cos(angle) if odd else 1)
    for i in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (i - 1) / i
    return 2 / math.pi * (angle + total) if odd else total


@lru_cache
def quantile(freedom):
    """The t within which Student's t lies with 95 % probability, by bisection."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < 1 - ERROR else (low, middle)
    return low


def over_runs(differences):
    """95 % interval of the mean of paired differences, by Student's t; NONE for fewer than two."""
    if len(differences) < 2:
        return NONE
    mean, half = np.mean(differences), quantile(len(differences) - 1) * _error(differences)
    return mean - half, mean + half


def p_value(found, differences):
    """The larger of two two-sided p-values of a difference; 1 if one is unknown.

    Over images: from the spread of the estimate `found` and a normal distribution. Over runs: from
    their `differences` and Student's t.
    """
    known = found[1:][np.isfinite(found[1:])]
    if not len(known) or len(differences) < 2:
        return 1.0
    images = _ratio(found[0], np.std(known))
    runs = _ratio(np.mean(differences), _error(differences))
    return max(math.erfc(images / math.sqrt(2)), 1 - within(runs, len(differences) - 1))


def _error(differences):
    """The standard error of their mean."""
    return np.std(differences, ddof=1) / math.sqrt(len(differences))


def _ratio(value, error):
    return abs(value) / error if error else (math.inf if value else 0.0)


def holm(p_values):
    """Which of several differences hold together (Holm, Scand. J. Statist. 6, 1979): bools."""
    holds, left = [False] * len(p_values), len(p_values)
    for place in sorted(range(left), key=p_values.__getitem__):
        if p_values[place] * left > ERROR:
            break
        holds[place], left = True, left - 1
    return holds
