"""A trained network, opened from any file of its run."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine import script
from engine.evaluation import predict
from engine.processes import Processes
from engine.weights import weights_in
from parts.errors import UserError
from parts.files import load
from parts.paint import as_pixels, draw_all
from parts.streams import STDERR

WHOLE, LITE, LAST = "_model.pt", "_model_lite.pt", "_last.pt"


class TrainedNetwork:
    """A network with its weights, ready to predict.

    Attributes:
        network: the torch module, in eval mode.
        tasks: {name: Task}.
        history: of the run; for a stopped run, so far.
        class_names: {task: names of its classes}.
        side: (H, W) in pixels of the images that it was trained on.
        device: the torch device.
    """

    def __init__(self, network, tasks, history, device):
        self.network, self.tasks, self.history, self.device = network, tasks, history, device
        self.side = tuple(history["side"])
        names = history.get("class_names", {})
        if not isinstance(names, dict):  # older runs name the classes of their only label
            labels = [name for name, task in tasks.items() if not task.target.per_pixel]
            labels = [name for name in labels if tasks[name].target.classes == len(names)]
            names = dict.fromkeys(labels, names)
        defaults = {name: task.target.default_names for name, task in tasks.items()}
        self.class_names = defaults | names

    def outputs(self, images):
        """The outputs for images uint8 (B, 3, H, W) of the training side: a list of {task: output},
        fp32 on the CPU, without batch dimension; a single logit has the shape (1,)."""
        return predict(self.network, images.to(self.device))

    def output(self, image):
        """{task: output} for one image, uint8 (H, W, 3) RGB of any size."""
        picture = Image.fromarray(as_pixels(image))
        pixels = np.array(picture.resize(self.side[::-1], Image.Resampling.BILINEAR))
        return self.outputs(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]

    def predict(self, image):
        """The predictions for one image, uint8 (H, W, 3) RGB of any size.

        Returns:
            {name: value}: for the pets "mask" (uint8 (H, W), 255 on the animal), "mask_area" (share
            of the image), "box" (xmin, ymin, xmax, ymax in pixels of the image), "class" and
            "probability"; what the network lacks is absent.
        """
        height, width = as_pixels(image).shape[:2]
        return self.describe(self.output(image), (width, height))

    def describe(self, output, size):
        """The same from an output of `output`, for a picture of `size` (width, height)."""
        found = {}
        for name, task in self.tasks.items():
            described = task.describe(output[name], size, self.class_names[name])
            for key, value in described.items():
                found[f"{name}_{key}" if key in found else key] = value  # names may repeat
        return found

    def draw(self, image, values):
        """An image uint8 (3, H, W) with {task: target or output} drawn on it, and words."""
        return draw_all(image, values, self.tasks, self.class_names)


def open_network(path, device=None):
    """The TrainedNetwork in a file of a run.

    The run's script, executed with the run's constants, builds the network. Its weights are those
    of NAME_model.pt (a pickle, which runs code: open only those you trust), of NAME_model_lite.pt,
    or the best so far in NAME_last.pt of a stopped run. The history is in NAME_history.pt beside
    the file, or in the file itself if it is a checkpoint or holds {"state": weights, "about":
    history}.

    Args:
        device: its name; None is the GPU if there is one, else the CPU.

    Raises:
        UserError: a file is missing, damaged or of another version of the script.
    """
    processes = Processes({})  # one, whatever torchrun has left in the environment
    processes.use(None if device is None else str(device))
    path = Path(os.path.expanduser(path))
    state, history = state_and_history(path)
    place = script.find(history["script"], path.parent)
    module = script.load_recorded(place, history["config"])
    network = module.Network()
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected the weights of {place}, found others") from error
    network = network.to(processes.device, memory_format=torch.channels_last).eval()
    return TrainedNetwork(network, module.TASKS, history, processes.device)


def state_and_history(path):
    """The weights {name: tensor} in a file of a run, and its history; raises UserError."""
    if path.name.endswith("_history.pt"):
        path = path.with_name(f"{path.name.removesuffix('_history.pt')}{LITE}")
    ending = next((e for e in (WHOLE, LITE, LAST) if path.name.endswith(e)), None)
    if not path.is_file() or ending is None:
        names, found = f"NAME{WHOLE}, NAME{LITE} or NAME{LAST}", "no such file" if ending else path
        raise UserError(f"{path}: expected a file {names}, found {found}")
    content = weights_in(path) if ending == WHOLE else load(path)
    if ending == LAST:
        content = _best_so_far(content, path)
    if isinstance(content, dict) and content.keys() == {"state", "about"}:
        return content["state"], _checked(content["about"], path)
    beside = path.with_name(f"{path.name.removesuffix(ending)}_history.pt")
    if not beside.is_file():
        raise UserError(f"{beside}: expected the history beside the network, found no file")
    return content, _checked(load(beside), beside)


def _checked(history, path):
    """A history, completed with what older ones lack; raises UserError if it is something else."""
    found = history if isinstance(history, dict) else {}
    missing = [key for key in ("name", "config", "side") if key not in found]
    if missing:
        raise UserError(f"{path}: expected a history, found no {', '.join(missing)} in it")
    return {"script": f"MTL_{found['name']}"} | found


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
        STDERR.say(f"{path}: the run is unfinished; these are the weights of {best}")
    return {"state": content["best"], "about": history}
