"""Hundreds of damaged files: each is refused in one line or read as what the layout says.

The cases run in one forked process, so that a crash of the HDF5 library or a hang is seen too.
"""

import faulthandler
import multiprocessing
import resource
import shutil
import traceback
from pathlib import Path

import h5py
import numpy as np
import torch
from conftest import draw

from dataload import DATASETS, DataError, H5Dataset

COUNT, CASES = 6, 600  # samples in a split, damaged splits
SECONDS = 20  # for one case, far more than any needs
MEMORY = 4 * 2**30  # bytes of address space that a case may add
STORAGE = {
    "contiguous": {},
    "chunked": {"chunks": True},
    "compressed": {"chunks": True, "compression": "gzip", "shuffle": True},
    "checked": {"chunks": True, "fletcher32": True},
}


def write_valid(folder):
    """COUNT samples in every way of STORAGE, as floats or bytes, in old and new file formats."""
    for number, (storage, options) in enumerate(STORAGE.items()):
        (folder / storage).mkdir(parents=True)
        for name, array in zip(DATASETS, draw(COUNT, number), strict=True):
            array = array.astype(np.float64 if number % 2 else array.dtype)
            version = ("earliest", "latest")[number // 2]
            with h5py.File(folder / storage / f"{name}.h5", "w", libver=version) as file:
                dataset = file.create_dataset(name, data=array, **options)
                dataset.attrs["class_names"] = ["blue", "red"]


# Damage to bytes: (bytearray, random) -> bytes


def flip(data, random):
    for place in random.integers(len(data), size=random.integers(1, 9)):
        data[place] ^= 1 << random.integers(8)
    return data


def flip_header(data, random):
    """Where HDF5 keeps shapes, dtypes, addresses and lists of chunks."""
    head = min(len(data), 4096)
    for place in random.integers(head, size=random.integers(1, 5)):
        data[place] = random.choice([0, 1, 0x7F, 0xFF, random.integers(256)])
    return data


def truncate(data, random):
    return data[: random.integers(len(data))]


def zero_block(data, random):
    start, size = random.integers(len(data)), random.integers(1, 600)
    data[start : start + size] = bytes(len(data[start : start + size]))
    return data


def noise_block(data, random):
    start, size = random.integers(min(len(data), 8192)), random.integers(1, 64)
    data[start : start + size] = random.bytes(len(data[start : start + size]))
    return data


def move_block(data, random):
    start, end = random.integers(len(data), size=2)
    data[end : end + 256] = data[start : start + 256]
    return data


def drop_bytes(data, random):
    start = random.integers(len(data))
    del data[start : start + random.integers(1, 100)]
    return data


BYTES = (flip, flip_header, truncate, zero_block, noise_block, move_block, drop_bytes)


# Files that are sound HDF5 and no such data: (open file, name, random) -> None


def other_dtype(file, name, random):
    compound, enum = np.dtype([("r", "f4"), ("i", "f4")]), h5py.enum_dtype({"a": 0, "b": 1})
    text, ragged = h5py.string_dtype(), h5py.vlen_dtype(np.int32)
    kinds = (compound, enum, text, ragged, h5py.ref_dtype, np.dtype("c8"), np.dtype("S3"))
    kinds += (np.dtype("V5"), np.dtype("f2"), np.dtype(">f8"), np.dtype(("f4", (4,))))
    kinds += (np.dtype("i8"), np.dtype("?"), np.dtype("g"), h5py.regionref_dtype)
    shape = file[name].shape
    del file[name]
    file.create_dataset(name, shape, dtype=kinds[random.integers(len(kinds))], chunks=None)


def filled_dtype(file, name, random):
    """Another real dtype, with the values as far as it holds them."""
    values = file[name][()]
    del file[name]
    file[name] = values.astype(random.choice(["f2", ">f8", "i1", ">u2", "g", "?", "i8"]))


def other_shape(file, name, random):
    values = file[name][()]
    changes = (
        lambda a: a[0],
        lambda a: a[None],
        lambda a: a[..., None],
        lambda a: a[:-1],
        lambda a: a[:0],
        lambda a: a[..., :0],
        lambda a: a.T,
        lambda a: a.reshape(-1),
        lambda a: a[(0,) * a.ndim],
        lambda a: np.repeat(a, 2, axis=a.ndim - 1),
        lambda a: np.repeat(a, 2, axis=min(1, a.ndim - 1)),
    )
    del file[name]
    file[name] = changes[random.integers(len(changes))](values)


def other_values(file, name, random):
    values = file[name][()].astype(np.float64)
    wrong = [np.nan, np.inf, -np.inf, -1, 2, 0.5, 256, 1e300, -1e-300]
    places = random.integers(values.size, size=random.integers(1, 5))
    values.flat[places] = random.choice(wrong)
    del file[name]
    file[name] = values


def other_key(file, name, random):
    case = random.integers(8)
    if case == 0:
        file.move(name, "moved")
    elif case == 1:
        file["other"] = [1.0]
    elif case == 2:
        file.move(name, "moved")
        file["other"] = [1.0]
    else:
        del file[name]
    if case == 4:
        file.create_group(name)
    elif case == 5:
        file[name] = h5py.SoftLink("/nowhere")
    elif case == 6:
        file[name] = h5py.ExternalLink("nowhere.h5", "/x")
    elif case == 7:
        file[name] = np.dtype("f8")


def huge(file, name, random):
    """Shapes that nobody has written: not to be read as days of zeros."""
    rest = file[name].shape[1:]
    del file[name]
    chunks = (None, (1, *rest), (1000, *rest))[random.integers(3)]
    file.create_dataset(name, (10 ** int(random.integers(7, 13)), *rest), "f8", chunks=chunks)


def elsewhere(file, name, random):
    """Values in another file that is not there."""
    shape = file[name].shape
    del file[name]
    if random.integers(2):
        size = 8 * int(np.prod(shape))
        file.create_dataset(name, shape, dtype="f8", external=[("nowhere.bin", 0, size)])
    else:
        layout = h5py.VirtualLayout(shape, "f8")
        layout[:] = h5py.VirtualSource("nowhere.h5", name, shape)
        file.create_virtual_dataset(name, layout)


def other_names(file, name, random):
    kinds = (3, 2.5, "ab", [1, 2], ["a"], ["a", "b", "c"], [["a", "b"]], np.zeros(0), b"\xff\xfe")
    kinds += (h5py.Empty("f4"), file[name].ref, np.array([b"\xff", b"b"]), ["a\nb", "c"], ["", ""])
    kinds += (np.zeros(2, [("x", "i4")]), np.array([b"a\x00b", b"c"]), np.array([np.nan, 1]))
    del file[name].attrs["class_names"]
    file[name].attrs["class_names"] = kinds[random.integers(len(kinds))]


FILES = (other_dtype, filled_dtype, other_shape, other_values, other_key, huge, elsewhere)


def swap_files(folder, random):
    one, other = (folder / f"{name}.h5" for name in random.choice(DATASETS, 2, replace=False))
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def corrupt(folder, number):
    """Damage the split in `folder`; returns what was done. The number decides everything."""
    random = np.random.default_rng(number)
    kinds = (*BYTES, *BYTES, *FILES, other_names, swap_files)
    kind = kinds[number // len(STORAGE) % len(kinds)]
    if kind is swap_files:
        swap_files(folder, random)
        return "swap_files"
    name = "binary" if kind is other_names else random.choice(DATASETS)
    path = folder / f"{name}.h5"
    if kind in BYTES:
        path.write_bytes(kind(bytearray(path.read_bytes()), random))
    else:
        with h5py.File(path, "r+") as file:
            kind(file, name, random)
    return f"{kind.__name__} of {name}"


def check_sample(dataset, index):
    image, targets = dataset[index]
    height, width = dataset.side
    assert image.shape == (3, height, width) and image.dtype == torch.uint8
    assert targets["seg"].shape == (1, height, width) and targets["seg"].dtype == torch.uint8
    assert set(targets["seg"].unique().tolist()) <= {0, 1, 255}
    box = targets["bbox"]
    assert box.shape == (4,) and box.dtype == torch.float32
    if not box.isnan().all():
        assert box.min() >= 0 and box.max() <= 1 and (box[:2] < box[2:]).all()
    assert targets["bin"].shape == () and targets["bin"].item() in (-1, 0, 1)


def outcome(folder, memory_limit):
    """'read' or 'refused'; raises what no user may meet."""
    try:
        dataset = H5Dataset("split", folder, memory_limit)
        assert len(dataset) > 0 and len(dataset.class_names) == 2
        assert all(isinstance(name, str) and "\n" not in name for name in dataset.class_names)
        for index in range(min(len(dataset), 50)):
            check_sample(dataset, index)
    except DataError as error:
        assert "\n" not in str(error) and str(folder) in str(error), error
        str(error).encode()  # no half characters, which could not be printed
        return "refused"
    return "read"


def run_cases(valid, scratch, numbers, report):
    """What a forked process does: a line in `report` before and after each case."""
    torch.set_num_threads(1)  # the threads of the first process are not in this one
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    grown = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (grown, grown))
    with open(report, "w", buffering=1) as file:
        faulthandler.enable(file)
        for number in numbers:
            faulthandler.dump_traceback_later(SECONDS, exit=True, file=file)
            storage = list(STORAGE)[number % len(STORAGE)]
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(valid / storage, scratch / "split")
            what = f"case {number}: {corrupt(scratch / 'split', number)}, {storage}"
            file.write(f"{what} ...\n")
            try:
                outcomes = [outcome(scratch, limit) for limit in (0, 2**30)]
                file.write(f"{what}: {' '.join(outcomes)}\n")
            except Exception:
                file.write(f"{what}: FAILED\n{traceback.format_exc()}\n")


def test_damaged_files_are_refused_or_read_as_documented(tmp_path):
    write_valid(tmp_path / "valid")
    report = tmp_path / "report"
    for storage in STORAGE:
        shutil.copytree(tmp_path / "valid" / storage, tmp_path / storage / "split")
        assert outcome(tmp_path / storage, 0) == outcome(tmp_path / storage, 2**30) == "read"
    arguments = (tmp_path / "valid", tmp_path / "scratch", range(CASES), report)
    process = multiprocessing.get_context("fork").Process(target=run_cases, args=arguments)
    process.start()
    process.join()
    text = report.read_text()
    assert process.exitcode == 0, f"crash or hang, exit code {process.exitcode}: {text[-2000:]}"
    assert "FAILED" not in text, text[text.index("FAILED") - 200 :][:3000]
    assert text.count(": refused refused\n") > CASES / 3
    assert text.count(": read read\n") > CASES / 10
    assert text.count("case") == 2 * CASES
