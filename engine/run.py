"""One run of an experiment: data, training, resuming, the test and the artefacts."""

import contextlib
import importlib
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from dataload import SPLITS, Augment, DataError, H5Dataset
from engine import artefacts, pictures
from engine.cli import UserError, constants, parse
from engine.loop import TrainingStep, epoch_batches, evaluate, seeded, train_epoch
from engine.processes import Processes
from engine.report import Report, save_csv
from MTL_Utils import ratios

CHECKPOINT_SECONDS = 20  # at most this much work is lost by a kill
FREE_SETTINGS = ("H5_SAVE_PATH", "FILE_SAVE_PATH")  # may differ between a run and its resumption


def main(script, argv=None):
    """Run the experiment that the module `script` describes, with flags from the command line.

    The module is imported by name, so that the saved network can be opened by another process.

    Raises:
        SystemExit: code 2 and one line on stderr for a mistake of the user's or a damaged file;
            128 + signal number after Ctrl-C or SIGTERM.
    """
    module = importlib.import_module(script)
    try:
        options = parse(module, argv)
        processes = Processes(options.device)
        try:
            with stop_signals() as stopped, data_folder(module, options.demo) as folder:
                Run(module, folder, processes, options).execute(options.resume, stopped)
        finally:
            processes.close()
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


