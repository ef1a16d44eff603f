"""Trained networks, opened from what a run leaves, with the history that belongs to them."""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from engine import artefacts, script
from engine.settings import UserError, arguments_from
from h5array import DEFAULT_CLASS_NAMES
from tools.common import complain

WHOLE, LITE, LAST = "_model.pt", "_model_lite.pt", "_last.pt"


def open_network(path, device):
    """(network in eval mode, history) from a file of a run.

    NAME_model.pt is a whole network, a pickle, which runs code. NAME_model_lite.pt holds weights
    and NAME_last.pt, of a stopped run, its best weights so far: they run no code; the run's script
    builds the network with the run's settings. The history is in NAME_history.pt beside the file,
    or in the file itself, if that is a checkpoint or holds {"state": weights, "about": history}.

    Raises:
        UserError: the file or its history is missing, damaged, without weights yet, or of another
            version of the script.
    """
    path = Path(path)
    ending = next((e for e in (WHOLE, LITE, LAST) if path.name.endswith(e)), None)
    if not path.is_file() or ending is None:
        names, found = f"NAME{WHOLE}, NAME{LITE} or NAME{LAST}", "no such file" if ending else path
        raise UserError(f"{path}: expected a file {names}, found {found}")
    beside = path.with_name(f"{path.name.removesuffix(ending)}_history.pt")
    if ending == WHOLE:
        history = _read_history(beside)
        return _unpickled(path, device).eval(), history
    content = artefacts.load(path)
    if ending == LAST:
        content = _best_so_far(content, path)
    if isinstance(content, dict) and content.keys() == {"state", "about"}:
        state, history = content["state"], _checked(content["about"], path)
    else:
        state, history = content, _read_history(beside)
    return _built(path, state, history, device).eval(), history


def tasks_of(history):
    """{name: Task} of the script that a history is of; raises UserError if it is not there."""
    return script.load(history["script"]).module.TASKS


def _read_history(path):
    if not path.is_file():
        raise UserError(f"{path}: expected the history beside the network, found no such file")
    return _checked(artefacts.load(path), path)


def _checked(history, path):
    """A history, with what older ones lack; raises UserError if it is something else."""
    found = history if isinstance(history, dict) else {}
    missing = [key for key in ("name", "config", "side") if key not in found]
    if missing:
        raise UserError(f"{path}: expected a history, found no {', '.join(missing)} in it")
    return {"class_names": DEFAULT_CLASS_NAMES, "script": f"MTL_{found['name']}"} | found


def _best_so_far(content, path):
    """{"state", "about"} of a checkpoint; says on stderr how far an unfinished run has come."""
    if not isinstance(content, dict) or not {"about", "history", "best"} <= content.keys():
        raise UserError(f"{path}: expected a checkpoint of this version, found something else")
    history = _checked(content["about"], path) | content["history"]
    done, epochs = len(history["seconds"]), history["config"]["EPOCHS"]
    if content["best"] is None:
        raise UserError(f"{path}: expected weights, found a run that has not finished an epoch")
    if done < epochs:
        best = f"epoch {history['best_epoch']}, the best of {done} out of {epochs}"
        complain(f"{path}: the run is unfinished; these are the weights of {best}")
    return {"state": content["best"], "about": history}


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


def _built(path, state, history, device):
    """The script's network, given the settings that its signature names, and these weights."""
    kind = script.load(history["script"]).module.Network
    network = kind(**arguments_from(SimpleNamespace(**history["config"]), kind))
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        wanted = f"the weights of {history['script']}.Network"
        raise UserError(f"{path}: expected {wanted}, found others") from error
    return network.to(device, memory_format=torch.channels_last)
