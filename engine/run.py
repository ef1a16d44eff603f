"""One run of an experiment: data, training, resuming, and the final test."""

import contextlib
import math
import os
import sys
import time
from pathlib import Path

import torch

from dataload import likely_mistakes
from engine import results, setup
from engine.batches import keep_on_device, train_known
from engine.evaluation import evaluate, values
from engine.processes import Processes
from engine.report import Report
from engine.script import check_script
from engine.training import conflict, known_counts, means
from engine.weights import describe_source, identity, same_source, take_weights, weights_file
from parts import demo_data, files
from parts.errors import UserError, one_line
from parts.sampling import epoch_batches
from parts.signals import StopSignals

CHECKPOINT_SECONDS = 20  # a kill loses no more training than this
# may differ on --resume; a file of weights must have the same content
FREE_SETTINGS = ("H5_SAVE_PATH", "FILE_SAVE_PATH", "LEARNING_RATE", "WEIGHTS")
COMPILER = ("torch._dynamo", "torch._inductor")  # modules of the errors of torch.compile
PROGRESS = ("history", "best", "done", "rows", "seconds", "complete")  # of a Run, in a checkpoint


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
            with processes.failing_together():
                check_script(script, settings)
                processes.use(options.device)
                # before the data are read; Run.start does it again under the lock
                wanted = Path(os.path.expanduser(settings.FILE_SAVE_PATH))
                setup.refuse_existing_run(wanted, script.name, options, processes.is_first)
                draw = getattr(script.module, "demo", demo_data.make_demo) if options.demo else None
                folder = stack.enter_context(setup.data_folder(settings.H5_SAVE_PATH, draw))
                data = setup.open_data(folder, script.module.TASKS)
                trainer = setup.build(script, settings, options, data["train"], processes)
                report = Report(
                    settings.EPOCHS, script.module.TASKS, processes.is_first, options.quiet,
                    options.tensorboard,
                )  # fmt: skip
                out = files.output_folder(settings.FILE_SAVE_PATH)  # after all checks
                if processes.is_first:
                    stack.enter_context(files.locked(out, script.name))
                run = Run(script, settings, options, data, trainer, report, out, signals)
            run.start(options)
            run.train_and_test()
        except Exception as error:
            if options.compile and type(error).__module__.startswith(COMPILER):
                raise UserError(
                    f"--compile: torch.compile failed ({one_line(error)[:200]}); run without it, "
                    "or install the C++ compiler that it needs"
                ) from error
            raise  # a bug in the user's network keeps its traceback


