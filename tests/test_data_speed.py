"""The benchmark of reading runs, reads the same in every way, and leaves nothing behind."""

import re

import h5py
import numpy as np
import torch

from benchmarks import data_speed
from dataload import H5Dataset


def test_tables(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(data_speed, "DTYPES", (np.float64,))
    small = ["--count", "8", "--side", "32", "--batch-size", "4"]
    data_speed.main([*small, "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    ways = "in memory", "from disk", "one read per index", "sorted fancy indexing"
    assert all(re.search(rf"\| .*{way} \| \d+ \|\n", printed) for way in ways)
    assert re.search(r"\| float64 \| \d+\.\d \| \d+ \| 0 \| \d+\.\d\d \|\n", printed)
    assert not list(tmp_path.iterdir())


def test_every_way_reads_the_same(tmp_path):
    data_speed.write(tmp_path / "split", 8, 32, np.uint8)
    images, targets = H5Dataset("split", tmp_path)[[1, 4, 6]]
    for read in (data_speed.naive, data_speed.fancy):
        with (
            h5py.File(tmp_path / "split" / "images.h5") as one,
            h5py.File(tmp_path / "split" / "masks.h5") as other,
        ):
            pixels, masks = read({"images": one, "masks": other}, [1, 4, 6])
        assert torch.equal(pixels.permute(0, 3, 1, 2), images)
        assert torch.equal(masks.permute(0, 3, 1, 2), targets["seg"])
