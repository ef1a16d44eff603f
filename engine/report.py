"""What a run prints, and the copy of its history for TensorBoard."""

from pathlib import Path
from statistics import median

from tqdm import tqdm

from parts.errors import UserError
from parts.streams import STDERR


class Report:
    """The lines, bars and TensorBoard scalars of a run, all from its first process.

    Everything goes to stderr. The bar is drawn only on a terminal, so that the log of a batch job
    has one line per epoch and no control characters.

    Args:
        epochs: of the whole run.
        tasks: {name: Task}.
        prints: whether this process prints; only the first one does.
        quiet: print warnings only.
        tensorboard: also write scalars per epoch and the test picture for TensorBoard.

    Raises:
        UserError: TensorBoard is wanted but not installed.
    """

    def __init__(self, epochs, tasks, prints=True, quiet=False, tensorboard=False):
        self.epochs, self.tasks, self.prints, self.quiet = epochs, tasks, prints, quiet
        self.seconds = []  # of the epochs since this process started
        self.writer_class = summary_writer() if tensorboard else None
        self.writer = None

    def say(self, text):
        """Print lines of progress."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text):
        """Print lines that the user must see, even with --quiet."""
        if self.prints:
            tqdm.write(text, file=STDERR)
            STDERR.flush()

    def start(self, folder, done):
        """Open the TensorBoard folder; the scalars of epochs after `done` are replaced."""
        if self.writer_class and self.prints:
            self.writer = self.writer_class(str(folder), purge_step=done + 1)

    def bar(self, epoch, batches, done):
        """A tqdm bar over the images of an epoch, with `done` batches finished."""
        size = len(batches[0])
        return tqdm(
            file=STDERR,
            desc=f"epoch {epoch}/{self.epochs}",
            total=len(batches) * size,
            initial=done * size,
            unit=" images",
            bar_format="{desc} {percentage:3.0f}% {bar} {rate_noinv_fmt}{postfix}",
            dynamic_ncols=True,
            leave=False,
            disable=None if self.prints and not self.quiet else True,  # None: without a terminal
        )

    def show(self, bar, epoch, losses):
        """Show beside the bar {task: loss} and the time left to the end of the run."""
        if bar.disable or bar.n == bar.initial:
            return
        epoch_seconds = bar.format_dict["elapsed"] / (bar.n - bar.initial) * bar.total
        left = self._time_left(epoch - 1 + bar.n / bar.total, epoch_seconds)
        shown = " ".join(f"{task} {loss:.3f}" for task, loss in losses.items())
        bar.set_postfix_str(f"{shown}, {left} left")

    def _time_left(self, position, epoch_seconds):
        """Time from `position`, in epochs, to the end: by past epochs, else by `epoch_seconds`."""
        typical = median(self.seconds[-10:]) if self.seconds else epoch_seconds
        return tqdm.format_interval(typical * (self.epochs - position))

    def explain(self, known):
        """Say once how to read the lines of the epochs, and {task: number of known targets}."""
        counts = ", ".join(f"{count} {task}" for task, count in known.items())
        counts = f"; known in train: {counts}" if len({*known.values()}) > 1 else ""
        self.say(f"for each task: training/validation loss, validation metric{counts}")

    def start_values(self, found):
        """Print the validation of the starting weights, {name: value}."""
        self.say(
            f"epoch 0, the starting weights: {self._tasks(found)}; they compete for the best epoch"
        )

    def epoch(self, history, rate):
        """Print a line on the last epoch of the history, and write its scalars for TensorBoard.

        Args:
            rate: images per second of the training part.
        """
        done, seconds = len(history["seconds"]), history["seconds"][-1]
        self.seconds.append(seconds)
        best = "; best so far" if history["best_epoch"] == done else ""
        train, val = ({k: v[-1] for k, v in history[part].items()} for part in ("train", "val"))
        self.say(
            f"epoch {done}/{self.epochs}: {self._tasks(val, train)}{best}; "
            f"{rate:.0f} images/s, {seconds:.1f} s, {self._time_left(done, seconds)} left"
        )
        if self.writer:
            for part, found in (("train", train), ("val", val)):
                for name, value in found.items():
                    self.writer.add_scalar(f"{part}/{name}", value, done)
            self.writer.flush()

    def _tasks(self, val, train=None):
        """'seg 0.412/0.451, iou 0.812; ...': losses and primary metric, from {name: value}."""
        shown = []
        for name, task in self.tasks.items():
            losses = "/".join(f"{part[f'{name}_loss']:.3f}" for part in (train, val) if part)
            metric = f"{task.primary.replace('_', ' ')} {val[f'{name}_{task.primary}']:.3f}"
            shown.append(f"{name} {losses}, {metric}")
        return "; ".join(shown)

    def end(self, history, files):
        """Print the list of files; write test metrics and PNG files for TensorBoard."""
        places = [*files, self.writer.log_dir] if self.writer else files
        self.say("\n".join(["files written:", *(f"  {path}" for path in places)]))
        if not self.writer:
            return
        from matplotlib.image import imread

        for name, value in history["test"].items():
            self.writer.add_scalar(f"test/{name}", value, history["best_epoch"])
        for path in files:
            if Path(path).suffix == ".png":
                picture = imread(path)  # (H, W, 4) in [0, 1]
                self.writer.add_image(
                    Path(path).stem, picture, history["best_epoch"], dataformats="HWC"
                )
        self.writer.close()


def summary_writer():
    """The class that writes TensorBoard files.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"--tensorboard: expected the package tensorboard, found none ({error}); "
            "pip install tensorboard"
        ) from error
    return SummaryWriter


def test_table(history):
    """The test metrics of a finished history as lines of text, losses left out."""
    losses = {f"{task}_loss" for task in history["tasks"]}
    rows = {name: f"{v:.4f}" for name, v in history["test"].items() if name not in losses}
    width = max(map(len, rows))
    heading = f"test: {history['data']['test']} images, weights of epoch {history['best_epoch']}"
    lines = (f"  {name:{width}}  {v.replace('nan', 'unknown')}" for name, v in rows.items())
    return "\n".join([heading, *lines])
