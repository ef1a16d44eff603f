"""A drawn folder in the layout of Oxford-IIIT Pet, and what tools/prepare_pets.py makes of it.

Every image is 40 x 20 pixels, red = 40 x breed and green = 18 x number, so that a sample read back
tells which file it came from; blue is noise, so that no image is a near-duplicate of another.
"""

import hashlib

import h5py
import numpy as np
from PIL import Image

from dataload import SPLITS, H5Dataset
from parts.targets import PETS, Label
from tools import prepare_pets

BREEDS = ("Abyssinian", "Bengal", "beagle", "pug", "shiba_inu")  # two cats, three dogs
BOXED = (10, 10, 10, 10, 4)  # images of each breed in trainval.txt
UNBOXED = 2  # of each breed in test.txt
BOX = (6, 6, 30, 20)  # the first and last pixels inside, from 1
SIZE = 8
FILES = ("images", "masks", "bboxes", "binary")
BREED = {"breed": Label("breeds", len(BREEDS))}
SCALED_BOX = [1, 2, 6, 8]  # edges 5, 5, 30, 20; x: 8 / 40, y: 8 / 20


def draw_trimap():
    """uint8 (20, 40): background above, below it pet on the left and border on the right."""
    trimap = np.full((20, 40), 2, np.uint8)
    trimap[10:, :20], trimap[10:, 20:] = 1, 3
    return trimap


def draw_image(breed, number):
    """A PIL image of 40 x 20 pixels as the docstring of this module describes them."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 40 * breed, 18 * number
    noise = np.random.default_rng([breed, number]).integers(0, 256, (10, 20), np.uint8)
    pixels[..., 2] = noise.repeat(2, 0).repeat(2, 1)
    return Image.fromarray(pixels)


def write_box(path, box):
    keys = ("xmin", "ymin", "xmax", "ymax")
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box, strict=True))
    path.write_text(f"<annotation><object><bndbox>{inner}</bndbox></object></annotation>")


def run(root, out, *flags):
    arguments = ("--root", root, "--out", out, "--size", SIZE, *flags)
    return prepare_pets.main([str(argument) for argument in arguments])


def whole(out, split, targets=PETS):
    """Images (N, 3, S, S) and targets of a split, in its order."""
    dataset = H5Dataset(split, out, targets)
    return dataset[list(range(len(dataset)))]


def members(out, split):
    """(breed, number) of every sample of a split, in its order."""
    colours = whole(out, split)[0][:, :, SIZE // 2, SIZE // 2].float()
    return [(round(red / 40), round(green / 18)) for red, green, _ in colours.tolist()]


def everything(out):
    return sorted(member for split in SPLITS for member in members(out, split))


def boxed_names():
    return [(breed, number) for breed, count in enumerate(BOXED) for number in range(count)]


def contents(folder):
    """Every file below, by relative path, as a digest."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def assert_one_line(capsys, *fragments):
    error = capsys.readouterr().err
    assert error.startswith("prepare_pets.py: ") and error.endswith("\n") and error.count("\n") == 1
    for fragment in fragments:
        assert fragment in error


def read(out, split, name):
    with h5py.File(out / split / f"{name}.h5") as file:
        assert list(file) == [name]
        return file[name][()], dict(file.attrs)
