"""The samples of each training step, the image side, and the seeds of all random numbers."""

import functools
import itertools
import math

import numpy as np
import torch

LEAST_KNOWN = 0.5  # share of a batch with a known target of the first task, if possible


def seeded(*numbers):
    """A CPU generator for one step of a run; also seeds torch's own, which dropout uses.

    Every step starts with this, so the position in a run determines all its random numbers.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def epoch_batches(known, useful, batch_size, seed, epoch):
    """The sample numbers of an epoch's batches, shuffled; an incomplete last batch is dropped.

    Samples without any known target are never drawn. If the first task's target is known for fewer
    than LEAST_KNOWN of the rest, those samples are drawn more often, to make up this share of every
    batch. The number of steps stays the same in both cases.

    Args:
        known: bool (N,), whether a sample's target of the first task is known.
        useful: bool (N,), whether its target of any task is known.
    """
    length, generator = len(known), seeded(seed, epoch)
    size = min(batch_size, length)
    steps = length // size
    order = torch.randperm(length, generator=generator)
    drawn, rare, others = (order[m[order]] for m in (useful, known, useful & ~known))
    if not 0 < len(rare) < LEAST_KNOWN * len(drawn):
        return _repeated(drawn, steps * size, generator).view(steps, size).tolist()
    quota = math.ceil(LEAST_KNOWN * size)  # in every batch
    mixed = torch.cat(
        [
            _repeated(rare, steps * quota, generator).view(steps, quota),
            _repeated(others, steps * (size - quota), generator).view(steps, size - quota),
        ],
        dim=1,
    )  # (steps, size)
    return mixed.tolist()


def _repeated(numbers, count, generator):
    """The first `count` of the numbers, which repeat in a new order if they are too few."""
    rounds = math.ceil(count / len(numbers))
    again = [torch.randperm(len(numbers), generator=generator) for _ in range(rounds - 1)]
    return torch.cat([numbers, *(numbers[places] for places in again)])[:count]


def training_side(sides, epoch, epochs, full, stride):
    """(h, w) in pixels of the training images in an epoch: progressive resizing.

    `sides` are shares of the side `full`, one for each equal part of the epochs; the last epoch
    always has the last one. h and w are the multiples of `stride` nearest to that share of `full`,
    with nearly its aspect ratio.
    """
    part = len(sides) - 1 if epoch == epochs else (epoch - 1) * len(sides) // epochs
    return _nearest_side(sides[part], tuple(full), stride)


@functools.cache
def _nearest_side(share, full, stride):
    wanted = math.log(share)
    height, width = (max(1, pixels // stride) for pixels in full)  # in units of the stride

    def distance(side):
        h, w = math.log(side[0] / height), math.log(side[1] / width)
        return (h - wanted) ** 2 + (w - wanted) ** 2 + 4 * (h - w) ** 2

    candidates = itertools.product(range(1, height + 1), range(1, width + 1))
    return tuple(stride * units for units in min(candidates, key=distance))
