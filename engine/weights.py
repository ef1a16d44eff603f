"""Starting from the weights of another run."""

import os
import zlib
from pathlib import Path

import torch
from torch import nn

from engine.script import ROOT, pickle_from
from parts.commandline import count_by_part
from parts.errors import UserError, one_line
from parts.files import load, load_safetensors


def weights_file(place):
    """The path of a file of weights, in the current folder or the repository; UserError."""
    path = Path(os.path.expanduser(place))
    for each in (path, ROOT / path):
        if os.path.isfile(each) and os.access(each, os.R_OK):
            return each
    raise UserError(f"--weights: expected a file of weights, found no readable file {place}")


def identity(path):
    """{"path": text, "checksum": text} of a file of weights, for the history."""
    return {"path": str(path), "checksum": f"{zlib.crc32(path.read_bytes()):08x}"}


def same_source(one, other):
    """Whether two identities, or None for no weights, are of the same content at any place."""
    return (one or {}).get("checksum") == (other or {}).get("checksum")


def describe_source(source):
    """An identity in words, with the checksum, since the file at that path may have changed."""
    return f"{source['path']} of checksum {source['checksum']}" if source else "none"


def take_weights(path, *networks):
    """Copy the weights of a file that fit by name and shape into networks of one class.

    Args:
        path: of NAME_model_lite.pt, NAME_model.pt (a pickle, which runs code: open only those you
            trust) or NAME_last.pt of any script, or a .safetensors file.

    Returns:
        A line that says how many tensors were loaded, and which parts of the network got none.

    Raises:
        UserError: the file is damaged, nothing in it fits, or a weight is not finite.
    """
    state = weights_in(path)
    for network in networks:
        own = network.state_dict()
        fits = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
        if not fits:
            raise UserError(
                f"--weights: expected weights that fit this network, found none in {path}"
            )
        for name, tensor in fits.items():
            if not tensor.isfinite().all():
                raise UserError(f"--weights: expected finite weights, found {name} in {path}")
        network.load_state_dict(fits, strict=False)
    others = count_by_part("not loaded", own.keys() - fits.keys())
    return f"--weights: loaded {len(fits)} of {len(own)} tensors from {path}{others}"


def weights_in(path):
    """{name: tensor} in a file of a run, or in one made for distribution.

    Raises:
        UserError: the file is damaged or holds no weights.
    """
    if path.suffix == ".safetensors":
        found = load_safetensors(path)
    elif path.name.endswith("_model.pt"):
        try:
            module = pickle_from(path.parent)
            found = torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
        except UserError:
            raise
        except Exception as error:
            reason = one_line(error)[:200]
            raise UserError(
                f"{path}: expected a network, found a damaged file ({reason})"
            ) from error
        found = found.state_dict() if isinstance(found, nn.Module) else found
    else:
        found = load(path)
    if isinstance(found, dict) and isinstance(found.get("history"), dict):  # a checkpoint
        found = found.get("best") or found.get("network")
    if isinstance(found, dict) and isinstance(found.get("state"), dict):  # for distribution
        found = found["state"]
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise UserError(f"{path}: expected weights, found something else")
    return found
