"""One run of an experiment: data, training, resuming, and the final test."""

import contextlib
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from dataload import SPLITS, Augment, H5Dataset, check_splits, warnings
from engine import artefacts, results
from engine.batches import epoch_batches, keep_on_device, seeded, train_known, training_side
from engine.evaluation import evaluate, values
from engine.processes import Processes, StopSignals
from engine.report import Report
from engine.script import check_script, check_tasks
from engine.settings import UserError, arguments_from, as_dict
from engine.training import Trainer, conflict, known_counts, means
from engine.weights import take_weights
from parts.h5array import DataError
from ResBlock import SettingError

CHECKPOINT_SECONDS = 20  # a kill loses no more training than this
FREE_SETTINGS = ("H5_SAVE_PATH", "FILE_SAVE_PATH", "LEARNING_RATE")  # may differ on --resume
COMPILER = ("torch._dynamo", "torch._inductor")  # modules of the errors of torch.compile
PROGRESS = ("history", "best", "done", "rows", "seconds")  # of a Run, in a checkpoint


def execute(script, settings, options):
    """Run the experiment of a Script from data to artefacts.

    Raises:
        UserError: a user's mistake, or a damaged file.
        SystemExit: 128 + signal number after Ctrl-C, SIGTERM or SIGHUP.
    """
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(Processes())
        signals = stack.enter_context(StopSignals())
        try:
            with processes.failing_alike():
                check_script(script, settings._fields)
                processes.use(options.device)
                # before the data are read; Run.start does it again under the lock
                wanted = Path(os.path.expanduser(settings.FILE_SAVE_PATH))
                artefacts.refuse_another(wanted, script.name, options, processes.is_first)
                folder = stack.enter_context(data_folder(settings.H5_SAVE_PATH, options.demo))
                data = open_data(folder, options.tasks)
                trainer = build(script, settings, options, data["train"], processes)
                report = Report(
                    settings.EPOCHS, options.tasks, processes.is_first, options.quiet,
                    options.tensorboard,
                )  # fmt: skip
                out = artefacts.output_folder(settings.FILE_SAVE_PATH)  # after all checks
                if processes.is_first:
                    stack.enter_context(artefacts.locked(out, script.name))
            run = Run(script, settings, options, data, trainer, report, out, signals)
            run.start(options)
            run.train_and_test()
        except DataError as error:
            raise UserError(str(error)) from error
        except Exception as error:
            if options.compile and type(error).__module__.startswith(COMPILER):
                reason = " ".join(str(error).split())[:200]
                raise UserError(
                    f"--compile: torch.compile failed ({reason}); run without it, or install the "
                    "C++ compiler that it needs"
                ) from error
            raise  # a bug in the user's network keeps its traceback


@contextlib.contextmanager
def data_folder(path, demo):
    """The folder of the data; for the demo, a temporary one that is drawn on the spot.

    Raises:
        UserError: there is no such folder.
    """
    if not demo:
        folder = Path(os.path.expanduser(path))
        missing = [folder / split for split in SPLITS if not (folder / split).is_dir()]
        if missing:
            raise UserError(
                f"no data: expected train/, val/ and test/ in {path}, but {missing[0]} is not "
                "there; give the folder as --h5-save-path (tools/prepare_pets.py makes one), or "
                "try --demo"
            )
        yield folder
        return
    from parts.demo_data import make_demo  # only now, because other runs draw nothing

    with tempfile.TemporaryDirectory() as folder:
        make_demo(Path(folder) / "demo")
        yield Path(folder) / "demo"


def open_data(folder, tasks):
    """{split: H5Dataset} of a folder; DataError if the splits do not fit together, or one of them
    has no known target of the first task."""
    data = {split: H5Dataset(split, folder) for split in SPLITS}
    check_splits(data, [next(iter(tasks))])
    return data


