"""recording: an experiment as small as one can be, which keeps all that the engine tells it.

Tests run it like any other script and then look into `log`, a list of dicts in the order of the
calls: "forward" of the network, "loss" of a task, "weighting" and "epoch end" of the weighting.
The engine executes the file anew for each run; `sys.modules["tests.recording"]` is the latest one.
Its dropout is applied to ones and only kept, so that nothing but its mask is random. With the
folder in the environment variable RECORDING, every process saves its log there.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import engine
from MTL_Utils import BBOX, BIN, SEG, FixedWeights
from parts.augment import Augment

H5_SAVE_PATH = "data"
FILE_SAVE_PATH = "runs/recording"

EPOCHS = 4
BATCH_SIZE = 4
LEARNING_RATE = 1e-2
SIDES = (0.5, 1.0)
WEIGHT_DECAY = 0.2
EMA_DECAY = 0.9
CLIP_NORM = 1e6
SEED = 0
LOSS_WEIGHTS = {"seg": 1.0, "bbox": 0.3, "bin": 0.2}

WIDTHS = (8, 8)
UNITS = 1  # of no use here, but tests/running.py sets it
LOOK = 1.0  # 0 makes the network blind
NORM = True  # whether there is a batch norm

DEGREES = 0.0
SCALE = (1.0, 1.0)
STRETCH = 1.0
SHIFT = 0.0
COLOUR = 0.4
ERASE = 0.0

log = []
sys.modules["tests.recording"] = sys.modules[__name__]


def keep(what, **values):
    log.append({"what": what, **values})


def copies(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


class Network(nn.Module):
    """Shape: image (B, 3, H, W) -> {"seg": (B, 1, H, W), "bbox": (B, 4), "bin": (B,)}."""

    def __init__(self):
        super().__init__()
        self.stride = 4
        self.hidden = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.norm = nn.BatchNorm2d(WIDTHS[0]) if NORM else nn.Identity()
        self.dropout = nn.Dropout(0.5)
        self.seg = nn.Conv2d(WIDTHS[0], 1, 1)
        self.bbox, self.bin = nn.Linear(WIDTHS[0], 4), nn.Linear(WIDTHS[0], 1)

    def forward(self, image):
        hidden = self.hidden(image * (LOOK / 64))
        if not torch.compiler.is_compiling():
            self.keep(image, hidden)
        hidden = self.norm(hidden).relu()
        mean = hidden.mean((2, 3))
        low, high = self.bbox(mean).sigmoid().chunk(2, dim=1)
        box = torch.cat([low / 2, (1 + high) / 2], dim=1)
        return {"seg": self.seg(hidden), "bbox": box, "bin": self.bin(mean)[:, 0]}

    def keep(self, image, hidden):
        keep(
            "forward",
            network=self,
            training=self.training,
            grad=torch.is_grad_enabled(),
            image=image.detach().clone(),
            dtype=hidden.dtype,
            dropped=self.dropout(torch.ones(len(image), 64)),
            state=copies(self.state_dict()),
        )


def recorded(name, task):
    """The task, whose loss keeps what it is given and gives."""

    def loss(output, target):
        losses = task.loss(output, target)
        if not torch.compiler.is_compiling():
            keep("loss", task=name, target=target.clone(), losses=losses.detach().clone())
        return losses

    return replace(task, loss=loss)


TASKS = {
    name: recorded(name, task) for name, task in {"seg": SEG, "bbox": BBOX, "bin": BIN}.items()
}


class Weighting(FixedWeights):
    """Fixed weights times a learned gain."""

    def __init__(self, weights):
        super().__init__(weights)
        self.gain = nn.Parameter(torch.ones(()))

    def batch_start(self, generator):
        self.drawn = torch.rand((), generator=generator).item()

    def forward(self, losses, known):
        if not torch.compiler.is_compiling():
            told = {"losses": copies(losses), "known": copies(known), "drawn": self.drawn}
            keep("weighting", gain=self.gain.item(), **told)
        return super().forward(losses, known) * self.gain

    def epoch_end(self, means):
        keep("epoch end", means=dict(means))
        if folder := os.environ.get("RECORDING"):
            told = [{**entry, "network": id(entry.get("network"))} for entry in log]
            torch.save(told, Path(folder) / f"{os.environ.get('RANK', 0)}.pt")


def weighting():
    return Weighting(LOSS_WEIGHTS)


def augmentation():
    return Augment(TASKS, DEGREES, SCALE, STRETCH, SHIFT, COLOUR, ERASE)


if __name__ == "__main__":
    engine.main(__file__)
