"""The training step, and the Trainer with network, optimiser and weight average."""

import math

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from engine.batches import loader
from parts.average import WeightAverage
from parts.errors import UserError
from parts.optimiser import Optimiser
from parts.precision import autocast
from parts.sampling import seeded, training_side

CHECK_EVERY = 20  # steps between two checks of the losses, for which the host waits


class TrainingStep(nn.Module):
    """Network, losses and loss weighting in one module, which DDP and torch.compile wrap.

    (images, targets, counts) -> (the scalar to minimise, sums (T,) of the unweighted losses over
    the known samples of all processes, and (T, T) inner products of the tasks' gradients where they
    are measured, else None). `counts` (T,) are the known samples in the whole batch divided by the
    number of processes. Each process divides the sum of its losses by them, so that DDP's mean over
    the processes is the mean over all known samples.

    Args:
        network: with `encoder` and `decode(features)` if gradients are measured.
        tasks: {name: Task}.
        weighting: a loss weighting of MTL_Utils.py; asks for gradients by `needs_gradients`.
        processes: among which the inner products are summed; None for this one alone.
    """

    def __init__(self, network, tasks, weighting, processes=None):
        super().__init__()
        self.network, self.tasks, self.weighting = network, tasks, weighting
        self.processes = processes
        self.needs_gradients = getattr(weighting, "needs_gradients", False)

    def forward(self, images, targets, counts, measure=False):
        features, outputs = self._features_and_outputs(images, measure or self.needs_gradients)
        sums = {}
        for name, task in self.tasks.items():
            losses = task.loss(outputs[name], targets[name])  # (B,)
            sums[name] = torch.where(task.known(targets[name]), losses, 0.0).sum()
        sums = local = torch.stack(list(sums.values()))  # (T,)
        if self.processes is not None and self.processes.size > 1:
            sums = self.processes.sum(local.detach().clone())
            # the value of all processes, so that they weight alike, with this one's gradient
            local = local + (sums / self.processes.size - local).detach()
        losses = local / counts.clamp(min=1e-9)
        means = dict(zip(self.tasks, losses.unbind(), strict=True))
        present = (counts > 0).float()
        matrix = None if features is None else self._inner_products(means, features)
        if self.needs_gradients:
            order = [list(self.tasks).index(name) for name in self.weighting.weights()]
            self.weighting.from_gradients(matrix[order][:, order], present[order])
        total = self.weighting(means, dict(zip(self.tasks, present.unbind(), strict=True)))
        return total, sums.detach(), matrix

    def _features_and_outputs(self, images, wanted):
        """The features that the tasks share (None unless wanted) and the outputs."""
        with autocast(images.device):
            if not wanted:
                return None, self.network(images)
            features = self.network.encoder(images)
            return features, self.network.decode(features)

    def _inner_products(self, losses, features):
        """(T, T) fp32 inner products of the gradients of the losses at the shared features.

        They need no pass through the encoder. Those of several processes add up, since each has
        its own samples.
        """
        gradients, features = [], [features] if torch.is_tensor(features) else features
        for loss in losses.values():
            parts = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
            pairs = zip(parts, features, strict=True)
            flat = [(torch.zeros_like(f) if g is None else g).flatten().float() for g, f in pairs]
            gradients.append(torch.cat(flat))
        gradients = torch.stack(gradients)  # (T, all features of the batch)
        matrix = gradients @ gradients.T
        if self.processes is None:
            return matrix
        return self.processes.sum(matrix) / self.processes.size**2  # of the mean over processes


