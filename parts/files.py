"""Atomic writes, checkpoints, and output folders that only one program uses at a time."""

import contextlib
import csv
import glob
import io
import os
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from parts.errors import UserError, one_line


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
        with open(temporary, "r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):  # there is none, or the disk is gone
            temporary.unlink()


def save(content, path, **options):
    """torch.save with its options as an atomic write; raises UserError.

    The content is first written to memory, because on a full disk torch reports "unexpected pos".
    """
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(path):
    """Tensors and plain values from a checkpoint; never runs code from the file.

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


def load_safetensors(path):
    """{name: tensor} of a .safetensors file; UserError if the package is missing."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(
            f"{path}: expected a .pt file, found one of the package safetensors; pip install "
            "safetensors to read it"
        ) from error
    try:
        return load_file(path)
    except Exception as error:  # the package has its own class, raised from Rust
        reason = one_line(error)
        raise UserError(f"{path}: expected weights, found a damaged file ({reason})") from error


def output_folder(path, flag="--file-save-path"):
    """The folder as a Path, created if necessary and writable; ~ is the home folder.

    Raises:
        UserError: the folder cannot be created or written to; names the flag.
    """
    folder = Path(os.path.expanduser(path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag}: cannot create the folder {folder} ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{flag}: expected a writable folder, found {folder}")
    return folder


def remove_leftovers(paths):
    """Remove the temporary files that killed runs have left beside these files."""
    for path in paths:
        for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.part*"):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder, name):
    """A block during which no other run may write files of this name to the folder.

    The system releases the lock of a killed process. On a file system without locks nothing guards.

    Raises:
        UserError: another run has the lock.
    """
    path = folder / f".{name}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"--file-save-path: expected no other run of {name} in {folder}, found one that is "
            "still going; wait for it, or choose another folder"
        ) from error
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            path.unlink()
        lock.release()


def save_csv(history, path):
    """One row per epoch: epoch, train_*, val_*, seconds; every digit of the history.

    Raises:
        UserError: the file cannot be written.
    """
    columns = {"epoch": range(1, len(history["seconds"]) + 1)}
    for part in ("train", "val"):
        columns |= {f"{part}_{name}": series for name, series in history[part].items()}
    columns["seconds"] = history["seconds"]
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
