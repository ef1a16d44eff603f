"""Give every training image without a mask the mask that a trained network predicts.

    python tools/pseudo_masks.py runs/few/OEQ_model_lite.pt data/pets_m10 --out data/pets_pseudo

OUT is a copy of DATA with these masks in train; val and test are unchanged, and so are masks that
are known in whole or in part. A network that is then trained on OUT can become better than the
first (self-training; Xie et al. 2020, arXiv:1911.04252). The network sees images at the side it was
trained on.
"""

import sys
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS, DataError, H5Dataset
from engine.trained import open_network
from parts.commandline import Parser
from parts.errors import UserError
from parts.h5array import H5Array
from parts.h5file import new_h5_file
from parts.targets import PixelClasses
from tools.shared.common import as_path, command
from tools.shared.splitting import staged


def complete_masks(train, name, network):
    """The masks of a split, with unknown ones predicted, and the number of those.

    Returns:
        uint8 (N, H, W, 1), and a number above 0; raises UserError if no mask is unknown.
    """
    missing = (~train.known[name]).nonzero()[:, 0].tolist()
    if not missing:
        raise UserError(f"{train.folder}: expected images without a mask, found none")
    kind, masks = train.targets[name], np.empty((len(train), *train.side, 1), np.uint8)
    start = 0
    for known in train.slabs(name):
        masks[start : start + len(known), ..., 0] = known
        start += len(known)
    for number in missing:
        image = train[number][0].permute(1, 2, 0)  # (3, H, W) -> (H, W, 3)
        masks[number, ..., 0] = kind.labels(network.output(image)[name], train.side)
    return masks, len(missing)


def copy_file(source, target):
    """Copy an HDF5 file, following its links; raises DataError."""
    try:
        with h5py.File(source, "r", locking=False) as old, new_h5_file(target) as new:
            for name in old:
                old.copy(name, new)  # follows links
            new.attrs.update(old.attrs)
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py raises any of them
        reason = " ".join(str(error).split())
        raise DataError(
            f"{source}: expected an HDF5 file, found a damaged one ({reason})"
        ) from error


def replace_masks(path, masks, source):
    """Write a file of masks uint8 (N, H, W, 1), with the attributes of the old one, if any."""
    file_attributes, attributes = {}, {}
    if path.exists():
        with H5Array(path.parent, path.stem).opened() as dataset:
            file_attributes, attributes = dict(dataset.file.attrs), dict(dataset.attrs)
        path.unlink()
    with new_h5_file(path) as file:
        file[path.stem] = masks
        file[path.stem].attrs.update(attributes)
        file.attrs.update(file_attributes | {"source": source})


@command
def main(argv):
    """Write OUT and report; raises UserError or DataError."""
    parser = Parser("pseudo_masks.py", __doc__)
    parser.add_argument("model", metavar="MODEL", help="a file of a run, as for predict.py")
    parser.add_argument("data", metavar="DATA", help="data folder, some images without a mask")
    parser.add_argument("--out", required=True, metavar="OUT", help="folder to create")
    options = parser.parse_args(argv)
    data, out = as_path(options.data, "DATA"), as_path(options.out, "--out").resolve()
    if out.exists():
        raise UserError(f"--out: expected a new folder, found {out}")
    network = open_network(as_path(options.model, "MODEL"))
    kinds = {name: task.target for name, task in network.tasks.items()}
    name = next((n for n, kind in kinds.items() if isinstance(kind, PixelClasses)), None)
    if name is None:
        raise UserError(f"{options.model}: expected a network that segments, found {list(kinds)}")
    targets = {name: kinds[name]}
    train, *_ = [H5Dataset(split, data, targets, memory_limit=0) for split in SPLITS]  # all checked
    masks, count = complete_masks(train, name, network)
    source = f"tools/pseudo_masks.py {options.model}".encode(errors="backslashreplace").decode()
    with staged(out, force=False) as folder:
        for split in SPLITS:
            (folder / split).mkdir()
            for path in sorted((data / split).glob("*.h5")):
                copy_file(path, folder / split / path.name)
        replace_masks(folder / "train" / f"{kinds[name].file}.h5", masks, source)
    print(f"{count} of {len(train)} masks predicted; written to {out}")


if __name__ == "__main__":
    sys.exit(main())
