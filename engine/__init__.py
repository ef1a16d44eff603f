"""The run of an experiment and everything around it; knows no task, network or metric by name.

settings.py     the constants of a script as settings, and its command line
script.py       a script loaded from its file, and what it must define
tasks.py        the three tasks, assembled: the only file here that names them
run.py          one run from data to artefacts, resumed where it stopped
training.py     the training step and everything that learns
batches.py      which samples a step sees, at which side, and how they reach the device
evaluation.py   losses and metrics of a split
optimiser.py    Muon and AdamW under one schedule
average.py      the average of the weights
precision.py    bf16 where it is native
processes.py    one process or many (torchrun), and the signals that stop a run
artefacts.py    atomic file writes, whose files a folder holds, and the provenance of a result
results.py      what a finished run writes
pictures.py     the loss curve, the test picture and the gradients' curves
report.py       what a run prints; CSV and TensorBoard copies of its history
"""

import os
import sys
from pathlib import Path

if "ipykernel" not in sys.modules:  # outside a notebook, pictures go to files only; a notebook's
    os.environ["MPLBACKEND"] = "agg"  # own backend, inherited by `!python`, may not be importable


def main(file, argv=None):
    """Run the experiment in a script, with flags from the command line.

    `engine.main(__file__)` in a script makes the file the experiment, so a copy of it is another
    one. In a notebook, `engine.main("MTL_main.py", ["--demo"])` does the same.

    Args:
        file: the script.
        argv: the flags; by default those of the command line that started the script, else none.

    Raises:
        SystemExit: code 2 and one line on stderr for a user's mistake or a damaged file;
            128 + signal number after Ctrl-C, SIGTERM or SIGHUP.
    """
    from engine.report import STDERR
    from engine.script import load
    from engine.settings import UserError, parse

    try:
        script = load(file)
        if argv is None:
            started = sys.argv and Path(sys.argv[0]).resolve() == Path(file).resolve()
            argv = sys.argv[1:] if started else []
        settings, options = parse(script, argv)
        from engine.run import execute  # late, so that --help and a wrong flag answer quickly

        execute(script, settings, options)
    except UserError as error:
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        if alone or os.environ.get("RANK") == "0":  # every process finds the same mistake
            STDERR.write(f"{Path(file).name}: {error}\n")
            STDERR.flush()
        sys.exit(2)


__all__ = ["main"]
