"""The training step, one epoch of it, and the evaluation of a split."""

import copy
import math

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from engine.cli import UserError
from engine.precision import autocast
from MTL_Utils import known

CHECK_EVERY = 20  # steps between two looks at the losses, which make a GPU wait


class TrainingStep(nn.Module):
    """Network, losses and loss weighting in one module, the one that DDP and torch.compile wrap.

    (images, targets) -> (the scalar to minimise, the unweighted losses (T,) in the tasks' order).
    """

    def __init__(self, network, tasks, weighting):
        super().__init__()
        self.network, self.tasks, self.weighting = network, tasks, weighting

    def forward(self, images, targets):
        with autocast(images.device):
            outputs = self.network(images)
        losses = {
            name: task.loss(outputs[name], targets[name]) for name, task in self.tasks.items()
        }
        return self.weighting(losses), torch.stack([loss.detach() for loss in losses.values()])


def seeded(*numbers):
    """A CPU generator for one place in a run; also seeds torch's own, from which dropout draws.

    Because every step begins with this, the position in a run is all its random state.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def epoch_batches(length, batch_size, seed, epoch):
    """The sample numbers of an epoch's batches, shuffled; a last incomplete batch is left out."""
    order = torch.randperm(length, generator=seeded(seed, epoch)).tolist()
    batch_size = min(batch_size, length)
    return [order[i : i + batch_size] for i in range(0, length - batch_size + 1, batch_size)]


def loader(dataset, batches, device):
    """Batches on the device; two workers where the data is read from disk."""
    batches = DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,
        num_workers=0 if dataset.in_memory else 2,
        pin_memory=device.type == "cuda",
    )
    for images, targets in batches:
        targets = {task: target.to(device, non_blocking=True) for task, target in targets.items()}
        yield images.to(device, non_blocking=True), targets


def train_step(run, images, targets, generator, side=None):
    """Augment a batch and learn from it; nothing here makes a GPU wait.

    Args:
        run: the Run, for its augmentation, step, optimiser and average.
        generator: of this step's random numbers.
        side: (h, w) to train at, if not that of the images.

    Returns:
        (T + 1,) the tasks' unweighted losses and the norm of the gradient. If one of them is not
        finite, the weights stay as they were, in this step and all later ones.
    """
    images, targets = run.augment(images, targets, generator, side)
    total, losses = run.step(images.contiguous(memory_format=torch.channels_last), targets)
    run.optimiser.zero_grad()
    total.backward()
    norm = clip_grad_norm_(run.step.parameters(), run.clip_norm)
    values = torch.cat([losses, norm[None]])
    run.optimiser.freeze(~values.isfinite().all())
    run.optimiser.step()
    run.average.update_parameters(run.network)
    return values


def train_epoch(run, batches, epoch, done, rows):
    """Train on `batches[done:]` and append each step's losses [T] to `rows`.

    The losses are the means over all processes. Whatever ends the epoch early, it has looked at
    every step, so that what `run` holds then may be saved.

    Args:
        run: the Run; `run.pause()` is asked after every step whether to end the epoch early.

    Returns:
        The number of steps done in this epoch.

    Raises:
        UserError: a loss or gradient is not finite; names task, epoch, step and samples.
    """
    world = run.processes
    mine = [batch[world.rank :: world.size] for batch in batches]
    tasks, recent, paused = list(run.tasks), [], False
    run.step.train()
    with run.report.bar(epoch, batches, done) as bar:
        for images, targets in loader(run.data["train"], mine[done:], world.device):
            generator = seeded(run.seed, epoch, done, world.rank)
            recent.append(train_step(run, images, targets, generator, run.side_of(epoch)))
            done += 1
            bar.update(len(batches[0]))
            paused = run.pause()
            if paused or done % CHECK_EVERY == 0 or done == len(batches):
                rows += look(recent, world, tasks, epoch, batches[done - len(recent) : done], done)
                recent = []
                run.report.show(bar, epoch, dict(zip(tasks, rows[-1], strict=True)))
            if paused:
                break
    return done


