"""The work of a training step."""

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward


def convolution_backward(gradient, image, weight, *rest, out_shape):
    """FLOP of the backward pass: those of the forward pass for each gradient that is asked for.

    torch's own formula takes a grouped convolution's weight gradient for that of a full one.
    """
    transposed, output_mask = rest[4], rest[-1]
    forward = conv_flop_count(image, weight, gradient, transposed)
    return forward * sum(output_mask[:2])  # of the input and of the weight


def gigaflop(step, images, targets):
    """GFLOP of one image, forward and backward, by torch's counter.

    Args:
        step: a TrainingStep; a copy of it trains.
        images, targets: a batch as the data set gives it.
    """
    step = copy.deepcopy(step).train()  # batch norm takes in the batch
    counts = torch.full((len(step.tasks),), float(len(images)), device=images.device)
    own = {CONVOLUTION_BACKWARD: convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=own)
    with counter:
        step(images.float(), targets, counts)[0].backward()
    return counter.get_total_flops() / len(images) / 1e9
