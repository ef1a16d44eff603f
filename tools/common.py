"""What several tools share: the scripts' order, mistakes in one line, paths, a device."""

import contextlib
import os
import sys
from pathlib import Path

from engine.processes import Processes
from engine.report import STDERR
from engine.settings import UserError
from h5array import DataError

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ("baseline", "main", "ablation_bbox", "ablation_bin", "OEQ")  # in table order


def run_tool(name, work, argv):
    """The exit code of `work(argv)`, which is 0 where it returns None.

    A user's mistake (UserError), damaged data (DataError) and what the system refuses
    (OSError) become one line on stderr and code 2, Ctrl-C code 130. A reader of stdout that has
    seen enough, as in `| head -1`, ends the tool with code 0 and without a word.
    """
    with contextlib.suppress(AttributeError):  # a stdout of cp1252 takes any name, escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = work(argv) or 0
        print(end="", flush=True)
        return code
    except (UserError, DataError) as error:
        complain(f"{name}: {error}")
    except OSError as error:
        with contextlib.suppress(OSError, AttributeError):  # what is left for stdout is lost
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0
        complain(f"{name}: {error.filename or 'stdout'}: {error.strerror or error}")
    except KeyboardInterrupt:
        complain(f"{name}: interrupted")
        return 130
    return 2


def complain(line):
    """Print a line on stderr; a closed stderr does no harm."""
    STDERR.write(f"{line}\n")
    STDERR.flush()


def as_path(text, name):
    """The path in a text, ~ being the home folder; an empty one is a UserError that says `name`."""
    if not str(text).strip():
        raise UserError(f"{name}: expected a path, found an empty one")
    return Path(os.path.expanduser(text))


def make_folder(path, flag):
    """The folder, made if it is not there; a UserError that names the flag if it cannot be used."""
    path = as_path(path, flag)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag}: cannot make the folder {path} ({error.strerror})") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"{flag}: expected a writable folder, found {path}")
    return path


def choose_device(name):
    """One process, whatever torchrun has left in the environment, on the device of this name.

    Without a name, that is the GPU, or else the CPU. UserError: there is no such device.
    """
    processes = Processes({})
    processes.use(name)
    return processes
