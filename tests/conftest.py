"""A tiny valid data set: discs as pets, their upper half as head, their colour as class."""

import signal
from collections.abc import Mapping

import h5py
import numpy as np
import pytest
import running
import torch
from recordings import recorded, striped  # noqa: F401 (fixtures)
from running import LONGER, SCRIPTS, run

from dataload import write_split
from parts.targets import PETS, Label, PixelClasses, PixelValues, Values

FILES = ("images", "masks", "bboxes", "binary")
SIDE, COUNTS = 32, {"train": 12, "val": 5, "test": 7}
KINDS = PETS | {  # with files that only some tests add
    "breed": Label("breeds", 3),
    "border": PixelClasses("border", 3),
    "depth": PixelValues("depth"),
    "normals": PixelValues("normals", 3),
    "age": Values("age"),
    "pose": Values("pose", 4),
}


def draw(count, seed):
    """uint8 images (N, 32, 32, 3), masks (N, 32, 32, 1), boxes (N, 4) in pixels, labels (N,)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    centre, radius = random.uniform(10, 22, (count, 2)), random.uniform(5, 9, count)
    labels = np.arange(count) % 2
    distance = np.hypot(x - centre[:, 0, None, None], y - centre[:, 1, None, None])
    masks = (distance < radius[:, None, None]).astype(np.uint8)  # (N, H, W)
    images = random.integers(0, 60, (count, SIDE, SIDE, 3), dtype=np.uint8)
    images[..., 0] += (160 * masks * labels[:, None, None]).astype(np.uint8)
    images[..., 2] += (160 * masks * (1 - labels[:, None, None])).astype(np.uint8)
    low, high = centre - radius[:, None], centre + radius[:, None]
    high[:, 1] = centre[:, 1]
    return images, masks[..., None], np.hstack([low, high]), labels


def drawn(split="train"):
    """{file: array} of a split, as `draw` gives them."""
    return dict(zip(FILES, draw(COUNTS[split], [*COUNTS].index(split)), strict=True))


def write(folder):
    for split in COUNTS:
        write_split(folder / split, drawn(split), {"source": "test"}, {"binary": ("blue", "red")})
    return folder


def rewrite(folder, name, array, split="train", key=None, attributes=None, **options):
    """Replace one file of a split, or add one."""
    with h5py.File(folder / split / f"{name}.h5", "w") as file:
        dataset = file.create_dataset(key or name, data=array, **options)
        dataset.attrs.update(attributes or {})


def damaged(name, change):
    """A change of one array of the training split."""

    def apply(folder):
        array = drawn()[name].astype(np.float64)
        changed = change(array)
        rewrite(folder, name, array if changed is None else changed)

    return apply


def put(position, value):
    def change(array):
        array[position] = value

    return change


def added(name, shape, where=(), value=0, dtype="f8", **attributes):
    """A file more, of zeros and one value."""
    array = np.zeros(shape, dtype)
    array[where] = value
    return lambda folder: rewrite(folder, name, array, attributes=attributes)


def named(*names):
    return lambda f: rewrite(f, "binary", drawn()["binary"], attributes={"class_names": [*names]})


@pytest.fixture
def data_folder(tmp_path):
    """A folder of its own, so that a test may damage it."""
    return write(tmp_path / "data")


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory):
    """The same for tests that only read."""
    return write(tmp_path_factory.mktemp("shared") / "data")


@pytest.fixture(scope="session", autouse=True)
def signals():
    """Jobs in the background ignore Ctrl-C, and SIGHUP under nohup; the tests must not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny tensors gain nothing from a second, and the last digit depends on the number."""
    torch.set_num_threads(1)


class Finished(Mapping):
    """{script: folder of a finished run}; a script runs when its folder is first asked for."""

    def __init__(self, data, temporary):
        self.data, self.temporary, self.folders = data, temporary, {}

    def __getitem__(self, script):
        if script not in self.folders:
            out = self.temporary.mktemp(script) / "out"
            run(script, self.data, out)
            self.folders[script] = out
        return self.folders[script]

    def __iter__(self):
        return iter(SCRIPTS)

    def __len__(self):
        return len(SCRIPTS)


@pytest.fixture(scope="session")
def finished(shared_data, tmp_path_factory):
    """The folder of a finished run of every script, by its name; for tests that only read."""
    folders = Finished(shared_data, tmp_path_factory)
    folders["MTL_main"]  # now, before a test that uses it changes anything in the engine
    return folders


@pytest.fixture
def without_pictures():
    """Runs draw nothing."""
    with running.without_pictures():
        yield


@pytest.fixture(scope="session")
def reference(shared_data, tmp_path_factory):
    """The folder of a longer run that nothing disturbed."""
    out = tmp_path_factory.mktemp("reference") / "out"
    with running.without_pictures():
        run("MTL_main", shared_data, out, *LONGER)
    return out
