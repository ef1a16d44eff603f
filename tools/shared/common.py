"""What the tools share: the order of the scripts, one-line errors, paths and the device."""

import contextlib
import functools
import os
import sys
from pathlib import Path

from engine.processes import Processes
from parts.errors import UserError
from parts.files import output_folder
from parts.h5array import DataError
from parts.streams import STDERR

EXPERIMENTS = ("baseline", "main", "ablation_bbox", "ablation_bin", "OEQ")  # in table order


def command(work):
    """Turn a tool's `main(argv)` into `main(argv=None)`, which returns an exit code: `run_tool`."""
    name = Path(work.__code__.co_filename).name
    return functools.wraps(work)(lambda argv=None: run_tool(name, work, argv))


def run_tool(name, work, argv):
    """The exit code of `work(argv)`, which is 0 where it returns None.

    UserError, DataError, OSError and MemoryError become one line on stderr and exit code 2, Ctrl-C
    becomes exit code 130. If the reader of stdout closes it, as `| head -1` does, the tool ends
    silently with exit code 0.
    """
    with contextlib.suppress(AttributeError):  # stdout is None, or not a text file
        sys.stdout.reconfigure(errors="backslashreplace")  # cp1252 cannot encode every name
    try:
        code = work(argv) or 0
        print(end="", flush=True)
        return code
    except (UserError, DataError) as error:
        complain(f"{name}: {error}")
    except MemoryError:
        complain(f"{name}: expected enough memory, found too little; use smaller or fewer images")
    except OSError as error:
        with contextlib.suppress(OSError, AttributeError):  # discard what is buffered for stdout
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0
        reason = " ".join((error.strerror or str(error)).split())
        complain(f"{name}: {error.filename or 'stdout'}: {reason}")
    except KeyboardInterrupt:
        complain(f"{name}: interrupted")
        return 130
    return 2


def complain(line):
    """Print a line on stderr; a closed stderr is ignored."""
    STDERR.write(f"{line}\n")
    STDERR.flush()


def as_path(text, name):
    """The path in a text, with ~ as the home folder; UserError names `name` if it is empty."""
    if not str(text).strip():
        raise UserError(f"{name}: expected a path, found an empty one")
    return Path(os.path.expanduser(text))


def make_folder(path, flag):
    """The folder, created if necessary; UserError names the flag if it cannot be written to."""
    return output_folder(as_path(path, flag), flag)


def choose_device(name):
    """One process on the device of this name (None: the GPU, or else the CPU); raises UserError."""
    processes = Processes({})  # whatever torchrun has left in the environment
    processes.use(name)
    return processes
