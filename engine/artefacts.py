"""Files written whole or not at all."""

import contextlib
import os
import platform
from pathlib import Path

import h5py
import numpy
import torch
import torchvision

from engine.cli import UserError


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path in the same folder; renamed to `path` on success, removed on failure.

    A kill at any moment leaves the old file or the new one.

    Raises:
        UserError: the file cannot be written; the old one stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise UserError(f"{path}: cannot be written ({' '.join(str(error).split())})") from error
    finally:
        temporary.unlink(missing_ok=True)


def save(content, path):
    """torch.save, whole or not at all; raises UserError."""
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load(path):
    """Tensors and plain values of a checkpoint; never runs code from the file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: expected a checkpoint, found a damaged file ({reason})"
        ) from error


def output_folder(path):
    """Make the folder and see that it can be written to.

    Raises:
        UserError: it cannot.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--file-save-path: cannot make {folder} ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"--file-save-path: expected a writable folder, found {folder}")
    return folder


def versions():
    """{library: version} of what a result depends on."""
    libraries = {
        module.__name__: module.__version__ for module in (torch, torchvision, h5py, numpy)
    }
    return {"python": platform.python_version()} | {k: str(v) for k, v in libraries.items()}
