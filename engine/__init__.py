"""The run of an experiment and everything around it; knows no task, network or metric by name.

settings.py     the constants of a script as settings, and their flags
script.py       a script executed under given constants, and what it must define
setup.py        data, network and loss weighting of a run, checked before its first step
run.py          one run from data to artefacts, resumed where it stopped
training.py     the training step, optimiser and weight average
batches.py      how samples reach the device
evaluation.py   losses and metrics of a split
processes.py    one process or many (torchrun)
results.py      what a finished run writes
pictures.py     the loss curve and the test picture
report.py       what a run prints, and its copy for TensorBoard
weights.py      starting from the weights of another run
trained.py      a trained network, opened from a file of its run
"""

import os
import sys
from pathlib import Path


def main(file, argv=None):
    """Run the experiment in a script, with flags from the command line.

    `engine.main(__file__)` makes a script an experiment, and every copy of it another one.
    In a notebook, `engine.main("MTL_main.py", ["--demo"])` does the same.

    Args:
        file: the script.
        argv: the flags; by default those of the command line that started the script, else none.

    Raises:
        SystemExit: code 2 and one line on stderr for a user's mistake or a damaged file;
            128 + signal number after Ctrl-C, SIGTERM or SIGHUP.
    """
    from engine.script import parse
    from parts.errors import UserError
    from parts.streams import STDERR

    size, rank = os.environ.get("WORLD_SIZE"), os.environ.get("RANK")
    is_said = size in (None, "", "1") or rank in (None, "", "0")  # all find the same wrong flag
    try:
        if argv is None:
            started = sys.argv and Path(sys.argv[0]).resolve() == Path(file).resolve()
            argv = sys.argv[1:] if started else []
        script, settings, options = parse(file, argv)
        from engine.run import execute  # late, so that --help and a wrong flag answer quickly

        is_said = True  # Processes.failing_together leaves an error of all to the first one
        execute(script, settings, options)
    except UserError as error:
        if is_said:
            STDERR.say(f"{Path(file).name}: {error}")
        sys.exit(2)


def load(place, **constants):
    """A script as a module, executed as if these constants had been edited: `script.load`.

    `engine.load("MTL_main.py", WIDTHS=(8, 16)).Network()` is the network that `--widths 8 16`
    trains.
    """
    from engine.script import load

    return load(place, **constants)


def open_network(path, device=None):
    """The trained network in any file of a run, ready to `predict(image)`: `trained.open_network`.

    The device is "cpu", "cuda", ...; by default the GPU if there is one.
    """
    from engine.trained import open_network

    return open_network(path, device)


__all__ = ["load", "main", "open_network"]
