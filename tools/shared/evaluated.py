"""A trained network on a split of any data in the H5 layout."""

from dataload import H5Dataset
from engine.evaluation import evaluate
from parts.errors import UserError
from tools.shared.common import choose_device, to_stderr

BATCH_SIZE = 32


def open_split(folder, split, network):
    """The H5Dataset of a split for the tasks of a TrainedNetwork; warns of likely mistakes.

    Raises:
        DataError: a file is missing or damaged.
        UserError: the sides do not fit the network.
    """
    targets = {name: task.target for name, task in network.tasks.items()}
    dataset = H5Dataset(split, folder, targets)
    stride = network.network.stride
    if dataset.side[0] % stride or dataset.side[1] % stride:
        found = f"{dataset.side[0]} x {dataset.side[1]}"
        raise UserError(f"{folder}: expected sides that are multiples of {stride}, found {found}")
    warn_of_other_names(dataset, network)
    trained = network.history.get("data_fingerprint", {}).get("train", {})
    found = dataset.fingerprint()["images"]
    if split != "train" and isinstance(trained, dict) and trained.get("images") == found:
        to_stderr(f"warning: {dataset.folder}: the network was trained on these images")
    return dataset


def warn_of_other_names(dataset, network):
    """Warn of files whose classes have other names, or another order, than a TrainedNetwork's."""
    for name, names in dataset.class_names.items():
        ours = network.class_names.get(name, names)
        if name in dataset.arrays and tuple(ours) != tuple(names):
            to_stderr(f"warning: {dataset.arrays[name].path}: expected {ours}, found {names}")


def evaluate_split(network, dataset):
    """{task: {"loss" or metric: (N, 2)}}, as of `engine.evaluation.evaluate`."""
    processes = choose_device(str(network.device))
    return evaluate(network.network, dataset, network.tasks, BATCH_SIZE, processes)