class Run:
    """A run: its history, its checkpoints, and its results.

    Attributes:
        done, rows, seconds: of the unfinished epoch: steps, their rows (`rows_of`), training time.
        best: state dict of the best epoch so far; None before the first one.
        saved: when the last checkpoint was written, by time.monotonic().
        complete: whether all files are written.
    """

    def __init__(self, script, settings, options, data, trainer, report, folder, signals):
        self.script, self.name, self.settings = script, script.name, settings
        self.data, self.trainer = data, trainer
        self.tasks, self.processes = script.module.TASKS, trainer.processes
        self.report, self.folder, self.signals = report, folder, signals
        self.checkpoint_file, self.history_file = setup.run_files(folder, self.name)
        config = vars(settings) | {"demo": options.demo, "processes": self.processes.size}
        config |= {"diagnose": options.diagnose} if options.diagnose else {}
        self.about = results.describe_run(script, config, self.tasks, data, trainer)
        self.history = {"train": {}, "val": {}, "best_epoch": 0, "seconds": []}
        self.best, self.done, self.rows, self.seconds = None, 0, [], 0.0
        self.complete = False

    def start(self, options):
        """Load the checkpoint, or write the first one, so that a full disk shows before training.

        Raises:
            UserError: the folder holds a run and neither --resume nor --overwrite is given, or the
                checkpoint is damaged, of other settings or of other data.
        """
        has_checkpoint = self.checkpoint_file.is_file()
        (resumes,) = self.processes.max(options.resume and has_checkpoint)
        with self.processes.failing_together():
            setup.refuse_existing_run(self.folder, self.name, options, self.processes.is_first)
            weights = weights_file(options.weights) if options.weights else None
            source = identity(weights) if weights else None
            if not resumes:
                setup.apply_start(self.script.module, self.trainer)
            if source and not resumes:
                networks = self.trainer.network, self.trainer.average.module
                self.report.say(take_weights(weights, *networks))
                self.about["weights_from"] = source
            if options.resume and has_checkpoint:
                self._load(files.load(self.checkpoint_file), source)
            elif resumes:
                raise UserError(
                    f"--resume: expected {self.checkpoint_file} for every process, found it for "
                    "some only"
                )
        if options.resume and not has_checkpoint:
            self.report.warn(f"--resume: no checkpoint {self.checkpoint_file}; starting a new run")
        if self.processes.is_first:
            written = results.paths(self.folder, self.name, self.tasks)
            files.remove_leftovers([self.checkpoint_file, *written])
            for path in written if not resumes else ():
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
        known = self.data["train"].known
        self.report.explain({name: int(known[name].sum()) for name in self.tasks})

    def train_and_test(self):
        """Train to the last epoch, test once, and write the artefacts.

        Raises:
            SystemExit: 128 + signal number after a signal; the checkpoint holds all that was done.
        """
        if self._is_finished():
            self.report.say(f"{self.name} is finished, nothing is left to do; see {self.folder}")
            return
        self._announce()
        with self.processes.failing_together():  # only the first process searches
            for line in likely_mistakes(self.data) if self.processes.is_first else ():
                self.report.warn(f"warning: {line}")
        keep_on_device(self.data.values(), self.processes.device)
        self.trainer.distribute()
        self.report.start(f"{self.folder / self.name}_tensorboard", len(self.history["seconds"]))
        self.signals.graceful = True
        self._validate_start()
        while len(self.history["seconds"]) < self.settings.EPOCHS:
            self._epoch()
            signal, is_due = self._pause_reasons()
            if signal or is_due:
                self._checkpoint()
            if signal:
                self.report.warn(f"stopped by signal {signal}; continue with --resume")
                sys.exit(128 + signal)
        self._finish()

    def _validate_start(self):
        """Record the validation of given weights, which compete as epoch 0."""
        untouched = not self.done and not self.history["seconds"]
        if self.about["weights_from"] and untouched and "start" not in self.history:
            found = values(self.tasks, self._evaluate(self.trainer.average.module, "val"))
            self.history["start"] = found
            self._keep_best(0, found)
            self.report.start_values(found)

    def pause(self):
        """Whether training pauses for a signal or a checkpoint; the same in all processes."""
        return any(self._pause_reasons())

    def _pause_reasons(self):
        """The signal that asks for a stop or 0, and whether a checkpoint is due."""
        ended = len(self.history["seconds"]) == self.settings.EPOCHS
        is_due = ended or time.monotonic() - self.saved > CHECKPOINT_SECONDS
        return self.processes.max(self.signals.received, is_due)

    def _epoch(self):
        """The rest of an epoch's training and, unless it pauses, the validation.

        A signal during validation takes effect afterwards, because validation is short.
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
        found = values(self.tasks, self._evaluate(average, "val"))
        self._keep_best(epoch, found)
        record(self.history["val"], found)
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
            record(self.history["train"], {f"{task}_{what}": v for task, v in found.items()})
        weighting.epoch_end(losses)
        if self.trainer.diagnose:
            series = self.history.setdefault("conflict", {})
            for kind, found in conflict(self.tasks, self.rows).items():
                record(series.setdefault(kind, {}), found)

    def _evaluate(self, network, split):
        data, size = self.data[split], self.settings.BATCH_SIZE
        return evaluate(network, data, self.tasks, size, self.processes)

    def _keep_best(self, epoch, found):
        """Keep the averaged weights if the validation values {name: value} are the best so far.

        The primary metric of the first task decides. Where it is equal or unknown, its loss does.
        """
        earlier = [{k: v[i] for k, v in self.history["val"].items()} for i in range(epoch - 1)]
        earlier += [self.history["start"]] if epoch and "start" in self.history else []
        if self.best is None or self._rank(found) > max(map(self._rank, earlier)):
            self.history["best_epoch"] = epoch
            state = self.trainer.average.module.state_dict()
            self.best = {key: value.clone() for key, value in state.items()}

    def _rank(self, found):
        """(primary metric, -loss) of the first task, the more the better."""
        name, task = next(iter(self.tasks.items()))
        metric = (1 if task.higher_is_better else -1) * found[f"{name}_{task.primary}"]
        pair = metric, -found[f"{name}_loss"]
        return tuple(-math.inf if math.isnan(value) else value for value in pair)

    def _settings(self):
        """What must not change when the run is resumed, including the data."""
        settings = {k: v for k, v in self.about["config"].items() if k not in FREE_SETTINGS}
        for split, found in self.about["data_fingerprint"].items():
            settings |= {f"{split}/{file}.h5": text for file, text in found.items()}
        return settings

    def _checkpoint(self):
        with self.processes.failing_together():
            if self.processes.is_first:
                state = {"about": self.about, "settings": self._settings()}
                progress = {name: getattr(self, name) for name in PROGRESS}
                files.save(state | progress | self.trainer.state_dict(), self.checkpoint_file)
        self.saved = time.monotonic()

    def _load(self, state, source):
        """Load a checkpoint's state; `source` of --weights, if given, must be the recorded one."""
        if not isinstance(state, dict) or not {"about", "settings"} <= state.keys():
            raise UserError(f"{self.checkpoint_file}: expected a checkpoint, found another file")
        made = f"--resume: {self.checkpoint_file} was made with"
        if any(isinstance(text, str) for text in state["about"]["data_fingerprint"].values()):
            raise UserError(f"{made} version 1.0 of this code; start over with --overwrite")
        found, settings = state["settings"], self._settings()
        pairs = ((name, found.get(name), settings.get(name)) for name in settings | found)
        differences = [f"{name} = {was}, not {now}" for name, was, now in pairs if was != now]
        if differences:
            raise UserError(f"{made} {'; '.join(differences)}")
        try:
            self.trainer.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"{made} another network") from error
        for name in PROGRESS:
            setattr(self, name, state[name])
        started = self.about["weights_from"] = state["about"]["weights_from"]
        is_said = source or "WEIGHTS" in self.about["config"]  # such a script always says it
        if is_said and not same_source(source, started):
            raise UserError(
                f"--weights: expected the weights that the run in {self.folder} started from "
                f"({describe_source(started)}), found {describe_source(source)}; only a new run "
                "takes others"
            )
        before, now = state["about"]["config"]["LEARNING_RATE"], self.settings.LEARNING_RATE
        if before != now:
            place = [len(self.history["seconds"]) + 1, before, now]
            self.history.setdefault("learning_rate_changes", []).append(place)

    def _is_finished(self):
        """Whether all files of this run are written."""
        return self.processes.max(self.complete and self.history_file.is_file())[0]

    def _finish(self):
        """Test the best epoch and write everything: the numbers, then the other files.

        Numbers that a killed run has written stay as they are.
        """
        network = self.trainer.average.module
        network.load_state_dict(self.best)
        table = self._evaluate(network, "test")
        with self.processes.failing_together():
            if self.processes.is_first:
                run = self.folder, self.tasks
                if not self._has_numbers():
                    tested = results.with_test_results(
                        self.about, self.trainer, table, self.data, self.report
                    )
                    results.write_numbers(*run, self.history | tested, network)
                saved = files.load(self.history_file)
                results.write_others(*run, saved, network, self.data, self.report, table)
        self.complete = True
        self._checkpoint()

    def _has_numbers(self):
        """Whether the history file, the last of the numbers, exists and is of this run."""
        with contextlib.suppress(UserError, KeyError, TypeError):  # damaged, or another file
            if self.history_file.is_file():
                return files.load(self.history_file)["seconds"] == self.history["seconds"]
        return False


def record(series, found):
    """Append the values of an epoch {name: value} to {name: values of the epochs before}."""
    for name, value in found.items():
        series.setdefault(name, []).append(value)
