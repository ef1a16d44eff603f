"""Everything that learns: network, loss weighting, optimiser and weight average."""

import copy
import math
from itertools import islice

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

from engine.average import WeightAverage
from engine.batches import loader, seeded, training_side
from engine.optimiser import Optimiser
from engine.precision import autocast
from engine.settings import UserError

CHECK_EVERY = 20  # steps between two looks at the losses, which make a GPU wait


class TrainingStep(nn.Module):
    """Network, losses and loss weighting in one module, the one that DDP and torch.compile wrap.

    (images, targets, counts) -> (the scalar to minimise, sums (T,) of the unweighted losses over
    the known samples). `counts` (T,) are the known samples in the batch by the number of processes:
    a loss is its sum by its count, so that DDP's mean over the processes is the mean over all known
    samples.
    """

    def __init__(self, network, tasks, weighting):
        super().__init__()
        self.network, self.tasks, self.weighting = network, tasks, weighting

    def forward(self, images, targets, counts):
        with autocast(images.device):
            outputs = self.network(images)
        sums = {}
        for name, task in self.tasks.items():
            losses = task.loss(outputs[name], targets[name])  # (B,)
            sums[name] = torch.where(task.known(targets[name]), losses, 0.0).sum()
        counts = dict(zip(sums, counts.unbind(), strict=True))
        means = {name: total / counts[name].clamp(min=1e-9) for name, total in sums.items()}
        known = {name: (count > 0).float() for name, count in counts.items()}
        total = self.weighting(means, known)
        return total, torch.stack([each.detach() for each in sums.values()])


class Trainer:
    """What learns in a run, and the step by which it does.

    Args:
        network: on its device.
        tasks: {name: Task}.
        weighting: a loss weighting of MTL_Utils.py.
        augment: (images, targets, generator, side) -> (images, targets).
        settings: of the run.
        total_steps: of all epochs together.
        processes: this process among the others.
    """

    PARTS = ("network", "weighting", "optimiser", "average")  # of a checkpoint

    def __init__(self, network, tasks, weighting, augment, settings, total_steps, processes):
        self.network, self.tasks, self.augment = network, tasks, augment
        self.settings, self.processes = settings, processes
        self.step = TrainingStep(network, tasks, weighting).to(processes.device)
        self.weighting = self.step.weighting
        self.optimiser = Optimiser(
            self.step.parameters(), settings.LEARNING_RATE, settings.WEIGHT_DECAY, total_steps
        )
        self.average = WeightAverage(network, settings.EMA_DECAY)

    def state_dict(self):
        """What `load_state_dict` needs to go on bit for bit."""
        return {part: getattr(self, part).state_dict() for part in self.PARTS}

    def load_state_dict(self, state):
        """Go on where `state` was taken.

        Raises:
            KeyError, RuntimeError, ValueError: it is of another network or weighting.
        """
        for part in self.PARTS:
            getattr(self, part).load_state_dict(state[part])

    def distribute(self):
        """Let the processes, if there are several, share every step."""
        if self.processes.size > 1:
            self.step = DistributedDataParallel(self.step)

    def learn(self, images, targets, generator, side=None):
        """Augment a batch and learn from it; nothing here makes a GPU wait.

        Args:
            images, targets: this process's share of the batch, as the data set gives it.
            generator: of this step's random numbers.
            side: (h, w) to train at, if not that of the images.

        Returns:
            (2 T + 1,) fp64: for each task the sum of its losses over the known samples of all
            processes, for each task their number, and the norm of the gradient. If one is not
            finite, the weights stay as they were, in this step and all later ones.
        """
        images, targets = self.augment(images, targets, generator, side)
        counts = torch.stack([task.known(targets[n]).sum() for n, task in self.tasks.items()])
        counts = self.processes.sum(counts.float())  # (T,)
        images = images.contiguous(memory_format=torch.channels_last)
        total, sums = self.step(images, targets, counts / self.processes.size)
        self.optimiser.zero_grad()
        total.backward()
        norm = clip_grad_norm_(self.step.parameters(), self.settings.CLIP_NORM)
        sums = self.processes.sum(sums)
        row = torch.cat([sums, counts, norm[None]]).double()
        self.optimiser.freeze(~row.isfinite().all())
        self.optimiser.step()
        self.average.update_parameters(self.network)
        return row

    def epoch(self, dataset, batches, epoch, done, report, pause):
        """Train on `batches[done:]` of an epoch, and yield the rows [2 T + 1] of its steps.

        The rows come in groups, one for each look at them. Whatever ends the epoch early, every
        step was looked at, so that what the Trainer holds then may be saved.

        Args:
            dataset: the training split.
            batches: the sample numbers of each batch, over all processes.
            report: shows progress.
            pause: is asked after every step whether to end the epoch early.

        Raises:
            UserError: a loss or gradient is not finite; names task, epoch, step and samples.
        """
        world, settings, recent = self.processes, self.settings, []
        side = training_side(
            settings.SIDES, epoch, settings.EPOCHS, dataset.side, self.network.stride
        )
        mine = [batch[world.rank :: world.size] for batch in batches[done:]]
        self.step.train()
        with report.bar(epoch, batches, done) as bar:
            for images, targets in loader(dataset, mine, world.device):
                generator = seeded(settings.SEED, epoch, done, world.rank)
                recent.append(self.learn(images, targets, generator, side))
                done += 1
                bar.update(len(batches[0]))
                paused = pause()
                if paused or done % CHECK_EVERY == 0 or done == len(batches):
                    rows = torch.stack(recent).tolist()
                    first, recent = done - len(rows), []
                    self._refuse_bad(rows, epoch, first, batches[first:done])
                    report.show(bar, epoch, means(self.tasks, rows[-1:]))
                    yield rows
                if paused:
                    return

    def _refuse_bad(self, rows, epoch, first, batches):
        """Refuse the first of some steps whose losses or gradient are not finite."""
        for step, (row, batch) in enumerate(zip(rows, batches, strict=True), first + 1):
            losses = islice(row, len(self.tasks))
            bad = [t for t, loss in zip(self.tasks, losses, strict=True) if not math.isfinite(loss)]
            if bad or not math.isfinite(row[-1]):
                what = f"the loss of {', '.join(bad)}" if bad else "the gradient"
                message = (
                    f"{what} is not finite in epoch {epoch}, step {step}, samples {batch}; the "
                    "last checkpoint is good: go on with --resume and a lower --learning-rate, or "
                    "look at these samples"
                )
                with self.processes.failing_alike():
                    raise UserError(message)


def means(tasks, rows):
    """{task: mean loss over the known samples} of the rows of some steps; NaN where none is."""
    sums = torch.tensor(rows, dtype=torch.float64).sum(0)  # (2 T + 1,)
    count = len(tasks)
    return dict(zip(tasks, (sums[:count] / sums[count : 2 * count]).tolist(), strict=True))


def known_counts(tasks, rows):
    """{task: number of known targets} in the rows of some steps."""
    sums = torch.tensor(rows, dtype=torch.float64).sum(0)
    return dict(zip(tasks, map(int, sums[len(tasks) : 2 * len(tasks)].tolist()), strict=True))


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
