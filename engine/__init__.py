"""The loop and everything around it; knows no task, network or experiment by name.

cli.py        the constants of a script as command-line flags
run.py        one run from data to artefacts, resumed where it stopped
loop.py       the training step, an epoch, an evaluation
optimiser.py  Muon and AdamW under one schedule
average.py    the average of the weights
processes.py  one process or many (torchrun)
artefacts.py  files written whole or not at all
pictures.py   the loss curve and the test picture
report.py     what a run tells while it goes; CSV and TensorBoard twins of the history
"""

from engine.run import main

__all__ = ["main"]
