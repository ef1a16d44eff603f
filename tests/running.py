"""Runs of a script within the tests' process, or in another that costs no import of torch."""

import contextlib
import io
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path
from unittest import mock

import torch

import engine
from parts.files import replacing

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("MTL_*.py") if path.stem != "MTL_Utils")
TINY = ["--epochs", "3", "--batch-size", "4", "--widths", "8", "8", "16", "16", "--units", "1"]
LONGER = ["--epochs", "5"]  # of 3 steps each
PRELOAD = ["engine.run", "engine.pictures", "MTL_main", "running"]  # by what forks new processes


def path_of(script):
    """The file of a script, from its path with or without .py: whole, or from the repository."""
    path = ROOT / script
    return path if path.suffix == ".py" else path.with_name(f"{path.name}.py")


def name_of(script):
    """NAME in its artefacts."""
    return path_of(script).stem.removeprefix("MTL_")


def changed(text, *pairs):
    """A script's text with parts of it replaced, which must be there."""
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


def arguments(data, out, *flags, script="MTL_main"):
    """The flags of a short run on the CPU: those of TINY that the script has, and others."""
    text, short = path_of(script).read_text(), []
    for word in TINY:
        if word.startswith("--"):
            has = f"\n{word[2:].upper().replace('-', '_')} = " in text
        short += [word] if has else []
    data = ["--h5-save-path", str(data)] if data else []
    return [*data, "--file-save-path", str(out), "--device", "cpu", *short, *flags]


def run(script, data, out, *flags, code=0):
    """What a script prints on stderr, run here.

    Args:
        script: as in `path_of`.
        code: the exit code that is expected.
    """
    printed, found = io.StringIO(), 0
    try:
        with contextlib.redirect_stderr(printed):
            engine.main(path_of(script), arguments(data, out, *flags, script=script))
    except SystemExit as stop:
        found = stop.code
    assert found == code, printed.getvalue()
    return printed.getvalue()


@contextlib.contextmanager
def without_pictures():
    """A block in which the pictures of runs are empty files: drawing takes longer than training.

    The operations of a step are not counted either.
    """
    import engine.pictures
    import engine.results

    def draw(path, *arguments):
        with replacing(path) as temporary:
            temporary.touch()

    with contextlib.ExitStack() as stack:
        for name in ("save_loss_picture", "save_test_picture"):
            stack.enter_context(mock.patch.object(engine.pictures, name, draw))
        count = mock.patch.object(engine.results, "_gigaflop", lambda *arguments: 0.0)
        stack.enter_context(count)
        yield


def at_step(number, action):
    """Do something after the `number`-th training step from now on, before it is looked at."""
    from engine.run import Run

    original, steps = Run.pause, []

    def pause(self):
        steps.append(1)
        if len(steps) == number:
            action()
        return original(self)

    return pause


def stopped(script, data, out, *flags, step=5, number=signal.SIGTERM):
    """What a run prints that stops at a signal in its `step`-th step."""
    from engine.run import Run

    pause = at_step(step, lambda: signal.raise_signal(number))
    with mock.patch.object(Run, "pause", pause):
        return run(script, data, out, *flags, code=128 + number)


class Process:
    """A script run as `python SCRIPT.py` would, in a process forked from one that has torch.

    Its pictures are empty files.

    Args:
        prepare: a module-level function called there first, for what the test has to bring about.
        environment: added to the process's.
    """

    def __init__(self, script, data, out, *flags, prepare=None, environment=()):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        out.parent.mkdir(parents=True, exist_ok=True)
        number = len(list(out.parent.glob(f"{out.name}.stderr*")))
        self.stderr = out.parent / f"{out.name}.stderr{number}"
        self.stderr.touch()
        argv = [str(path_of(script)), *arguments(data, out, *flags, script=script)]
        task = (argv, self.stderr, prepare, dict(environment))
        self.process = context.Process(target=_child, args=task)
        self.process.start()

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait(self, seconds=120):
        """The exit code, negative for a signal, and what was printed on stderr."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running: {self.printed()}"
        return self.process.exitcode, self.printed()

    def wait_until(self, holds):
        """Wait until `holds()` is true; fails if the process ends first."""
        while not holds():
            assert self.process.is_alive(), f"ended: {self.printed()}"
            time.sleep(0.05)

    def printed(self):
        return self.stderr.read_text()


def _child(argv, stderr, prepare, environment):
    os.dup2(os.open(stderr, os.O_WRONLY), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = argv
    with without_pictures():
        if prepare:
            prepare()
        runpy.run_path(argv[0], run_name="__main__")


class Pair:
    """A run of two processes, as torchrun starts them.

    Args:
        prepares: what to call first in each, or None.
        environment: added to that of both.
    """

    def __init__(self, script, data, out, *flags, prepares=(None, None), environment=()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        self.processes = []
        for rank, prepare in enumerate(prepares):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            keywords = {"prepare": prepare, "environment": address | place | dict(environment)}
            self.processes.append(Process(script, data, out, *flags, **keywords))

    def wait(self):
        """Both exit codes, and what both printed on stderr."""
        ends = [process.wait() for process in self.processes]
        return [code for code, _ in ends], [printed for _, printed in ends]


def load(path):
    return torch.load(path, weights_only=True)


def history(out, name="main"):
    return load(out / f"{name}_history.pt")


def without_times(record):
    return {
        key: value for key, value in record.items() if key not in ("seconds", "config", "test_rows")
    }


def same(first, second):
    """Whether two nests of dicts, lists and tensors are equal bit for bit, but for times."""
    if isinstance(first, dict):
        keys = [key for key in first if key != "seconds"]
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in keys)
    if isinstance(first, list | tuple):
        pairs = zip(first, second, strict=False)
        return len(first) == len(second) and all(same(a, b) for a, b in pairs)
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return first == second or (first != first and second != second)


def is_like(reference, out, name="main"):
    """Whether two runs have ended alike: the files there are, all weights, state and history."""
    folders = (reference, out)
    files = [sorted(path.name for path in folder.glob("[!.]*")) for folder in folders]
    states = [load(folder / f"{name}_last.pt") | {"about": None} for folder in folders]
    records = [history(folder, name) | {"config": None} for folder in folders]  # of other paths
    return files[0] == files[1] and same(*states) and same(*records)
