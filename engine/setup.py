"""Data, network and loss weighting of a run, checked before its first step."""

import contextlib
import os
import tempfile
from pathlib import Path

import torch

from dataload import SPLITS, H5Dataset, check_splits
from engine.script import check_tasks
from engine.training import Trainer
from parts.errors import UserError, as_flag_errors
from parts.sampling import seeded, training_side


@contextlib.contextmanager
def data_folder(path, draw=None):
    """The folder of the data, or a temporary one that `draw(folder)` fills.

    Raises:
        UserError: there is no such folder.
    """
    if not draw:
        folder = Path(os.path.expanduser(path))
        # unlike pathlib, os.path takes what may not be read for missing
        missing = [folder / split for split in SPLITS if not os.path.isdir(folder / split)]
        if missing:
            raise UserError(
                f"no data: expected train/, val/ and test/ in {path}, but {missing[0]} is not "
                "there or not readable; give the folder as --h5-save-path (tools/prepare_pets.py "
                "makes one), or try --demo"
            )
        yield folder
        return
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "demo")
        yield Path(folder) / "demo"


def open_data(folder, tasks):
    """{split: H5Dataset} of a folder; UserError if the splits do not fit together, or one of them
    has no known target of the first task."""
    targets = {name: task.target for name, task in tasks.items()}
    data = {split: H5Dataset(split, folder, targets) for split in SPLITS}
    check_splits(data, [next(iter(tasks))])
    return data


def run_files(folder, name):
    """Checkpoint and history of a run of this name, the files by which a folder holds it."""
    return folder / f"{name}_last.pt", folder / f"{name}_history.pt"


def refuse_existing_run(folder, name, options, is_first):
    """UserError if the folder holds a run, without --resume or --overwrite."""
    last, history = run_files(folder, name)
    found = [path.name for path in (last, history) if os.path.isfile(path)]
    if found and not (options.resume or options.overwrite):
        raise UserError(
            f"--file-save-path: expected no run of {name} in {folder}, found {found[0]}; continue "
            "it with --resume, start over with --overwrite, or choose another folder"
        )
    if options.resume and found == [history.name] and is_first:
        raise UserError(
            f"--resume: expected {last}, found a finished run without it; start over with "
            "--overwrite"
        )


def build(script, settings, options, train, processes):
    """The Trainer of a run, checked against the training data.

    Raises:
        UserError: script, settings and data do not fit together.
    """
    tasks = script.module.TASKS
    device, sizes = processes.device, (min(settings.BATCH_SIZE, len(train)), processes.size)
    if sizes[0] % sizes[1]:
        cut = f", cut to {sizes[0]} images" if sizes[0] < settings.BATCH_SIZE else ""
        raise UserError(
            f"--batch-size: expected a multiple of the {sizes[1]} processes, found "
            f"{settings.BATCH_SIZE}{cut}"
        )
    seeded(settings.SEED)
    with as_flag_errors():
        network, weighting = script.module.Network(), script.module.weighting()
        augment = script.module.augmentation()
    augment.complete = train.complete
    network = network.to(device, memory_format=torch.channels_last)
    image, targets = train[0]
    check_side(network, train.side, settings, sizes[0] // sizes[1])
    with torch.inference_mode():  # weights may be learned
        outputs = network.eval()(image[None].to(device))
        weights = {task: float(weight) for task, weight in weighting.weights().items()}
    check_tasks(tasks, weights, outputs, targets)
    steps = settings.EPOCHS * (len(train) // sizes[0])
    check_interface(network, weighting, options.diagnose)
    trainer = Trainer(
        network, tasks, weighting, augment, settings, steps, processes, options.diagnose
    )
    if options.compile:
        trainer.compile()
    return trainer


def apply_start(module, trainer):
    """Run the script's `start(network)`, if it has one, on a new run's network; UserError."""
    if hasattr(module, "start"):
        with as_flag_errors():
            module.start(trainer.network)
        trainer.average.module.load_state_dict(trainer.network.state_dict())


def check_interface(network, weighting, diagnose):
    """UserError if gradients are to be measured and the network has no encoder or decode."""
    asks = "--diagnose" if diagnose else type(weighting).__name__
    lacks = [name for name in ("encoder", "decode") if not callable(getattr(network, name, None))]
    if lacks and (diagnose or getattr(weighting, "needs_gradients", False)):
        raise UserError(
            f"{asks}: expected a Network with encoder(image), which gives the features that the "
            f"tasks share, and decode(features), found no {lacks[0]}"
        )


def stride_of(network):
    """The number of which image sides must be multiples; UserError if the network has none."""
    stride = getattr(network, "stride", None)
    if not isinstance(stride, int) or stride < 1:
        raise UserError(
            "Network: expected a whole number above 0 as attribute 'stride', of which image sides "
            f"must be multiples, found {stride}"
        )
    return stride


def check_side(network, full, settings, images):
    """UserError for a network without stride, or sides that it or its batch norm cannot take."""
    stride = stride_of(network)
    if full[0] % stride or full[1] % stride:
        raise UserError(
            f"--h5-save-path: image side: expected a multiple of {stride}, found "
            f"{full[0]} x {full[1]}"
        )
    epochs = range(1, settings.EPOCHS + 1)
    every = {training_side(settings.SIDES, e, settings.EPOCHS, full, stride) for e in epochs}
    if images == 1 and min(every) == (stride, stride):
        raise UserError(
            f"--batch-size: expected 2 or more images for each process, found 1; at {min(every)} "
            "pixels, one of --sides, batch norm would see one value per channel"
        )
