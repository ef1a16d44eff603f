"""The training step, and the Trainer with network, optimiser and weight average."""

import itertools
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
        weighting: of parts/weightings.py or, with `needs_gradients`, parts/gradients.py.
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
        weighting: as for TrainingStep.
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
        self.training_step = TrainingStep(network, tasks, weighting, processes).to(processes.device)
        self.weighting = self.training_step.weighting
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
        measures = self.diagnose or self.training_step.needs_gradients
        part = self.network.encoder if measures else self.training_step
        part.compile(dynamic=False)

    def distribute(self):
        """Divide every step among the processes, if there are several."""
        if self.processes.size > 1:
            self.training_step = DistributedDataParallel(self.training_step)

    def learn(self, images, targets, generator, side=None, measure=False):
        """Augment a batch and train on it, without making a GPU wait.

        Args:
            images, targets: this process's share of the batch, as the data set gives it.
            generator: of this step's random numbers.
            side: (h, w) to train at, if not that of the images.
            measure: whether to measure the inner products of the tasks' gradients.

        Returns:
            {"loss": (T,) sums over the known samples of all processes, "known": (T,) their number,
            "norm": () of the gradient}; with `measure` also "products": (T, T).
        """
        images, targets = self.augment(images, targets, generator, side)
        counts = torch.stack([task.known(targets[n]).sum() for n, task in self.tasks.items()])
        counts = self.processes.sum(counts.float())  # (T,)
        images = images.contiguous(memory_format=torch.channels_last)
        share = counts / self.processes.size
        total, sums, matrix = self.training_step(images, targets, share, measure)
        self.training_step.zero_grad()
        total.backward()
        norm = clip_grad_norm_(self.training_step.parameters(), self.settings.CLIP_NORM)
        self.optimiser.step()
        self.average.update_parameters(self.network)
        row = {"loss": sums, "known": counts, "norm": norm}
        return row | {"products": matrix} if measure else row

    def epoch(self, dataset, batches, epoch, done, report, pause):
        """Train on `batches[done:]` of an epoch, and yield its steps as rows of `rows_of`.

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
        self.training_step.train()
        with report.bar(epoch, batches, done) as bar:
            for images, targets in loader(dataset, mine, world.device):
                if hasattr(self.weighting, "batch_start"):  # the same for all processes
                    self.weighting.batch_start(seeded(settings.SEED, epoch, done, world.size))
                generator = seeded(settings.SEED, epoch, done, world.rank)
                measure = self.diagnose > 0 and done % self.diagnose == 0
                recent.append(self.learn(images, targets, generator, side, measure))
                done += 1
                bar.update(len(batches[0]))
                paused = pause()
                if paused or done % CHECK_EVERY == 0 or done == len(batches):
                    rows = rows_of(self.tasks, recent)
                    first, recent = done - len(rows), []
                    self._refuse_non_finite(rows, epoch, first, batches[first:done])
                    report.show(bar, epoch, means(self.tasks, rows[-1:]))
                    yield rows
                if paused:
                    return

    def _refuse_non_finite(self, rows, epoch, first, batches):
        """UserError for the first of some steps whose losses or gradient are not finite."""
        for step, (row, batch) in enumerate(zip(rows, batches, strict=True), first + 1):
            bad = [task for task, loss in row["loss"].items() if not math.isfinite(loss)]
            if bad or not math.isfinite(row["norm"]):
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


def rows_of(tasks, steps):
    """What `Trainer.learn` returned for some steps, in numbers, by one transfer from the device.

    Returns:
        For each step {"loss": {task: sum}, "known": {task: number}, "norm": number} and, if it
        measured them, "products": {(task, other): number, for a task with itself too}.
    """
    keys = {"loss": tasks, "known": tasks, "products": [*itertools.product(tasks, repeat=2)]}
    numbers = iter(torch.cat([t.flatten() for step in steps for t in step.values()]).tolist())

    def named(name):
        return {key: next(numbers) for key in keys[name]} if name in keys else next(numbers)

    return [{name: named(name) for name in step} for step in steps]


def means(tasks, rows):
    """{task: mean loss over the known samples} of the rows of some steps; NaN where none is."""
    sums = {task: sum(row["loss"][task] for row in rows) for task in tasks}
    return {t: sums[t] / n if n else math.nan for t, n in known_counts(tasks, rows).items()}


def known_counts(tasks, rows):
    """{task: number of known targets} in the rows of some steps."""
    return {task: int(sum(row["known"][task] for row in rows)) for task in tasks}


def conflict(tasks, rows):
    """Means over those of some steps that measured the gradients at the shared features.

    Returns:
        {"cosine": {(task, other): of the angle between their gradients}, "norm": {task: length of
        its gradient}}; NaN where a task had no known target.
    """
    measured = [row["products"] for row in rows if "products" in row]
    series = {  # {pair of tasks: (measurements,)}
        pair: torch.tensor([products[pair] for products in measured], dtype=torch.float64)
        for pair in itertools.combinations_with_replacement(tasks, 2)
    }
    norms = {task: series[task, task].sqrt() for task in tasks}
    norms = {task: torch.where(norm > 0, norm, torch.nan) for task, norm in norms.items()}
    cosines = {(a, b): s / norms[a] / norms[b] for (a, b), s in series.items() if a != b}
    return {
        "cosine": {pair: cosine.nanmean().item() for pair, cosine in cosines.items()},
        "norm": {task: norm.nanmean().item() for task, norm in norms.items()},
    }
