"""Trained networks, opened from the files of a run together with their history."""

from pathlib import Path
from types import SimpleNamespace

import torch

from dataload import H5Dataset
from engine import artefacts, script
from engine.settings import UserError, arguments_from, tasks_under
from engine.weights import weights_in
from parts.h5array import DEFAULT_CLASS_NAMES
from tools.shared.common import complain

WHOLE, LITE, LAST = "_model.pt", "_model_lite.pt", "_last.pt"


def open_network(path, device):
    """(network in eval mode, {name: Task}, history) from a file of a run.

    The run's script builds the network with the run's settings. Its weights are those of
    NAME_model.pt (a pickle, which runs code), of NAME_model_lite.pt, or the best so far in
    NAME_last.pt of a stopped run. The history is in NAME_history.pt beside the file, or in the file
    itself, if that is a checkpoint or holds {"state": weights, "about": history}.

    Raises UserError if one is missing, damaged or of another version of the script.
    """
    path = Path(path)
    ending = next((e for e in (WHOLE, LITE, LAST) if path.name.endswith(e)), None)
    if not path.is_file() or ending is None:
        names, found = f"NAME{WHOLE}, NAME{LITE} or NAME{LAST}", "no such file" if ending else path
        raise UserError(f"{path}: expected a file {names}, found {found}")
    content = weights_in(path) if ending == WHOLE else artefacts.load(path)
    if ending == LAST:
        content = _best_so_far(content, path)
    if isinstance(content, dict) and content.keys() == {"state", "about"}:
        content, history = content["state"], _checked(content["about"], path)
    else:
        beside = path.with_name(f"{path.name.removesuffix(ending)}_history.pt")
        if not beside.is_file():
            raise UserError(f"{beside}: expected the history beside the network, found no file")
        history = _checked(artefacts.load(beside), beside)
    module = script.load(history["script"]).module
    settings = arguments_from(SimpleNamespace(**history["config"]), module.Network)
    network = module.Network(**settings).to(device, memory_format=torch.channels_last)
    try:
        network.load_state_dict(content)
    except (RuntimeError, TypeError, AttributeError) as error:
        expected = f"the weights of {history['script']}.Network"
        raise UserError(f"{path}: expected {expected}, found others") from error
    return network.eval(), tasks_under(module, history["config"]), history


def open_data(folder, split, history):
    """The H5Dataset of a split, checked to be the one of a run; raises DataError or UserError."""
    dataset = H5Dataset(split, folder)
    expected = history.get("data_fingerprint", {}).get(split, "which is not recorded")
    if dataset.fingerprint() != expected:
        found = dataset.fingerprint()
        raise UserError(f"{folder / split}: expected the run's data, {expected}, found {found}")
    return dataset


def _checked(history, path):
    """A history, completed with what older ones lack; raises UserError if it is something else."""
    found = history if isinstance(history, dict) else {}
    missing = [key for key in ("name", "config", "side") if key not in found]
    if missing:
        raise UserError(f"{path}: expected a history, found no {', '.join(missing)} in it")
    return {"class_names": DEFAULT_CLASS_NAMES, "script": f"MTL_{found['name']}"} | found


def _best_so_far(content, path):
    """{"state", "about"} of a checkpoint; says on stderr if the run is unfinished."""
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
