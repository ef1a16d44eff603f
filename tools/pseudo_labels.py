"""Give every training image the masks, boxes and labels that a trained network predicts for it.

    python tools/pseudo_labels.py runs/few/OEQ_model_lite.pt data/pets_m10 --out data/pets_pseudo
    python tools/pseudo_labels.py runs/OEQ/OEQ_model_lite.pt data/pets --tasks bbox --out data/boxed

OUT is a copy of DATA in which what is unknown in train is predicted; val and test stay as they are.
A network that is then trained on OUT can become better than the first (self-training; Xie et al.
2020, arXiv:1911.04252). What is known, in whole or in part, stays as it is. The network sees images
at the side that it was trained on.
"""

import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS, DataError, H5Dataset
from engine.trained import open_network
from parts.commandline import Parser
from parts.errors import UserError
from parts.h5array import H5Array
from parts.h5file import new_h5_file
from tools.shared.common import as_path, command
from tools.shared.splitting import staged


def kinds_of(network, model, wanted):
    """{task: kind of target} of the tasks in `wanted`, or of all whose outputs a file can hold;
    raises UserError."""
    kinds = {name: task.target for name, task in network.tasks.items() if task.target.stored}
    if not kinds:
        expected = "a network with a target that a file can hold"
        raise UserError(f"{model}: expected {expected}, found {[*network.tasks]}")
    if wanted and not set(wanted) <= kinds.keys():
        raise UserError(f"--tasks: expected some of {[*kinds]}, found {wanted}")
    return {name: kind for name, kind in kinds.items() if not wanted or name in wanted}


def predict_unknown(train, network):
    """{task: {number of a sample: its target as a file holds it}} of all that train does not know;
    raises UserError if that is nothing."""
    found = {name: {} for name in train.targets}
    unknown = {name: ~train.known[name] for name in train.targets}
    for number in torch.stack([*unknown.values()]).any(0).nonzero()[:, 0].tolist():
        image = train[number][0].permute(1, 2, 0)  # (3, H, W) -> (H, W, 3)
        output = network.output(image)
        for name, kind in train.targets.items():
            if unknown[name][number]:
                found[name][number] = kind.stored(output[name], train.side)
    if not any(found.values()):
        raise UserError(f"{train.folder}: expected unknown {' or '.join(found)}, found none")
    return found


def copy_file(source, target, change=None):
    """Copy an HDF5 file, following its links, and let `change` edit the copy; raises DataError."""
    try:
        with h5py.File(source, "r", locking=False) as old, new_h5_file(target) as new:
            for name in old:
                old.copy(name, new)  # follows links
            new.attrs.update(old.attrs)
            if change:
                change(new)
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py raises any of them
        reason = " ".join(str(error).split())
        raise DataError(
            f"{source}: expected an HDF5 file, found a damaged one ({reason})"
        ) from error


def write_predicted(file, array, rows, source):
    """Write {number: values} into the dataset of an array in an open HDF5 file.

    An empty file gets a new dataset of these rows, which are then all samples.
    """
    if not len(file):
        file[array.name] = np.stack([*rows.values()])
    else:
        dataset = array.find(file)
        for number, values in rows.items():
            dataset[number] = values.reshape(dataset.shape[1:])
    file.attrs["source"] = source


@command
def main(argv):
    """Write OUT and report; raises UserError or DataError."""
    parser = Parser("pseudo_labels.py", __doc__)
    parser.add_argument("model", metavar="MODEL", help="a file of a run, as for predict.py")
    parser.add_argument("data", metavar="DATA", help="data folder, not everything known in train")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="of the network (default: all)")
    parser.add_argument("--out", required=True, metavar="OUT", help="folder to create")
    options = parser.parse_args(argv)
    data, out = as_path(options.data, "DATA"), as_path(options.out, "--out").resolve()
    if out.exists():
        raise UserError(f"--out: expected a new folder, found {out}")
    network = open_network(as_path(options.model, "MODEL"))
    kinds = kinds_of(network, options.model, options.tasks)
    train, *_ = [H5Dataset(split, data, kinds, memory_limit=0) for split in SPLITS]  # all checked
    found = predict_unknown(train, network)
    source = f"tools/pseudo_labels.py {options.model}".encode(errors="backslashreplace").decode()
    with staged(out, force=False) as folder:
        changes = {}
        for name, rows in found.items():
            array = train.arrays.get(name) or H5Array(train.folder, kinds[name].file)
            changes[array.path] = partial(write_predicted, array=array, rows=rows, source=source)
        for split in SPLITS:
            (folder / split).mkdir()
            for path in sorted((data / split).glob("*.h5")):
                copy_file(path, folder / split / path.name, changes.pop(path, None))
        for path, change in changes.items():  # files that train lacks
            with new_h5_file(folder / "train" / path.name) as new:
                change(new)
    counts = ", ".join(f"{name} {len(rows)}" for name, rows in found.items())
    print(f"predicted of {len(train)} samples: {counts}; written to {out}")


if __name__ == "__main__":
    sys.exit(main())
