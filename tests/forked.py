"""New processes that cost no import of torch, and know nothing of the repository."""

import io
import multiprocessing
import sys
from pathlib import Path

import torch
from running import PRELOAD, ROOT

OURS = ("dataload", "MTL_Utils", "ResBlock", "parts", "engine", "tools", "examples")


def in_a_new_process(action, *given):
    """What a module-level function prints in a process that is forked from one with torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    read, write = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(write, action, given))
    process.start()
    write.close()
    printed = read.recv()
    process.join()
    assert process.exitcode == 0, printed
    return printed


def _child(write, action, given):
    sys.stdout = sys.stderr = printed = io.StringIO()
    torch.set_num_threads(1)
    try:
        action(*given)
    finally:
        write.send(printed.getvalue())


def forget_us(*folders):
    """Make this process one in which nothing of the repository was imported or is found.

    Args:
        folders: put first in the path for imports.
    """
    for name in [n for n in sys.modules if n.split(".")[0] in OURS or n.startswith("MTL_")]:
        del sys.modules[name]
    ours = (ROOT, ROOT / "tests")
    sys.path = [*folders, *(p for p in sys.path if Path(p).resolve() not in ours)]
