"""Files written whole or not at all."""

import contextlib
import io
import os
import platform
import zlib
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
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def save(content, path):
    """torch.save, whole or not at all; raises UserError.

    By way of memory, because torch writes "unexpected pos" where the system says "disk full".
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(path):
    """Tensors and plain values of a checkpoint; never runs code from the file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
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


def remove_leftovers(folder, name):
    """Remove temporary files that a killed run of this name has left."""
    for path in Path(folder).glob(f".{name}_*.part*"):
        path.unlink(missing_ok=True)


def fingerprint(dataset):
    """Number of samples and a checksum, as text; eight samples stand for all, so it is quick."""
    checksum, count = 0, min(len(dataset), 8)
    images, targets = dataset[[i * len(dataset) // count for i in range(count)]]
    for tensor in (images, *targets.values()):
        checksum = zlib.crc32(tensor.contiguous().numpy().tobytes(), checksum)
    return f"{len(dataset)} samples of checksum {checksum:08x}"


def versions():
    """{library: version} of what a result depends on."""
    libraries = {
        module.__name__: module.__version__ for module in (torch, torchvision, h5py, numpy)
    }
    return {"python": platform.python_version()} | {k: str(v) for k, v in libraries.items()}
