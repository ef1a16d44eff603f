"""Losses and metrics of every sample of a split, and the outputs of a network."""

import torch

from engine.batches import loader
from parts.precision import autocast


def predict(network, images):
    """The outputs for images (B, 3, H, W), fp32 on the CPU, as a list of {task: output}.

    The arithmetic is that of training. A single logit per image has the shape (1,).
    """
    with torch.inference_mode(), autocast(images.device):
        outputs = network(images)
    outputs = {k: v.float().cpu() for k, v in outputs.items()}
    outputs = {k: v[:, None] if v.ndim == 1 else v for k, v in outputs.items()}
    return [{k: v[i] for k, v in outputs.items()} for i in range(len(images))]


@torch.inference_mode()
def evaluate(network, dataset, tasks, batch_size, processes):
    """Loss and metrics of every sample of a split, in eval mode.

    Each process evaluates its share, and all receive the whole table.

    Returns:
        {task: {"loss" or metric: (N, 2) fp64 numerators and denominators}}.

    Raises:
        RuntimeError: not every sample was seen exactly once.
    """
    network.eval()
    device, mine = processes.device, range(processes.rank, len(dataset), processes.size)
    batches = [list(mine[i : i + batch_size]) for i in range(0, len(mine), batch_size)]
    batches = batches or [[0]]  # more processes than samples: only for the keys of the table
    seen = torch.zeros(len(dataset), 1, dtype=torch.float64, device=device)
    table = {name: {} for name in tasks}
    for indices, (images, targets) in zip(batches, loader(dataset, batches, device), strict=True):
        with autocast(device):
            outputs = network(images)
        rows = torch.tensor(indices, device=device)  # once, since a GPU waits for it
        seen[rows] += 1 if mine else 0
        for name, task in tasks.items():
            for metric, pairs in sample_pairs(task, outputs[name], targets[name]).items():
                sums = table[name].setdefault(metric, seen.new_zeros(len(dataset), 2))
                sums[rows] += pairs if mine else 0
    if not processes.sum(seen).eq(1).all():
        raise RuntimeError(f"evaluation did not see each of the {len(dataset)} samples once")
    return {name: {m: processes.sum(p) for m, p in found.items()} for name, found in table.items()}


def sample_pairs(task, output, target):
    """{"loss" or metric: (B, 2) numerators and denominators} of one task for a batch."""
    known = task.known(target)
    loss = torch.where(known, task.loss(output, target), 0.0)
    pairs = torch.stack([loss.double(), known.double()], dim=1)
    return {"loss": pairs, **task.metrics(output, target)}


def values(tasks, table):
    """{"TASK_loss" or "TASK_METRIC": value} over the samples of a table; NaN where all are unknown.

    Every value is the sum of the numerators divided by that of the denominators.
    """
    found = {}
    for name, pairs in table.items():
        ratios = tasks[name].ratios({metric: each.sum(0) for metric, each in pairs.items()})
        found |= {f"{name}_{metric}": value for metric, value in ratios.items()}
    return found


def sample_scores(table, task):
    """(N,) primary metric of every sample, from {"loss" or metric: (N, 2)}; NaN where unknown."""
    perfect = float(task.higher_is_better)  # where all are 0 / 0, there was nothing to find
    parts = [table[part] for part in task.means.get(task.primary, (task.primary,))]
    ratios = torch.stack([pairs[:, 0] / pairs[:, 1] for pairs in parts])  # (parts, N)
    scores = ratios.nanmean(0).nan_to_num(perfect)
    return torch.where(table["loss"][:, 1] > 0, scores, torch.nan).cpu()
