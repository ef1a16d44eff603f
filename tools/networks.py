"""Trained networks, opened from what a run leaves, with the history that lies beside them."""

import importlib
from pathlib import Path

import torch
from engine.cli import UserError
from torch import nn

from engine import artefacts
from h5array import DEFAULT_CLASS_NAMES

WHOLE, LITE = "_model.pt", "_model_lite.pt"


def open_network(path, device):
    """(network in eval mode, history) of NAME_model.pt or NAME_model_lite.pt.

    A whole network (NAME_model.pt) is unpickled, which runs code from the file. The weights alone
    (NAME_model_lite.pt) run none; the network is then built by the script MTL_NAME.py with the
    settings of the history.

    Raises:
        UserError: the file or the history NAME_history.pt beside it is missing, damaged, or of
            another version of the script.
    """
    path = Path(path)
    ending = next((e for e in (WHOLE, LITE) if path.name.endswith(e)), None)
    if not path.is_file() or ending is None:
        found = "no such file" if ending else path.name
        raise UserError(f"{path}: expected a file NAME{WHOLE} or NAME{LITE}, found {found}")
    name = path.name.removesuffix(ending)
    history = read_history(path.with_name(f"{name}_history.pt"))
    network = _unpickled(path, device) if ending == WHOLE else _built(path, history, device)
    return network.eval(), history


def read_history(path):
    """The history at `path`, with class names for older ones that lack them.

    Raises:
        UserError: there is none, it is damaged, or something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected the history beside the network, found no such file")
    history = artefacts.load(path)
    missing = [key for key in ("name", "config", "side") if key not in history]
    if missing:
        raise UserError(f"{path}: expected a history, found no {', '.join(missing)} in it")
    return {"class_names": DEFAULT_CLASS_NAMES} | history


def script_of(history):
    """The module MTL_NAME with the constants of the run.

    Raises:
        UserError: there is no such script.
    """
    name = f"MTL_{history['name']}"
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name}.py: expected the run's script, found {error}") from error
    for constant, value in history["config"].items():
        if constant.isupper():
            setattr(module, constant, value)
    return module


def _unpickled(path, device):
    try:
        network = torch.load(path, map_location=device, weights_only=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        message = f"{path}: expected a whole network, found a damaged file ({reason})"
        raise UserError(message) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{path}: expected a whole network, found a {type(network).__name__}")
    return network


def _built(path, history, device):
    network = script_of(history).Network()
    try:
        network.load_state_dict(artefacts.load(path))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: expected the weights of MTL_{history['name']}.Network, found others"
        ) from error
    return network.to(device, memory_format=torch.channels_last)
