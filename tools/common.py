"""What several tools share: the scripts' order, mistakes in one line, folders to write to."""

import sys
from pathlib import Path

from engine.cli import UserError

from dataload import DataError
from engine.processes import Processes

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ("baseline", "main", "ablation_bbox", "ablation_bin", "OEQ")  # as they are told


def run_tool(name, work, argv):
    """The exit code of `work(argv)`, which is 0 where it returns None.

    A mistake of the user's (UserError) or damaged data (DataError) becomes one line on stderr and
    code 2, Ctrl-C code 130.
    """
    try:
        return work(argv) or 0
    except (UserError, DataError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def make_folder(path, flag):
    """The folder, made if it is not there.

    Raises:
        UserError: it cannot be made; names the flag.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag}: cannot make the folder {path} ({error.strerror})") from error
    return path


def choose_device(name):
    """A single process that computes on the device of this name, or on the GPU, or on the CPU.

    Raises:
        UserError: there is no such device.
    """
    processes = Processes()
    processes.use(name)
    return processes
