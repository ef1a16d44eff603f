"""One run of an experiment: data, training, resuming, the test and the artefacts."""

import contextlib
import copy
import importlib
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from dataload import SPLITS, Augment, DataError, H5Dataset, warnings
from engine import artefacts, pictures
from engine.average import WeightAverage
from engine.cli import UserError, constants, parse
from engine.loop import (
    TrainingStep,
    epoch_batches,
    evaluate,
    gigaflop,
    predict,
    sample_scores,
    seeded,
    train_epoch,
)
from engine.optimiser import Optimiser
from engine.processes import Processes, StopSignals
from engine.report import Report, save_csv
from MTL_Utils import ratios

CHECKPOINT_SECONDS = 20  # a kill loses at most this much training
FREE_SETTINGS = ("H5_SAVE_PATH", "FILE_SAVE_PATH")  # may differ between a run and its resumption
PARTS = ("network", "weighting", "average", "optimiser")  # of a Run, in a checkpoint
PROGRESS = ("history", "best", "done", "rows", "seconds")  # the rest of it


def main(script, argv=None):
    """Run the experiment that the module `script` describes, with flags from the command line.

    The module is imported by name, so that the saved network can be opened by another process.

    Raises:
        SystemExit: code 2 and one line on stderr for a mistake of the user's or a damaged file;
            128 + signal number after Ctrl-C or SIGTERM.
    """
    module = importlib.import_module(script)
    try:
        with contextlib.ExitStack() as stack:
            processes = stack.enter_context(Processes())
            signals = stack.enter_context(StopSignals())
            with processes.together():
                options = parse(module, argv)
                processes.use(options.device)
                folder = stack.enter_context(data_folder(module, options.demo))
                run = Run(module, folder, processes, signals, options)
            run.execute(options.resume)
    except (UserError, DataError) as error:
        print(f"{script}.py: {error}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def data_folder(module, demo):
    """The folder of the data; for the demo one drawn on the spot that goes when the run ends.

    Raises:
        UserError: there is no such folder.
    """
    if not demo:
        try:
            for split in SPLITS:
                (path := Path(module.H5_SAVE_PATH) / split).stat()
        except OSError as error:
            raise UserError(
                f"no data: expected train/, val/ and test/ in {module.H5_SAVE_PATH}, but {path} "
                "is not there; give the folder as --h5-save-path (tools/prepare_pets.py makes "
                "one), or try --demo"
            ) from error
        yield module.H5_SAVE_PATH
        return
    from tools.make_demo import make_demo  # only now, since no other run needs to draw

    with tempfile.TemporaryDirectory() as folder:
        make_demo(Path(folder) / "demo")
        yield Path(folder) / "demo"


def augmentation(module):
    """The joint augmentation that the constants of a script describe."""
    return Augment(
        module.DEGREES, module.SCALE, module.STRETCH, module.SHIFT, module.COLOUR, module.ERASE
    )


class Run:
    """Everything a run needs and a checkpoint holds."""

    def __init__(self, module, folder, processes, signals, options):
        self.name = module.__name__.removeprefix("MTL_")
        self.module, self.tasks = module, module.TASKS
        self.processes, self.signals = processes, signals
        self.config = constants(module) | {"demo": options.demo, "processes": processes.size}
        self.report = Report(module.EPOCHS, processes.is_first, options.quiet, options.tensorboard)
        self.seed, self.clip_norm = module.SEED, module.CLIP_NORM
        self.data = {split: H5Dataset(split, folder) for split in SPLITS}
        self.augment = augmentation(module)
        self.target = next(iter(self.tasks))
        self.steps = self._count_steps()
        self._build()
        if options.compile:
            self.step.compile(dynamic=False)  # one graph for each of SIDES
        self.folder = artefacts.output_folder(module.FILE_SAVE_PATH)  # not before all is checked
        self.last = self.folder / f"{self.name}_last.pt"
        self.history = {"train": {}, "val": {}, "best_epoch": 0, "seconds": []}
        self.best, self.done, self.rows, self.seconds = None, 0, [], 0.0

    def side_of(self, epoch):
        """(h, w) of the training images in an epoch: small ones at first, which cost less."""
        shares, stride = self.module.SIDES, self.network.stride
        share = shares[(epoch - 1) * len(shares) // self.module.EPOCHS]
        return tuple(
            max(1, round(share * pixels / stride)) * stride for pixels in self.data["train"].side
        )

    def _count_steps(self):
        """Steps of an epoch; refuses a batch that the processes cannot share equally."""
        batches = epoch_batches(len(self.data["train"]), self.module.BATCH_SIZE, 0, 0)
        if len(batches[0]) % self.processes.size:
            raise UserError(
                f"--batch-size: expected a multiple of the {self.processes.size} processes, "
                f"found {len(batches[0])}"
            )
        return len(batches)

    def _build(self):
        """Network, optimiser, schedule and weight average, from the seed."""
        module, device = self.module, self.processes.device
        seeded(self.seed)
        try:
            self.network = module.Network().to(device, memory_format=torch.channels_last)
        except ValueError as error:  # settings that only the script's network can judge
            raise UserError(f"Network: {error}") from error
        self._check_side()
        step = TrainingStep(self.network, self.tasks, module.weighting()).to(device)
        self.weighting = step.weighting
        self.optimiser = Optimiser(
            step.parameters(), module.LEARNING_RATE, module.WEIGHT_DECAY, module.EPOCHS * self.steps
        )
        self.average = WeightAverage(self.network, module.EMA_DECAY)
        self.step = step

    def _check_side(self):
        """Refuse splits of different sides, and a side that network or batch norm cannot take."""
        sides = {split: data.side for split, data in self.data.items()}
        if len(set(sides.values())) > 1:
            raise UserError(f"--h5-save-path: expected one image side in all splits, found {sides}")
        images = min(self.module.BATCH_SIZE, len(self.data["train"])) // self.processes.size
        smallest = min(self.side_of(epoch) for epoch in range(1, self.module.EPOCHS + 1))
        if images == 1 and smallest == (self.network.stride,) * 2:
            raise UserError(
                f"--batch-size: expected 2 or more images for each process, found 1; at {smallest} "
                "pixels, the first of --sides, batch norm would see one value per channel"
            )
        image = self.data["train"][0][0][None].to(self.processes.device)
        try:
            with torch.inference_mode():
                self.network.eval()(image)
        except ValueError as error:
            raise UserError(f"--h5-save-path: {error}") from error

    def execute(self, resume):
        """Train to the last epoch, test once, and write the artefacts.

        Raises:
            SystemExit: 128 + signal number after a signal; the checkpoint holds all that was done.
        """
        self._start(resume)
        if self._is_finished():
            self.report.say(f"{self.name} is finished, nothing is left to do; see {self.folder}")
            return
        if self.processes.size > 1:
            self.step = DistributedDataParallel(self.step)
        self._announce()
        with self.processes.together():  # the first one reads every image
            for line in warnings(self.data) if self.processes.is_first else ():
                self.report.warn(f"warning: {line}")
        self.report.start(f"{self.folder / self.name}_tensorboard", len(self.history["seconds"]))
        self.signals.patient = True
        while len(self.history["seconds"]) < self.module.EPOCHS:
            self._epoch()
            signal, is_due = self._pauses()
            if signal or is_due:
                self._checkpoint()
            if signal:
                self.report.warn(f"stopped by signal {signal}; go on with --resume")
                sys.exit(128 + signal)
        self._finish()

    def pause(self):
        """Whether training pauses for a signal or a checkpoint, for all processes alike."""
        return any(self._pauses())

    def _pauses(self):
        """The signal that asks for a stop or 0, and whether a checkpoint is due."""
        ended = len(self.history["seconds"]) == self.module.EPOCHS
        is_due = ended or time.monotonic() - self.saved > CHECKPOINT_SECONDS
        return self.processes.agree(self.signals.received, is_due)

    def _announce(self):
        counts = ", ".join(f"{len(data)} {split}" for split, data in self.data.items())
        side = " x ".join(map(str, self.data["train"].side))
        self.report.say(
            f"{self.name}: {counts} images of {side} on {self.processes.device}, "
            f"{self.processes.size} process(es), {self.module.EPOCHS} epochs"
        )

    def _epoch(self):
        """The rest of an epoch's training and, unless that pauses, its validation.

        A signal during validation is heeded after it, since it is short.
        """
        start, epoch = time.monotonic(), len(self.history["seconds"]) + 1
        batches = epoch_batches(len(self.data["train"]), self.module.BATCH_SIZE, self.seed, epoch)
        self.done = train_epoch(self, batches, epoch, self.done, self.rows)
        self.seconds += time.monotonic() - start
        if self.done < len(batches):
            return
        rate = len(batches) * len(batches[0]) / self.seconds
        means = torch.tensor(self.rows, dtype=torch.float64).mean(0).tolist()
        means = dict(zip(self.tasks, means, strict=True))
        self._record("train", {f"{task}_loss": value for task, value in means.items()})
        with torch.no_grad():  # they may be learned
            weights = self.weighting.weights().items()
        self._record("train", {f"{task}_weight": float(weight) for task, weight in weights})
        self.weighting.epoch_end(means)
        start = time.monotonic()
        self.processes.copy_first(self.average.module.buffers())  # batch norm's are each's own
        table = self._evaluate(self.average.module, "val")
        self._record("val", ratios({name: pairs.sum(0) for name, pairs in table.items()}))
        self._keep_best(epoch)
        self.history["seconds"].append(self.seconds + time.monotonic() - start)
        self.rows, self.done, self.seconds = [], 0, 0.0
        self.report.epoch(self.history, rate)

    def _evaluate(self, network, split):
        data, size = self.data[split], self.module.BATCH_SIZE
        return evaluate(network, data, self.tasks, size, self.processes)

    def _record(self, part, values):
        for name, value in values.items():
            self.history[part].setdefault(name, []).append(value)

    def _keep_best(self, epoch):
        """Keep the averaged weights of the epoch with the best validation IoU of the target."""
        series = self.history["val"][f"{self.target}_iou"]
        if self.best is None or series[-1] > max(series[:-1]):
            self.history["best_epoch"] = epoch
            self.best = {k: v.clone() for k, v in self.average.module.state_dict().items()}

    def _settings(self):
        """What must be the same for a run and its resumption, the data included."""
        settings = {k: v for k, v in self.config.items() if k not in FREE_SETTINGS}
        data = {f"data in {k}": artefacts.fingerprint(v) for k, v in self.data.items()}
        return settings | data

    def _state(self):
        parts = {part: getattr(self, part).state_dict() for part in PARTS}
        return {"settings": self.settings} | parts | {k: getattr(self, k) for k in PROGRESS}

    def _checkpoint(self):
        with self.processes.together():
            if self.processes.is_first:
                artefacts.save(self._state(), self.last)
        self.saved = time.monotonic()

    def _start(self, resume):
        """Take up the state of the checkpoint, or begin with one.

        So a disk that takes no files is noticed now, and no older run's checkpoint stays.

        Raises:
            UserError: the checkpoint is damaged, of other settings or of other data.
        """
        self.settings, there = self._settings(), resume and self.last.is_file()
        (somewhere,) = self.processes.agree(there)
        with self.processes.together():
            if there:
                self._load(artefacts.load(self.last))
            elif somewhere:
                raise UserError(f"--resume: {self.last} is there for some of the processes only")
        if resume and not there:
            self.report.warn(f"--resume: no checkpoint {self.last}; starting anew")
        if self.processes.is_first:
            artefacts.remove_leftovers(self.folder, self.name)
        self.saved = time.monotonic()
        if not there:
            self._checkpoint()

    def _load(self, state):
        """Take up the state of a checkpoint."""
        if not isinstance(state, dict) or "settings" not in state:
            raise UserError(f"{self.last}: expected a checkpoint, found another file")
        found = state["settings"]
        names = [n for n in self.settings | found if found.get(n) != self.settings.get(n)]
        if names:
            differences = (f"{n} = {found.get(n)}, not {self.settings.get(n)}" for n in names)
            raise UserError(f"--resume: {self.last} was made with {'; '.join(differences)}")
        try:
            for part in PARTS:
                getattr(self, part).load_state_dict(state[part])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"--resume: {self.last} was made with another network") from error
        for name in PROGRESS:
            setattr(self, name, state[name])

    def _is_finished(self):
        """Whether the history file, written last of all, is there and of this very run."""
        done = False
        with contextlib.suppress(UserError):
            path = self.folder / f"{self.name}_history.pt"
            done = path.is_file() and artefacts.load(path)["seconds"] == self.history["seconds"]
        return self.processes.agree(self.processes.is_first and done)[0]

    def _finish(self):
        """Test the best epoch, once, and write everything but the checkpoint."""
        network = self.average.module
        network.load_state_dict(self.best)
        table = self._evaluate(network, "test")
        with self.processes.together():
            if self.processes.is_first:
                self._write(network, table)

    def _write(self, network, table):
        """Write the results; last of all the history, whose presence tells that all is there."""
        history = self.history | {
            "name": self.name,
            "config": self.config,
            "test": ratios({name: pairs.sum(0) for name, pairs in table.items()}),
            "data": {split: len(data) for split, data in self.data.items()},
            "data_fingerprint": {k: artefacts.fingerprint(v) for k, v in self.data.items()},
            "side": self.data["train"].side,
            "class_names": self.data["train"].class_names,
            "parameters": sum(p.numel() for p in network.parameters()),
            "gflop": self._gigaflop(),
            "versions": artefacts.versions(),
        }
        on_cpu = copy.deepcopy(network).cpu()  # so that the files open without a GPU
        writers = {
            "model_lite.pt": lambda path: artefacts.save(on_cpu.state_dict(), path),
            "model.pt": lambda path: artefacts.save(on_cpu, path),
            f"{self.target}_loss.png": lambda path: pictures.save_loss_picture(
                path, history, self.target
            ),
            "test.png": lambda path: self._draw_median(network, table, path),
            "history.csv": lambda path: save_csv(history, path),
            "history.pt": lambda path: artefacts.save(history, path),
        }
        paths = [self.folder / f"{self.name}_{ending}" for ending in writers]
        for write, path in zip(writers.values(), paths, strict=True):
            write(path)
        self.report.end(history, [*paths, self.last])

    def _gigaflop(self):
        """Of one image, forward and backward; without other processes, which are not asked."""
        step = TrainingStep(self.network, self.tasks, self.weighting)
        images, targets = self.data["train"][[0, 0]]  # batch norm needs more than one value
        targets = {task: target.to(self.processes.device) for task, target in targets.items()}
        return gigaflop(step, images.to(self.processes.device), targets)

    def _draw_median(self, network, table, path):
        """The test sample whose IoU is the median: neither flattering nor shaming."""
        pairs = table[f"{self.target}_iou"]
        order = sample_scores(pairs).argsort()
        index = order[len(order) // 2].item()
        images, targets = self.data["test"][[index]]
        (outputs,) = predict(network, images.to(self.processes.device))
        targets = {k: v[0] for k, v in targets.items()}
        metrics = ratios({name: pairs[index] for name, pairs in table.items()})
        names = self.data["test"].class_names
        pictures.save_test_picture(path, images[0], targets, outputs, metrics, self.tasks, names)
