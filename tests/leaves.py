"""Leaves with outlines and a table, and what tools/prepare_folder.py makes of them."""

import csv

import numpy as np
import pytest
from PIL import Image

from dataload import SPLITS, H5Dataset
from tools.prepare_folder import main

COUNT = 15


@pytest.fixture
def files(tmp_path):
    """15 pictures of a bright leaf, 80 x 40, each at another place in front of other squares; masks
    for 12, 10 rows."""
    random = np.random.default_rng(0)
    for folder in ("photos", "outlines"):
        (tmp_path / folder).mkdir()
    rows = []
    for i in range(COUNT):
        squares = random.integers(0, 140, (5, 10, 1), np.uint8)
        pixels = squares.repeat(8, axis=0).repeat(8, axis=1).repeat(3, axis=2)
        left, top = int(random.integers(0, 50)), int(random.integers(0, 20))
        pixels[top : top + 16, left : left + 24] = random.integers(200, 255, 3)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"leaf{i}.png")
        mask = np.zeros((40, 80), np.uint8)
        mask[top : top + 16, left : left + 24] = 200
        mask[:, :2] = 77
        if i < 12:
            Image.fromarray(mask).save(tmp_path / "outlines" / f"leaf{i}.png")
        if i < 10:
            box = (left, top, left + 24, top + 16) if i else ("", "", "", "")
            rows.append([f"leaf{i}", *box, ("sound", "ill", "")[i % 3], ""])
    write_table(tmp_path / "known.csv", rows)
    return tmp_path


def write_table(path, rows, heading=("name", "xmin", "ymin", "xmax", "ymax", "class", "split")):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([heading, *rows])


def flags(folder, *more):
    names = {"--images": "photos", "--masks": "outlines", "--table": "known.csv", "--out": "DATA"}
    paths = (word for flag, name in names.items() for word in (flag, str(folder / name)))
    return [*paths, "--size", "32", "--ignore", "77", *more]


def read(folder):
    return {split: H5Dataset(split, folder) for split in SPLITS}


def total(data, what):
    return sum(int(dataset.known[what].sum()) for dataset in data.values())


def prepare(folder, *more):
    """The H5Datasets of the pictures in a folder, at 32 x 32, without anything but the flags."""
    words = ["--images", folder, "--out", folder.parent / "DATA", "--size", "32", *more]
    assert main(list(map(str, words))) == 0
    return read(folder.parent / "DATA")


def refused(capsys, folder, *more):
    """The one line with which the command ends."""
    capsys.readouterr()
    words = ["--images", folder, "--out", folder.parent / "DATA", "--size", "32", *more]
    assert main(list(map(str, words))) == 2
    assert not list(folder.parent.glob("DATA*"))
    return capsys.readouterr().err.splitlines()[-1]
