"""What a result depends on besides its settings: the commit and the libraries."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "h5py", "numpy")


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
