"""What tools/prepare_nyuv2.py reads, with synthetic rooms in it."""

from pathlib import Path

import numpy as np

from parts.drawn_rooms import draw_view


def write_distributed(folder, counts, side, seed=0):
    """Write scenes as NYUv2 is distributed with MTAN:
    `folder`/{train,val}/{image,label,depth,normal}/0.npy, 1.npy, ...

    Args:
        counts: number of samples in train and val.
    """
    for split, count in zip(("train", "val"), counts, strict=True):
        for name in ("image", "label", "depth", "normal"):
            (Path(folder) / split / name).mkdir(parents=True)
        for number in range(count):
            view = draw_view(seed + (split == "val"), number, side)
            arrays = {
                "image": view.image.astype(np.float32) / 255,
                "label": view.classes,
                "depth": view.depth[..., None].astype(np.float32),
                "normal": view.normals.astype(np.float32),
            }
            for name, array in arrays.items():
                np.save(Path(folder) / split / name / f"{number}.npy", array)
