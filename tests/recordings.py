"""What a run of recording.py was told, epoch by epoch, on data that tell the samples apart."""

import collections
import sys

import numpy as np
import pytest
import torch
from running import load, name_of, run

from dataload import write_split

EPOCHS, STEPS, BATCH, SIDE = 4, 3, 4, 16
FLAGS = ["--epochs", str(EPOCHS), "--batch-size", str(BATCH)]
COLOUR = (180, 90, 40)  # of every training image, so that augmentation tells what it has drawn
TASKS = ("seg", "bbox", "bin")


def write_striped(folder, split, count, **changes):
    """A split of samples that are their own mirror images.

    Sample i has a box from row i on; that of sample 11 is unknown, as are three labels and some
    pixels.
    """
    rows, random = np.arange(count), np.random.default_rng(count)
    images = random.integers(0, 256, (count, SIDE, 1, 3), np.uint8).repeat(SIDE, axis=2)
    if split == "train":
        images[:] = COLOUR
    masks = (np.arange(SIDE)[:, None, None] < 4 + rows[:, None, None, None]) * 1
    masks = masks.repeat(SIDE, axis=2).astype(np.uint8)
    masks[::3, -2:] = 255
    boxes = np.stack([rows * 0 + 4.0, rows, rows * 0 + 12, rows + 4], axis=1)
    boxes[11:] = np.nan
    labels = np.where(rows % 5 == 2, -1, rows % 2)
    arrays = {"images": images, "masks": masks, "bboxes": boxes, "binary": labels} | changes
    write_split(folder / split, arrays, {}, {})


@pytest.fixture(scope="session")
def striped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("striped")
    for split, count in {"train": 12, "val": 5, "test": 7}.items():
        write_striped(folder, split, count)
    return folder


def train(script, data, out, *flags):
    """What a run leaves in its checkpoint; it draws nothing, which takes longer than training."""
    import engine.results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.results, "_gigaflop", lambda *arguments: 0.0)
        patch.setattr(engine.results, "write_others", lambda *arguments: None)
        run(script, data, out, *flags)
    return load(out / f"{name_of(script)}_last.pt")


def told(log):
    """[{"steps": [...], "ends": [means], "seen": [...]}] of a log, an entry for every epoch.

    A step and a batch that was evaluated ("seen") are what the network was told, with "targets"
    and "losses" of each task; a step also has what its weighting was told. What follows the last
    epoch is in its "seen" as well.
    """
    count = collections.Counter(id_of(e) for e in log if e["what"] == "forward" and e["training"])
    trained = count.most_common(1)[0][0]
    is_step = [e["what"] == "forward" and e["training"] and id_of(e) == trained for e in log]
    epochs, evaluated = [{"steps": [], "ends": [], "seen": []}], None
    for entry in log[is_step.index(True) :]:
        epoch = epochs[-1]
        if entry["what"] == "forward":
            batch = entry | {"targets": {}, "losses": {}}
            if not entry["training"]:
                evaluated = evaluated or id_of(entry)
            if entry["training"] and id_of(entry) == trained:
                if epoch["ends"]:
                    epochs.append(epoch := {"steps": [], "ends": [], "seen": []})
                epoch["steps"].append(batch)
            elif not entry["training"] and id_of(entry) == evaluated:
                epoch["seen"].append(batch)
        elif entry["what"] == "loss":
            batch["targets"][entry["task"]] = entry["target"]
            batch["losses"][entry["task"]] = entry["losses"]
        elif entry["what"] == "weighting":
            batch["weighting"] = entry
        else:
            epoch["ends"].append(entry["means"])
    return epochs


def id_of(entry):
    network = entry["network"]
    return network if isinstance(network, int) else id(network)


def record(data, out, *flags):
    """(epochs as `told`, checkpoint) of a run of recording.py here."""
    checkpoint = train("tests/recording", data, out, *FLAGS, *flags)
    return told(sys.modules["tests.recording"].log), checkpoint


@pytest.fixture(scope="session")
def recorded(striped, tmp_path_factory):
    return record(striped, tmp_path_factory.mktemp("recorded") / "out")


def steps_of(epochs):
    return [step for epoch in epochs for step in epoch["steps"]]


def samples(step):
    """The numbers of a batch's samples, by their boxes."""
    return torch.nan_to_num(step["targets"]["bbox"][:, 1] * SIDE, 11).round().int().tolist()
