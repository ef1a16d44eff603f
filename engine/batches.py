"""How samples reach the device."""

import io
import pickle

import torch
from torch.utils.data import DataLoader

from engine.script import Pickler
from parts.signals import ignore_stop_signals, stop_signals_blocked

WORKERS = 2  # processes that read from disk


def train_known(tasks, train):
    """Two bool (N,): whether a sample's target of the first task, and of any task, is known."""
    known = [train.known[name] for name in tasks]
    return known[0], torch.stack(known).any(0)


class PicklableDataset:
    """A data set that spawned workers can unpickle, even with functions of a script in it."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, numbers):
        return self.dataset[numbers]

    def __reduce__(self):
        content = io.BytesIO()
        Pickler(content).dump(self.dataset)
        return pickle.loads, (content.getvalue(),)


def loader(dataset, batches, device):
    """Yield batches (images, targets) on the device; with workers if the data are on disk."""
    on_host = dataset.device.type == "cpu"
    samples = DataLoader(
        PicklableDataset(dataset),
        sampler=batches,  # lists of sample numbers: dataset[[i, j]] is a batch
        batch_size=None,
        num_workers=0 if dataset.in_memory else WORKERS,
        pin_memory=device.type == "cuda" and on_host,
        worker_init_fn=ignore_stop_signals,
    )
    with stop_signals_blocked():  # workers inherit this: the parent decides when to stop
        samples = iter(samples)
    for images, targets in samples:
        targets = {task: target.to(device, non_blocking=True) for task, target in targets.items()}
        yield images.to(device, non_blocking=True), targets


def keep_on_device(datasets, device):
    """Move to a GPU, in order, each data set that takes at most half of its free memory."""
    if device.type != "cuda":
        return
    for dataset in datasets:
        free, _ = torch.cuda.mem_get_info(device)
        if dataset.in_memory and dataset.nbytes <= free / 2:
            dataset.to(device)
