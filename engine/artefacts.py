"""Atomic file writes, whose files a folder holds, and the provenance of a result."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from parts.errors import UserError

LIBRARIES = ("torch", "torchvision", "h5py", "numpy")


def marks(folder, name):
    """The two files, checkpoint and history, by which a folder holds a run of this name."""
    return folder / f"{name}_last.pt", folder / f"{name}_history.pt"


def refuse_another(folder, name, options, is_first):
    """Refuse a folder that holds a run, unless a flag says what becomes of it; raises UserError."""
    last, history = marks(folder, name)
    found = [path.name for path in (last, history) if path.is_file()]
    if found and not (options.resume or options.overwrite):
        raise UserError(
            f"--file-save-path: expected no run of {name} in {folder}, found {found[0]}; continue "
            "it with --resume, start anew with --overwrite, or choose another folder"
        )
    if options.resume and found == [history.name] and is_first:
        raise UserError(
            f"--resume: expected {last}, found a finished run without it; start anew with "
            "--overwrite"
        )


def versions():
    """{library: version} of what a result depends on, Python included."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version()} | found


def commit():
    """The git commit of the code, with "+" if the code has changed since; None outside git.

    Only a repository whose top level is ours counts, whatever folder or environment it lies in.
    """
    root = Path(__file__).resolve().parent.parent
    command = ["git", "--git-dir", str(root / ".git"), "--work-tree", str(root)]
    command += ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.strip()
    return None