class Trainer:
    """The network of a run, what trains it, and the training step.

    Args:
        network: on its device.
        tasks: {name: Task}.
        weighting: a loss weighting of MTL_Utils.py.
        augment: (images, targets, generator, side) -> (images, targets).
        settings: of the run.
        total_steps: of all epochs together.
        processes: this process among the others.
        diagnose: steps between two measurements of the tasks' gradients; 0 for none.
    """

    PARTS = ("network", "weighting", "optimiser", "average")  # of a checkpoint

    def __init__(
        self, network, tasks, weighting, augment, settings, total_steps, processes, diagnose=0
    ):
        self.network, self.tasks, self.augment = network, tasks, augment
        self.settings, self.processes, self.diagnose = settings, processes, diagnose
        self.step = TrainingStep(network, tasks, weighting, processes).to(processes.device)
        self.weighting = self.step.weighting
        parameters = parameters_by_rate(network, self.weighting)
        self.optimiser = Optimiser(
            parameters, settings.LEARNING_RATE, settings.WEIGHT_DECAY, total_steps
        )
        self.average = WeightAverage(network, settings.EMA_DECAY)

    def state_dict(self):
        """What `load_state_dict` needs to continue bit for bit."""
        return {part: getattr(self, part).state_dict() for part in self.PARTS}

    def load_state_dict(self, state):
        """Continue where `state` was taken.

        Raises:
            KeyError, RuntimeError, ValueError: it is of another network or weighting.
        """
        for part in self.PARTS:
            getattr(self, part).load_state_dict(state[part])

    def compile(self):
        """Compile the step with torch.compile, one graph for each image side.

        A step that measures gradients runs the decoder several times; then only the encoder is
        compiled.
        """
        part = self.network.encoder if self.diagnose or self.step.needs_gradients else self.step
        part.compile(dynamic=False)

    def distribute(self):
        """Divide every step among the processes, if there are several."""
        if self.processes.size > 1:
            self.step = DistributedDataParallel(self.step)

    def learn(self, images, targets, generator, side=None, measure=False):
        """Augment a batch and train on it, without making a GPU wait.

        Args:
            images, targets: this process's share of the batch, as the data set gives it.
            generator: of this step's random numbers.
            side: (h, w) to train at, if not that of the images.
            measure: whether to measure the inner products of the tasks' gradients.

        Returns:
            (2 T + 1,) fp64: for each task the sum of its losses over the known samples of all
            processes, for each task their number, and the norm of the gradient. With `measure`,
            T x T inner products follow.
        """
        images, targets = self.augment(images, targets, generator, side)
        counts = torch.stack([task.known(targets[n]).sum() for n, task in self.tasks.items()])
        counts = self.processes.sum(counts.float())  # (T,)
        images = images.contiguous(memory_format=torch.channels_last)
        total, sums, matrix = self.step(images, targets, counts / self.processes.size, measure)
        self.step.zero_grad()
        total.backward()
        norm = clip_grad_norm_(self.step.parameters(), self.settings.CLIP_NORM)
        row = torch.cat([sums, counts, norm[None]]).double()
        self.optimiser.step()
        self.average.update_parameters(self.network)
        return torch.cat([row, matrix.flatten().double()]) if measure else row

    def epoch(self, dataset, batches, epoch, done, report, pause):
        """Train on `batches[done:]` of an epoch, and yield the rows of its steps, as of `learn`.

        The rows come in groups, one for each check. Whatever ends the epoch early, every step has
        been checked, so the state of the Trainer may be saved.

        Args:
            dataset: the training split.
            batches: the sample numbers of each batch, over all processes.
            report: shows the progress.
            pause: called after every step; true ends the epoch early.

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
                if hasattr(self.weighting, "batch_start"):  # alike in all processes
                    self.weighting.batch_start(seeded(settings.SEED, epoch, done))
                generator = seeded(settings.SEED, epoch, done, world.rank)
                measure = self.diagnose > 0 and done % self.diagnose == 0
                recent.append(self.learn(images, targets, generator, side, measure))
                done += 1
                bar.update(len(batches[0]))
                paused = pause()
                if paused or done % CHECK_EVERY == 0 or done == len(batches):
                    rows = _lists(recent)
                    first, recent = done - len(rows), []
                    self._refuse_non_finite(rows, epoch, first, batches[first:done])
                    report.show(bar, epoch, means(self.tasks, rows[-1:]))
                    yield rows
                if paused:
                    return

    def _refuse_non_finite(self, rows, epoch, first, batches):
        """UserError for the first of some steps whose losses or gradient are not finite."""
        count = len(self.tasks)
        for step, (row, batch) in enumerate(zip(rows, batches, strict=True), first + 1):
            pairs = zip(self.tasks, row[:count], strict=True)
            bad = [task for task, loss in pairs if not math.isfinite(loss)]
            if bad or not math.isfinite(row[2 * count]):
                what = f"the loss of {', '.join(bad)}" if bad else "the gradient"
                message = (
                    f"{what} is not finite in epoch {epoch}, step {step}, samples {batch}; the "
                    "last checkpoint is intact: continue with --resume and a lower "
                    "--learning-rate, or look at these samples"
                )
                with self.processes.failing_together():
                    raise UserError(message)


def parameters_by_rate(network, weighting):
    """{factor: parameters that need a gradient} of a network and a loss weighting.

    A network's attribute `rate_factors`, {name of a part: factor}, gives some of its parts a share
    of the learning rate.
    """
    factors, found = getattr(network, "rate_factors", {}), {1.0: []}
    for name, parameter in network.named_parameters():
        factor = next((f for part, f in factors.items() if name.startswith(f"{part}.")), 1.0)
        if parameter.requires_grad:
            found.setdefault(factor, []).append(parameter)
    found[1.0] += weighting.parameters()
    return found


def _lists(rows):
    """Row tensors as lists, by one transfer from the device."""
    lengths = [len(row) for row in rows]
    numbers = iter(torch.cat(rows).tolist())
    return [[next(numbers) for _ in range(length)] for length in lengths]


def means(tasks, rows):
    """{task: mean loss over the known samples} of the rows of some steps; NaN where none is."""
    count = len(tasks)
    sums = torch.tensor([row[: 2 * count] for row in rows], dtype=torch.float64).sum(0)
    return dict(zip(tasks, (sums[:count] / sums[count : 2 * count]).tolist(), strict=True))


def known_counts(tasks, rows):
    """{task: number of known targets} in the rows of some steps."""
    count = len(tasks)
    sums = torch.tensor([row[count : 2 * count] for row in rows], dtype=torch.float64).sum(0)
    return dict(zip(tasks, map(int, sums.tolist()), strict=True))
