"""Give every training image the masks, boxes and labels that a trained network predicts for it.

    python tools/pseudo_labels.py runs/few/OEQ_model_lite.pt data/pets_m10 --out data/pets_pseudo
    python tools/pseudo_labels.py A.pt B.pt data/pets --tasks bbox --out data/boxed

OUT is a copy of DATA in which what is unknown in train is predicted; val and test stay as they are.
A network that is then trained on OUT can become better than the first (self-training; Xie et al.
2020, arXiv:1911.04252). Targets known in whole or in part are kept. With several networks, only
what they agree on is filled: pixels and labels of the same class, the mean of boxes with an IoU of
0.8 or more. A network sees images at the side that it was trained on.
"""

import sys
from pathlib import Path

import h5py
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS, DataError, H5Dataset
from engine.trained import open_network
from parts.commandline import Parser
from parts.errors import UserError, one_line
from parts.h5array import H5Array
from parts.h5file import new_h5_file
from tools.shared.common import as_path, command
from tools.shared.evaluated import warn_of_other_names
from tools.shared.splitting import staged


def kinds_of(networks, models, wanted):
    """{task: kind of target} of the tasks in `wanted`, or of all that the networks share and whose
    outputs a file can hold; raises UserError."""
    shared, *others = ({n: task.target for n, task in each.tasks.items()} for each in networks)
    shared = {n: k for n, k in shared.items() if k.stored and all(o.get(n) == k for o in others)}
    if not shared:
        expected = "networks that share a target that a file can hold"
        raise UserError(f"{' '.join(models)}: expected {expected}, found none")
    if wanted and not set(wanted) <= shared.keys():
        raise UserError(f"--tasks: expected some of {[*shared]}, found {wanted}")
    return {name: kind for name, kind in shared.items() if not wanted or name in wanted}


def predict_unknown(train, networks):
    """{task: {number of a sample: its target as a file holds it}} of all that train does not know
    and the networks agree on; raises UserError if that is nothing."""
    unknown = {name: ~train.known[name] for name in train.targets}
    numbers = torch.stack([*unknown.values()]).any(0).nonzero()[:, 0].tolist()
    if not numbers:
        raise UserError(f"{train.folder}: expected unknown {' or '.join(unknown)}, found none")
    found = {name: {} for name in train.targets}
    for number in numbers:
        image = train[number][0].permute(1, 2, 0)  # (3, H, W) -> (H, W, 3)
        outputs = [network.output(image) for network in networks]
        for name, kind in train.targets.items():
            if unknown[name][number]:
                values = kind.stored([output[name] for output in outputs], train.side)
                if values is not None:
                    found[name][number] = values
    if not any(found.values()):
        raise UserError(f"{train.folder}: expected networks that agree on a sample, found none")
    return found


def copy_file(source, new):
    """Copy an HDF5 file into an open one, following its links; raises DataError."""
    try:
        with h5py.File(source, "r", locking=False) as old:
            for name in old:
                old.copy(name, new)  # follows links
            new.attrs.update(old.attrs)
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py raises any of them
        found = f"a damaged one ({one_line(error)})"
        raise DataError(f"{source}: expected an HDF5 file, found {found}") from error


def write_predicted(file, name, split, rows, source):
    """Write {number: values} of a task into an open HDF5 file of a split; a file that is still
    empty gets a dataset first, in which nothing is known."""
    kind = split.targets[name]
    if not len(file):
        file[kind.file] = kind.unknown(len(split), split.side).numpy()
    dataset = H5Array(split.folder, kind.file).find(file)
    for number, values in rows.items():
        dataset[number] = values.reshape(dataset.shape[1:])
    file.attrs["source"] = source


@command
def main(argv):
    """Write OUT and report; raises UserError."""
    parser = Parser("pseudo_labels.py", __doc__)
    parser.add_argument("models", metavar="MODEL", nargs="+", help="a file of a run")
    parser.add_argument("data", metavar="DATA", help="data folder with unknown targets in train")
    text = "tasks to predict (default: all of the network's)"
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=text)
    parser.add_argument("--out", required=True, metavar="OUT", help="folder to create")
    options = parser.parse_args(argv)
    data, out = as_path(options.data, "DATA"), as_path(options.out, "--out").resolve()
    if out.exists():
        raise UserError(f"--out: expected a new folder, found {out}")
    networks = [open_network(as_path(model, "MODEL")) for model in options.models]
    kinds = kinds_of(networks, options.models, options.tasks)
    train, *_ = [H5Dataset(split, data, kinds, memory_limit=0) for split in SPLITS]  # all checked
    for network in networks:
        warn_of_other_names(train, network)
    found = predict_unknown(train, networks)
    source = " ".join(["tools/pseudo_labels.py", *options.models])
    source = source.encode(errors="backslashreplace").decode()
    predicted = {train.folder / f"{kinds[name].file}.h5": name for name in found}
    with staged(out, force=False) as folder:
        for split in SPLITS:
            (folder / split).mkdir()
        there = {path for split in SPLITS for path in (data / split).glob("*.h5")}
        for path in sorted(there | predicted.keys()):
            with new_h5_file(folder / path.parent.name / path.name) as new:
                if path in there:
                    copy_file(path, new)
                if name := predicted.get(path):
                    write_predicted(new, name, train, found[name], source)
    counts = ", ".join(f"{name} {len(rows)}" for name, rows in found.items())
    print(f"predicted of {len(train)} samples: {counts}; written to {out}")


if __name__ == "__main__":
    sys.exit(main())
