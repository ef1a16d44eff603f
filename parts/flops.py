"""The work of a training step."""

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode


def gigaflop(step, images, targets):
    """GFLOP of one image, forward and backward, by torch's counter.

    Args:
        step: a TrainingStep; a copy of it trains.
        images, targets: a batch as the data set gives it.
    """
    step = copy.deepcopy(step).train()  # batch norm takes in the batch
    counts = torch.full((len(step.tasks),), float(len(images)), device=images.device)
    counter = FlopCounterMode(display=False)
    with counter:
        step(images.float(), targets, counts)[0].backward()
    return counter.get_total_flops() / len(images) / 1e9
