"""Starting from the weights of another run."""

import os
from pathlib import Path

import torch
from torch import nn

from engine import artefacts
from engine.settings import UserError


def take_weights(place, *networks):
    """Copy the weights of a file that fit by name and shape into networks of one class.

    Args:
        place: NAME_model_lite.pt, NAME_model.pt (a pickle, which runs code: open only those you
            trust) or NAME_last.pt of any script.

    Returns:
        (the path as text, a line that says how many tensors were taken).

    Raises:
        UserError: the file is missing or damaged, or nothing in it fits.
    """
    path = Path(os.path.expanduser(place))
    if not path.is_file():
        raise UserError(f"--weights: expected a file of weights, found no such file {path}")
    state = weights_in(path)
    for network in networks:
        own = network.state_dict()
        fits = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
        if not fits:
            raise UserError(
                f"--weights: expected weights that fit this network, found none in {path}"
            )
        network.load_state_dict(fits, strict=False)
    return str(path), f"--weights: took {len(fits)} of {len(own)} tensors from {path}"


def weights_in(path):
    """{name: tensor} in a file of a run, or in one made for distribution.

    Raises:
        UserError: the file is damaged or holds no weights.
    """
    if path.name.endswith("_model.pt"):
        try:
            found = torch.load(path, map_location="cpu", weights_only=False)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: expected a network, found a damaged file ({reason})"
            ) from error
        found = found.state_dict() if isinstance(found, nn.Module) else found
    else:
        found = artefacts.load(path)
    if isinstance(found, dict) and isinstance(found.get("history"), dict):  # a checkpoint
        found = found.get("best") or found.get("network")
    if isinstance(found, dict) and isinstance(found.get("state"), dict):  # for distribution
        found = found["state"]
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise UserError(f"{path}: expected weights, found something else")
    return found
