"""Give every training image without a mask the one that a trained network finds on it.

    python tools/pseudo_masks.py runs/few/OEQ_model_lite.pt data/pets_m10 --out data/pets_pseudo

OUT is a copy of DATA with these masks in train; val and test stay as they are. A network that is
then trained on OUT can become better than the first (self-training; Xie et al. 2020,
arXiv:1911.04252). Masks that are known, in whole or in part, stay as they are.
"""

import shutil
import sys
from pathlib import Path

import h5py
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS, H5Dataset
from engine.evaluation import predict
from parts.commandline import Parser
from parts.errors import UserError
from tools.shared.common import as_path, choose_device, command
from tools.shared.networks import open_network
from tools.shared.splitting import staged

BATCH_SIZE = 32


@command
def main(argv):
    """Write OUT and report; raises UserError."""
    parser = Parser("pseudo_masks.py", __doc__)
    parser.add_argument("model", metavar="MODEL", help="a file of a run, as for predict.py")
    parser.add_argument("data", metavar="DATA", help="data with images that have no mask")
    parser.add_argument("--out", required=True, metavar="OUT", help="the folder to create")
    options = parser.parse_args(argv)
    data, out = as_path(options.data, "DATA"), as_path(options.out, "--out").resolve()
    if out.exists():
        raise UserError(f"--out: expected a new folder, found {out}")
    device, train = choose_device(None).device, H5Dataset("train", data)
    network, tasks, _ = open_network(as_path(options.model, "MODEL"), device)
    if "seg" not in tasks:
        raise UserError(f"{options.model}: expected a network that segments, found {list(tasks)}")
    missing = (~train.known["seg"]).nonzero()[:, 0].tolist()
    if not missing:
        raise UserError(f"{data}: expected training images without a mask, found none")
    masks = torch.cat(list(map(torch.from_numpy, train.slabs("masks"))))  # (N, H, W)
    for start in range(0, len(missing), BATCH_SIZE):
        part = missing[start : start + BATCH_SIZE]
        outputs = predict(network, train[part][0].to(device))
        masks[part] = torch.cat([output["seg"] > 0 for output in outputs]).to(torch.uint8)
    with staged(out, force=False) as folder:
        for split in SPLITS:
            shutil.copytree(data / split, folder / split)
        (folder / "train" / "masks.h5").unlink()
        with h5py.File(folder / "train" / "masks.h5", "x") as file:
            file["masks"] = masks[..., None].numpy()
            file.attrs["source"] = f"tools/pseudo_masks.py {options.model}"
    print(f"{len(missing)} of {len(train)} masks found; written to {out}")


if __name__ == "__main__":
    sys.exit(main())
