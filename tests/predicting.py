"""A network that segments what is bright, runs of it, and tools/predict.py."""

import json

import numpy as np
import pytest
from PIL import Image

from engine import script
from parts import files
from tools import predict

SIDE = (32, 64)
BLUE, ORANGE = [0, 114, 178], [230, 159, 0]  # outline of the animal, box
# Segments what is bright; always the same box and class. HEADS are the tasks that it has.
SCRIPT = """
import torch
from torch import nn

from MTL_Utils import BBOX, BIN, SEG, Task
from parts.targets import PixelValues, Values

HEADS = ("seg", "bbox", "bin")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.level = HEADS, nn.Parameter(torch.tensor(127.5))

    def forward(self, image):
        assert image.shape[2:] == (32, 64) and image.dtype == torch.uint8
        outputs = {
            "seg": image.float().mean(1, keepdim=True) - self.level,
            "bbox": torch.tensor([0.25, 0.5, 0.75, 1.0]).repeat(len(image), 1),
            "bin": torch.full((len(image),), -2.0),
            "far": image.float().mean(1, keepdim=True) / 100,
            "fur": image.float().mean((1, 2, 3)),
        }
        return {task: outputs[task] for task in self.heads}


def paint(image, value, names):
    return image.index_fill(1, torch.tensor([0]), 7), f"fur {value.item():.0f}"


def tell(output, size, names):
    mask = torch.full(size[::-1], 9, dtype=torch.uint8).numpy()
    return {"brightness": round(output.item(), 1), "mask": mask}


FUR = Task(Values("fur"), None, None, primary="error", draw=paint, describe=tell)
FAR = Task(PixelValues("far"), None, None, primary="error")
TASKS = {"seg": SEG, "far": FAR, "bbox": BBOX, "bin": BIN, "fur": FUR}
TASKS = {name: task for name, task in TASKS.items() if name in HEADS}
"""


def record(path, heads=("seg", "bbox", "bin"), names=("cat", "dog"), **more):
    """What a history or a checkpoint says of a run of MTL_bright."""
    config = {"EPOCHS": 3, "HEADS": heads, "demo": False}
    about = {"name": "bright", "script": str(path), "config": config, "side": SIDE}
    return about | {"class_names": {"bin": names}} | more


def save_run(path, folder, heads=("seg", "bbox", "bin"), level=127.5, **more):
    """NAME_model.pt of a run of MTL_bright, NAME_model_lite.pt and the history beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    network = script.load(path, HEADS=heads).Network()
    network.level.data.fill_(level)
    files.save(record(path, heads, **more), folder / "bright_history.pt")
    files.save(network, folder / "bright_model.pt", pickle_module=script.PICKLE)
    files.save(network.state_dict(), folder / "bright_model_lite.pt")
    return folder / "bright_model.pt"


def upper_half(width=200, height=100):
    """A grey picture (height, width), white above and black below."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[: height // 2] = 255
    return pixels


def white(path, size=(10, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "white").save(path)
    return path


@pytest.fixture(scope="session")
def bright(tmp_path_factory):
    """The script MTL_bright, somewhere outside the repository."""
    path = tmp_path_factory.mktemp("script") / "MTL_bright.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="session")
def model(bright, tmp_path_factory):
    return save_run(bright, tmp_path_factory.mktemp("model"))


@pytest.fixture
def call(model, tmp_path, capsys):
    """A function that runs the tool: (lines of JSON, stderr)."""

    def run(*arguments, code=0, model=model, out=tmp_path / "out"):
        assert predict.main([str(model), *map(str, arguments), "--out", str(out)]) == code
        printed = capsys.readouterr()
        return [json.loads(line) for line in printed.out.splitlines()], printed.err

    return run