def look(recent, processes, tasks, epoch, batches, done):
    """The losses [T] of the steps since the last look, as means over the processes.

    Args:
        recent: losses and gradient norm (T + 1,) of each of these steps.
        batches: the sample numbers of each.
        done: number of the last one in the epoch.

    Raises:
        UserError: one of them is not finite.
    """
    rows = (processes.sum(torch.stack(recent)) / processes.size).tolist()
    with processes.together():
        for step, (row, batch) in enumerate(zip(rows, batches, strict=True), done - len(rows) + 1):
            bad = [t for t, loss in zip(tasks, row, strict=False) if not math.isfinite(loss)]
            if bad or not math.isfinite(row[-1]):
                what = f"the loss of {', '.join(bad)}" if bad else "the gradient"
                raise UserError(
                    f"{what} is not finite in epoch {epoch}, step {step}, samples {batch}; the "
                    "weights were not updated from there on, the last checkpoint is good"
                )
    return [row[:-1] for row in rows]


def gigaflop(step, images, targets):
    """GFLOP of one image, forward and backward, by torch's counter.

    Args:
        step: a TrainingStep; a copy of it trains.
        images, targets: a batch as the data set gives it.
    """
    step = copy.deepcopy(step).train()  # batch norm takes in the batch
    counter = FlopCounterMode(display=False)
    with counter:
        step(images.float(), targets)[0].backward()
    return counter.get_total_flops() / len(images) / 1e9


def sample_scores(pairs):
    """Numerators and denominators (N, 2) of a metric -> (N,); 1 where both are 0, so all right."""
    return (pairs[:, 0] / pairs[:, 1]).nan_to_num(1.0).cpu()


def predict(network, images):
    """The outputs for images (B, 3, H, W), fp32 on the CPU, as a list of {task: output}.

    Computed as in training. A logit per image has the shape (1,).
    """
    with torch.inference_mode(), autocast(images.device):
        outputs = network(images)
    outputs = {k: v.float().cpu() for k, v in outputs.items()}
    outputs = {k: v[:, None] if v.ndim == 1 else v for k, v in outputs.items()}
    return [{k: v[i] for k, v in outputs.items()} for i in range(len(images))]


@torch.inference_mode()
def evaluate(network, dataset, tasks, batch_size, processes):
    """Losses and metrics of every sample of a split: {name: (N, 2)} numerators and denominators.

    In eval mode; each process takes its share, and all get the whole table.

    Raises:
        RuntimeError: not every sample was seen exactly once.
    """
    network.eval()
    device, mine = processes.device, range(processes.rank, len(dataset), processes.size)
    batches = [list(mine[i : i + batch_size]) for i in range(0, len(mine), batch_size)]
    batches = batches or [[0]]  # more processes than samples: what is found does not count
    table = {"seen": torch.zeros(len(dataset), 2, dtype=torch.float64, device=device)}
    for indices, (images, targets) in zip(batches, loader(dataset, batches, device), strict=True):
        with autocast(device):
            outputs = network(images)
        places = torch.tensor(indices, device=device)  # once, since a GPU waits for it
        rows = {"seen": torch.ones(len(images), 2, device=device)}
        for name, task in tasks.items():
            valid = known(targets[name]).double()
            loss = task.loss(outputs[name], targets[name]).double()
            rows[f"{name}_loss"] = torch.stack([loss * valid, valid], dim=1)
            for metric, pairs in task.metrics(outputs[name], targets[name]).items():
                rows[f"{name}_{metric}"] = pairs
        for name, pairs in rows.items():
            empty = torch.zeros_like(table["seen"])
            table.setdefault(name, empty)[places] += pairs if mine else torch.zeros_like(pairs)
    if not processes.sum(table.pop("seen")).eq(1).all():
        raise RuntimeError(f"evaluation did not see each of the {len(dataset)} samples once")
    return {name: processes.sum(pairs) for name, pairs in table.items()}