@contextlib.contextmanager
def stop_signals():
    """Yield a function that tells which signal, Ctrl-C or SIGTERM, has asked the run to stop."""
    received = []
    old = {
        s: signal.signal(s, lambda number, frame: received.append(number))
        for s in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Run:
    """Everything a run needs and a checkpoint holds."""

    def __init__(self, module, folder, processes, options):
        self.name = module.__name__.removeprefix("MTL_")
        self.module, self.processes, self.tasks = module, processes, module.TASKS
        self.config = constants(module) | {"demo": options.demo, "processes": processes.size}
        self.report = Report(module.EPOCHS, processes.is_first, options.quiet, options.tensorboard)
        self.seed, self.clip_norm = module.SEED, module.CLIP_NORM
        self.data = {split: H5Dataset(split, folder) for split in SPLITS}
        self.augment = Augment(module.DEGREES, module.SCALE, module.SHIFT, module.COLOUR)
        self.target = next(iter(self.tasks))
        self.steps = len(epoch_batches(len(self.data["train"]), module.BATCH_SIZE, 0, 0))
        self._build()
        self.folder = artefacts.output_folder(module.FILE_SAVE_PATH)  # not before all is checked
        self.history = {"train": {}, "val": {}, "best_epoch": 0, "seconds": []}
        self.best, self.done, self.rows = None, 0, []

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
        matrices = [p for p in step.parameters() if p.ndim > 1]
        others = [p for p in step.parameters() if p.ndim <= 1]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=module.WEIGHT_DECAY, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser,
            module.LEARNING_RATE,
            total_steps=module.EPOCHS * self.steps,
            pct_start=0.2,
        )
        self.average = AveragedModel(
            self.network, multi_avg_fn=ema(module.EMA_DECAY), use_buffers=True
        )
        self.step = step
        if self.processes.size > 1:
            self.step = DistributedDataParallel(step)

    def _check_side(self):
        """Refuse splits of different sides, and a side that the network cannot take."""
        sides = {split: data.side for split, data in self.data.items()}
        if len(set(sides.values())) > 1:
            raise UserError(f"--h5-save-path: expected one image side in all splits, found {sides}")
        image = self.data["train"][0][0][None].to(self.processes.device)
        try:
            with torch.inference_mode():
                self.network.eval()(image)
        except ValueError as error:
            raise UserError(f"--h5-save-path: {error}") from error

    def execute(self, resume, stopped):
        """Train to the last epoch, test once, and write the artefacts."""
        last = self.folder / f"{self.name}_last.pt"
        if resume:
            self._resume(last)
        self.saved = time.monotonic()
        self._announce()
        self.report.start(f"{self.folder / self.name}_tensorboard", len(self.history["seconds"]))
        while len(self.history["seconds"]) < self.module.EPOCHS:
            self._epoch(stopped)
            if stopped() or self._is_due():
                self._checkpoint(last)
            if stopped():
                self.report.warn(f"stopped by signal {stopped()}; go on with --resume")
                sys.exit(128 + stopped())
        self._finish()

    def _announce(self):
        counts = ", ".join(f"{len(data)} {split}" for split, data in self.data.items())
        side = " x ".join(map(str, self.data["train"].side))
        self.report.say(
            f"{self.name}: {counts} images of {side} on {self.processes.device}, "
            f"{self.processes.size} process(es), {self.module.EPOCHS} epochs"
        )

    def _is_due(self):
        ended = len(self.history["seconds"]) == self.module.EPOCHS
        return ended or time.monotonic() - self.saved > CHECKPOINT_SECONDS

    def _epoch(self, stopped):
        """One epoch of training and, unless stopped, of validation."""
        start, epoch = time.monotonic(), len(self.history["seconds"]) + 1
        before = self.done
        batches = epoch_batches(len(self.data["train"]), self.module.BATCH_SIZE, self.seed, epoch)
        self.done = train_epoch(self, batches, epoch, self.done, self.rows, stopped)
        if self.done < len(batches):
            return
        trained = time.monotonic() - start
        means = self.processes.sum(torch.stack(self.rows).double().mean(0)) / self.processes.size
        means = dict(zip(self.tasks, means.tolist(), strict=True))
        self.rows, self.done = [], 0
        self._record("train", {f"{task}_loss": value for task, value in means.items()})
        weights = self.weighting.weights().items()
        self._record("train", {f"{task}_weight": float(weight) for task, weight in weights})
        self.weighting.epoch_end(means)
        table = self._evaluate(self.average.module, "val")
        self._record("val", ratios({name: pairs.sum(0) for name, pairs in table.items()}))
        self._keep_best(epoch)
        self.history["seconds"].append(time.monotonic() - start)
        rate = (len(batches) - before) * len(batches[0]) / trained
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

    def _state(self):
        return {
            "config": self.config,
            "network": self.network.state_dict(),
            "weighting": self.weighting.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
            "best": self.best,
            "done": self.done,
            "rows": self.rows,
        }

    def _checkpoint(self, path):
        if self.processes.is_first:
            artefacts.save(self._state(), path)
        self.saved = time.monotonic()

    def _resume(self, path):
        """Take up the state of a checkpoint.

        Raises:
            UserError: it is of other settings, or damaged.
        """
        if not path.is_file():
            self.report.warn(f"--resume: no checkpoint {path}; starting anew")
            return
        state = artefacts.load(path)
        for name, value in self.config.items():
            found = state["config"].get(name)
            if name not in FREE_SETTINGS and found != value:
                raise UserError(f"--resume: {path} was made with {name} = {found}, not {value}")
        for part in ("network", "weighting", "average", "optimiser", "schedule"):
            getattr(self, part).load_state_dict(state[part])
        self.history, self.best, self.done = state["history"], state["best"], state["done"]
        self.rows = [row.to(self.processes.device) for row in state["rows"]]

    def _finish(self):
        """Test the best epoch, once, and write everything but the checkpoint."""
        network = self.average.module
        network.load_state_dict(self.best)
        table = self._evaluate(network, "test")
        test = ratios({name: pairs.sum(0) for name, pairs in table.items()})
        if not self.processes.is_first:
            return
        history = self.history | {
            "name": self.name,
            "config": self.config,
            "test": test,
            "data": {split: len(data) for split, data in self.data.items()},
            "side": self.data["train"].side,
            "class_names": self.data["train"].class_names,
            "parameters": sum(p.numel() for p in network.parameters()),
            "versions": artefacts.versions(),
        }
        writers = {
            "history.pt": lambda path: artefacts.save(history, path),
            "history.csv": lambda path: save_csv(history, path),
            "model_lite.pt": lambda path: artefacts.save(self.best, path),
            "model.pt": lambda path: artefacts.save(network, path),
            f"{self.target}_loss.png": lambda path: pictures.save_loss_picture(
                path, history, self.target
            ),
            "test.png": lambda path: self._draw_median(network, table, path),
        }
        paths = [self.folder / f"{self.name}_{ending}" for ending in writers]
        for write, path in zip(writers.values(), paths, strict=True):
            write(path)
        self.report.end(history, [*paths, self.folder / f"{self.name}_last.pt"])

    def _draw_median(self, network, table, path):
        """The test sample whose IoU is the median: neither flattering nor shaming."""
        pairs = table[f"{self.target}_iou"]
        order = (pairs[:, 0] / pairs[:, 1].clamp(min=1)).argsort()
        index = order[len(order) // 2].item()
        images, targets = self.data["test"].batch([index])
        with torch.inference_mode():
            outputs = network(images.to(self.processes.device))
        outputs = {k: v.float().cpu() for k, v in outputs.items()}
        outputs = {k: v if v.ndim == 1 else v[0] for k, v in outputs.items()}
        targets = {k: v[0] for k, v in targets.items()}
        metrics = ratios({name: pairs[index] for name, pairs in table.items()})
        names = self.data["test"].class_names
        pictures.save_test_picture(path, images[0], targets, outputs, metrics, self.tasks, names)


def ema(decay):
    """An exponential average for AveragedModel whose memory grows with the run, up to `decay`."""

    @torch.no_grad()
    def average(averaged, current, count):
        new = 1 - min(decay, (1 + float(count)) / (10 + float(count)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, new)
        else:  # the batch norms' counters
            torch._foreach_copy_(averaged, current)

    return average