def build(script, settings, options, train, processes):
    """The Trainer of a run, checked against the training data.

    Raises:
        UserError: script, settings and data do not fit together.
    """
    device, sizes = processes.device, (min(settings.BATCH_SIZE, len(train)), processes.size)
    if sizes[0] % sizes[1]:
        raise UserError(
            f"--batch-size: expected a multiple of the {sizes[1]} processes, found {sizes[0]}"
        )
    seeded(settings.SEED)
    try:
        network = script.module.Network(**arguments_from(settings, script.module.Network))
        weighting = script.module.weighting(**arguments_from(settings, script.module.weighting))
    except SettingError as error:  # one that a flag can correct
        raise UserError(f"--{error}") from error
    try:
        augment = Augment(**arguments_from(settings, Augment))
    except ValueError as error:
        raise UserError(f"--{error}") from error
    augment.unknown_pixels = train.unknown_pixels
    network = network.to(device, memory_format=torch.channels_last)
    image, targets = train[0]
    check_side(network, train.side, settings, sizes[0] // sizes[1])
    with torch.inference_mode():  # weights may be learned
        outputs = network.eval()(image[None].to(device))
        weights = {task: float(weight) for task, weight in weighting.weights().items()}
    check_tasks(options.tasks, weights, outputs, targets)
    steps = settings.EPOCHS * (len(train) // sizes[0])
    check_interface(network, weighting, options.diagnose)
    trainer = Trainer(
        network, options.tasks, weighting, augment, settings, steps, processes, options.diagnose
    )
    if options.compile:
        trainer.compile()
    return trainer


def check_interface(network, weighting, diagnose):
    """Refuse a network without the parts at which gradients are measured, if they are."""
    asks = "--diagnose" if diagnose else type(weighting).__name__
    lacks = [name for name in ("encoder", "decode") if not callable(getattr(network, name, None))]
    if lacks and (diagnose or getattr(weighting, "needs_gradients", False)):
        raise UserError(
            f"{asks}: expected a Network with encoder(image), which gives the features that the "
            f"tasks share, and decode(features), found no {lacks[0]}"
        )


def check_side(network, full, settings, images):
    """Refuse a network without stride, and sides that it or its batch norm cannot take."""
    stride = getattr(network, "stride", None)
    if not isinstance(stride, int):
        raise UserError(
            "Network: expected an attribute 'stride', the number of which the sides of an image "
            f"must be multiples, found {stride}"
        )
    if full[0] % stride or full[1] % stride:
        raise UserError(
            f"--h5-save-path: image side: expected a multiple of {stride}, found "
            f"{full[0]} x {full[1]}"
        )
    epochs = range(1, settings.EPOCHS + 1)
    every = {training_side(settings.SIDES, e, settings.EPOCHS, full, stride) for e in epochs}
    if images == 1 and min(every) == (stride, stride):
        raise UserError(
            f"--batch-size: expected 2 or more images for each process, found 1; at {min(every)} "
            "pixels, one of --sides, batch norm would see one value per channel"
        )


class Run:
    """A run: its history, its checkpoints, and its results."""

    def __init__(self, script, settings, options, data, trainer, report, folder, signals):
        self.name, self.settings, self.data, self.trainer = script.name, settings, data, trainer
        self.tasks, self.processes = options.tasks, trainer.processes
        self.report, self.folder, self.signals = report, folder, signals
        self.last, self.finished = artefacts.marks(folder, self.name)
        config = as_dict(settings) | {"demo": options.demo, "processes": self.processes.size}
        config |= {"diagnose": options.diagnose} if options.diagnose else {}
        self.about = results.about(script, config, self.tasks, data, trainer)
        self.history = {"train": {}, "val": {}, "best_epoch": 0, "seconds": []}
        self.best, self.done, self.rows, self.seconds = None, 0, [], 0.0

    def start(self, options):
        """Load the state of the checkpoint, or write the first one.

        So a disk that takes no files is noticed before training.

        Raises:
            UserError: the folder holds a run and neither --resume nor --overwrite is given, or the
                checkpoint is damaged, of other settings or of other data.
        """
        has_checkpoint = self.last.is_file()
        (resumes,) = self.processes.max(options.resume and has_checkpoint)
        with self.processes.failing_alike():
            artefacts.refuse_another(self.folder, self.name, options, self.processes.is_first)
            if options.weights and not resumes:
                self.about["weights_from"], line = take_weights(
                    options.weights, self.trainer.network, self.trainer.average.module
                )
                self.report.say(line)
            if options.resume and has_checkpoint:
                self._load(artefacts.load(self.last))
            elif resumes:
                raise UserError(
                    f"--resume: expected {self.last} for every process, found it for some only"
                )
        if options.resume and not has_checkpoint:
            self.report.warn(f"--resume: no checkpoint {self.last}; starting anew")
        if self.processes.is_first:
            files = results.paths(self.folder, self.name, self.tasks)
            artefacts.remove_leftovers([self.last, *files])
            for path in files if not resumes else ():
                path.unlink(missing_ok=True)
        self.saved = time.monotonic()
        if not resumes:
            self._checkpoint()

    def _announce(self):
        counts = ", ".join(f"{len(data)} {split}" for split, data in self.data.items())
        side = " x ".join(map(str, self.data["train"].side))
        self.report.say(
            f"{self.name}: {counts} images of {side} on {self.processes.device}, "
            f"{self.processes.size} process(es), {self.settings.EPOCHS} epochs"
        )

    def train_and_test(self):
        """Train to the last epoch, test once, and write the artefacts.

        Raises:
            SystemExit: 128 + signal number after a signal; the checkpoint holds all that was done.
        """
        if self._is_finished():
            self.report.say(f"{self.name} is finished, nothing is left to do; see {self.folder}")
            return
        self._announce()
        with self.processes.failing_alike():  # only the first process searches
            for line in warnings(self.data) if self.processes.is_first else ():
                self.report.warn(f"warning: {line}")
        keep_on_device(self.data.values(), self.processes.device)
        self.trainer.distribute()
        self.report.start(f"{self.folder / self.name}_tensorboard", len(self.history["seconds"]))
        self.signals.graceful = True
        while len(self.history["seconds"]) < self.settings.EPOCHS:
            self._epoch()
            signal, is_due = self._pauses()
            if signal or is_due:
                self._checkpoint()
            if signal:
                self.report.warn(f"stopped by signal {signal}; continue with --resume")
                sys.exit(128 + signal)
        self._finish()

    def pause(self):
        """Whether training pauses for a signal or a checkpoint, for all processes alike."""
        return any(self._pauses())

    def _pauses(self):
        """The signal that asks for a stop or 0, and whether a checkpoint is due."""
        ended = len(self.history["seconds"]) == self.settings.EPOCHS
        is_due = ended or time.monotonic() - self.saved > CHECKPOINT_SECONDS
        return self.processes.max(self.signals.received, is_due)

    def _epoch(self):
        """The rest of an epoch's training and, unless that pauses, its validation.

        A signal during validation takes effect after it, because validation is short.
        """
        start, epoch = time.monotonic(), len(self.history["seconds"]) + 1
        train, settings = self.data["train"], self.settings
        known, useful = train_known(self.tasks, train)
        batches = epoch_batches(known, useful, settings.BATCH_SIZE, settings.SEED, epoch)
        steps = self.trainer.epoch(train, batches, epoch, self.done, self.report, self.pause)
        for rows in steps:
            self.rows, self.done = self.rows + rows, self.done + len(rows)
        self.seconds += time.monotonic() - start
        if self.done < len(batches):
            return
        rate = len(batches) * len(batches[0]) / self.seconds
        self._close_epoch()
        start = time.monotonic()
        average = self.trainer.average.module
        self.processes.broadcast(average.buffers())  # batch norm's are each process's own
        self._record("val", values(self.tasks, self._evaluate(average, "val")))
        self._keep_best(epoch)
        self.history["seconds"].append(self.seconds + time.monotonic() - start)
        self.rows, self.done, self.seconds = [], 0, 0.0
        self.report.epoch(self.history, rate)

    def _close_epoch(self):
        """Record the training values of an epoch, and pass the losses to the loss weighting."""
        losses, weighting = means(self.tasks, self.rows), self.trainer.weighting
        with torch.no_grad():  # weights may be learned
            weights = {task: float(weight) for task, weight in weighting.weights().items()}
        known = known_counts(self.tasks, self.rows)
        for what, found in (("loss", losses), ("weight", weights), ("known", known)):
            self._record("train", {f"{task}_{what}": value for task, value in found.items()})
        weighting.epoch_end(losses)
        if self.trainer.diagnose:
            self._record("conflict", conflict(self.tasks, self.rows))

    def _evaluate(self, network, split):
        data, size = self.data[split], self.settings.BATCH_SIZE
        return evaluate(network, data, self.tasks, size, self.processes)

    def _record(self, part, found):
        for name, value in found.items():
            self.history.setdefault(part, {}).setdefault(name, []).append(value)

    def _keep_best(self, epoch):
        """Keep the averaged weights if this epoch is the best so far, by the first task.

        The primary metric decides. Where it is equal or unknown, the loss does.
        """
        name, task = next(iter(self.tasks.items()))
        sign = 1 if task.higher_is_better else -1
        metric = [sign * v for v in self.history["val"][f"{name}_{task.primary}"]]
        loss = [-v for v in self.history["val"][f"{name}_loss"]]
        pairs = zip(metric, loss, strict=True)
        ranks = [tuple(-math.inf if math.isnan(v) else v for v in pair) for pair in pairs]
        if self.best is None or ranks[-1] > max(ranks[:-1]):
            self.history["best_epoch"] = epoch
            state = self.trainer.average.module.state_dict()
            self.best = {key: value.clone() for key, value in state.items()}

    def _settings(self):
        """What must be the same for a run and its resumption, the data included."""
        settings = {k: v for k, v in self.about["config"].items() if k not in FREE_SETTINGS}
        data = {f"data in {k}": v for k, v in self.about["data_fingerprint"].items()}
        return settings | data

    def _checkpoint(self):
        with self.processes.failing_alike():
            if self.processes.is_first:
                state = {"about": self.about, "settings": self._settings()}
                progress = {name: getattr(self, name) for name in PROGRESS}
                artefacts.save(state | progress | self.trainer.state_dict(), self.last)
        self.saved = time.monotonic()

    def _load(self, state):
        """Load the state of a checkpoint."""
        if not isinstance(state, dict) or "settings" not in state:
            raise UserError(f"{self.last}: expected a checkpoint, found another file")
        found, settings = state["settings"], self._settings()
        names = [n for n in settings | found if found.get(n) != settings.get(n)]
        if names:
            differences = (f"{n} = {found.get(n)}, not {settings.get(n)}" for n in names)
            raise UserError(f"--resume: {self.last} was made with {'; '.join(differences)}")
        try:
            self.trainer.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"--resume: {self.last} was made with another network") from error
        for name in PROGRESS:
            setattr(self, name, state[name])
        self.about["weights_from"] = state["about"]["weights_from"]
        before, now = state["about"]["config"]["LEARNING_RATE"], self.settings.LEARNING_RATE
        if before != now:
            place = [len(self.history["seconds"]) + 1, before, now]
            self.history.setdefault("learning_rate_changes", []).append(place)

    def _is_finished(self):
        """Whether the history file, the last of the numbers, exists and is of this run."""
        done = False
        with contextlib.suppress(UserError):
            if self.finished.is_file():
                done = artefacts.load(self.finished)["seconds"] == self.history["seconds"]
        return self.processes.max(self.processes.is_first and done)[0]

    def _finish(self):
        """Test the best epoch, once, and write everything but the checkpoint."""
        network = self.trainer.average.module
        network.load_state_dict(self.best)
        table = self._evaluate(network, "test")
        with self.processes.failing_alike():
            if self.processes.is_first:
                history = self.history | results.tested(self.about, self.trainer, table, self.data)
                results.write(
                    self.folder, history, network, self.tasks, table, self.data, self.report
                )
