"""What the tools share: the order of the scripts, one-line errors, paths and the device."""

import contextlib
import functools
import os
import signal
import sys
import threading
from pathlib import Path

from engine.processes import Processes
from parts.errors import UserError
from parts.files import output_folder
from parts.signals import STOPPING
from parts.streams import STDERR

to_stderr = STDERR.say  # a closed stderr is ignored
EXPERIMENTS = ("baseline", "main", "ablation_bbox", "ablation_bin", "OEQ")  # in table order


def command(work):
    """Turn a tool's `main(argv)` into `main(argv=None)`, which returns an exit code: `run_tool`."""
    name = Path(work.__code__.co_filename).name
    return functools.wraps(work)(lambda argv=None: run_tool(name, work, argv))


def run_tool(name, work, argv):
    """The exit code of `work(argv)`, which is 0 where it returns None.

    UserError, OSError and MemoryError become one line on stderr and exit code 2; Ctrl-C,
    SIGTERM and SIGHUP become one line and 128 + signal number. If stdout is closed by its reader,
    as by `| head -1`, the tool ends silently with exit code 0.
    """
    with contextlib.suppress(AttributeError):  # stdout is None, or not a text file
        sys.stdout.reconfigure(errors="backslashreplace")  # cp1252 cannot encode every name
    try:
        with signals_as_ctrl_c():
            code = work(argv) or 0
        print(end="", flush=True)
        return code
    except UserError as error:
        to_stderr(f"{name}: {error}")
    except MemoryError:
        to_stderr(f"{name}: expected enough memory, found too little; use smaller or fewer images")
    except BrokenPipeError:
        discard_stdout()
        return 0
    except OSError as error:
        place = error.filename or ("stdout" if stdout_fails() else "")
        reason = " ".join((error.strerror or str(error)).split())
        to_stderr(": ".join(filter(None, [name, str(place), reason])))
    except KeyboardInterrupt as error:
        to_stderr(f"{name}: interrupted")
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    return 2


@contextlib.contextmanager
def signals_as_ctrl_c():
    """A block in which SIGTERM and SIGHUP act like Ctrl-C, so that temporary files are removed.

    Only the first one acts, because `timeout` sends two. Under nohup, SIGHUP stays ignored.
    """

    def stop(number, frame):
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    may_set = threading.current_thread() is threading.main_thread()  # no other thread may
    numbers = [n for n in STOPPING if may_set and signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def stdout_fails():
    """Whether stdout cannot be written to; its buffer is then discarded."""
    try:
        print(end="", flush=True)
        return False
    except OSError:
        discard_stdout()
        return True


def discard_stdout():
    """Discard what is buffered for stdout, and all later output."""
    with contextlib.suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def as_path(text, name):
    """The text as a path, with ~ for the home folder; UserError names `name` if it is empty."""
    if not str(text).strip():
        raise UserError(f"{name}: expected a path, found an empty one")
    return Path(os.path.expanduser(text))


def make_folder(path, flag):
    """The folder, created if necessary; UserError names the flag if it cannot be written to."""
    return output_folder(as_path(path, flag), flag)


def choose_device(name):
    """One process on the device of this name (None: the GPU, else the CPU); raises UserError."""
    processes = Processes({})  # whatever torchrun has left in the environment
    processes.use(name)
    return processes
