"""Runs of a script within the tests' process, or in another that costs no import of torch."""

import contextlib
import io
import multiprocessing
import os
import runpy
import sys
import time
from pathlib import Path

import torch

import engine

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("MTL_*.py") if path.stem != "MTL_Utils")
TINY = ["--epochs", "3", "--batch-size", "4", "--widths", "8", "8", "16", "16", "--units", "1"]


def arguments(data, out, *flags):
    paths = ["--h5-save-path", str(data), "--file-save-path", str(out), "--device", "cpu"]
    return [*paths, *TINY, *flags]


def run(script, data, out, *flags, code=0):
    """What the script prints on stderr, run here."""
    printed, found = io.StringIO(), 0
    try:
        with contextlib.redirect_stderr(printed):
            engine.main(ROOT / f"{script}.py", arguments(data, out, *flags))
    except SystemExit as stop:
        found = stop.code
    assert found == code, printed.getvalue()
    return printed.getvalue()


class Process:
    """A script run as `python SCRIPT.py` would, in a process forked from one that has torch.

    Args:
        prepare: a module-level function called there first, for what the test has to bring about.
        environment: added to the process's.
    """

    def __init__(self, script, data, out, *flags, prepare=None, environment=()):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["engine.run", "engine.pictures", "MTL_main", "running"])
        out.parent.mkdir(parents=True, exist_ok=True)
        number = len(list(out.parent.glob(f"{out.name}.stderr*")))
        self.stderr = out.parent / f"{out.name}.stderr{number}"
        self.stderr.touch()
        argv = [f"{script}.py", *arguments(data, out, *flags)]
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
    sys.argv = [str(ROOT / argv[0]), *argv[1:]]
    if prepare:
        prepare()
    runpy.run_path(sys.argv[0], run_name="__main__")


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
