"""Hundreds of damaged files: each is refused in one line or read as what the layout says.

The cases run in a process of their own, so that a crash of the HDF5 library or a hang is seen too.
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
from running import PRELOAD

from dataload import DataError, H5Dataset
from parts.targets import PETS, Label, PixelClasses, PixelTarget, PixelValues, Values

COUNT, CASES = 6, 200  # samples in a split, damaged splits
SECONDS = 60  # for one case, far more than any needs on a busy machine
MEMORY = 4 * 2**30  # bytes of address space that a case may add
OTHERS = {
    "border": PixelClasses("border", 3),
    "depth": PixelValues("depth"),
    "breed": Label("breeds", 3),
    "age": Values("age", 2),
}
KINDS = {"pets": PETS, "others": OTHERS}
NAMES = {  # the attribute class_names of these files
    "binary": ("blue", "red"),
    "border": ("out", "in", "between"),
    "breeds": ("a", "b", "c"),
}
STORAGE = {
    "contiguous": {},
    "chunked": {"chunks": True},
    "compressed": {"chunks": True, "compression": "gzip", "shuffle": True},
    "checked": {"chunks": True, "fletcher32": True},
}
VARIANTS = [f"{kinds}/{storage}" for kinds in KINDS for storage in STORAGE]


def files_of(kinds):
    return ["images", *(kind.file for kind in KINDS[kinds].values())]


def arrays_of(kinds, seed):
    images, masks, boxes, labels = draw(COUNT, seed)
    if kinds == "pets":
        return images, masks, boxes, labels
    return images, masks + (images[..., :1] > 30), images[..., 0], labels + labels, boxes[:, :2]


def write_valid(folder):
    """COUNT samples in every way of STORAGE, as floats or bytes, in old and new file formats."""
    for number, variant in enumerate(VARIANTS):
        kinds, storage = variant.split("/")
        (folder / variant).mkdir(parents=True)
        for name, array in zip(files_of(kinds), arrays_of(kinds, number), strict=True):
            array = array.astype(np.float64 if number % 2 else array.dtype)
            version = ("earliest", "latest")[number // 2 % 2]
            with h5py.File(folder / variant / f"{name}.h5", "w", libver=version) as file:
                dataset = file.create_dataset(name, data=array, **STORAGE[storage])
                if name in NAMES:
                    dataset.attrs["class_names"] = NAMES[name]
                if name == "depth":
                    dataset.attrs.update({"scale_factor": 0.5, "_FillValue": 7})


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


def overwrite(data, random):
    """A block becomes zeros, noise or a copy of another place."""
    start, other = random.integers(min(len(data), random.choice([8192, 2**30])), size=2)
    size = int(min(random.integers(1, 600), len(data) - max(start, other)))
    new = (bytes(size), random.bytes(size), data[other : other + size])[random.integers(3)]
    data[start : start + size] = new
    return data


def cut(data, random):
    """The end, or some bytes before it, are missing."""
    start = random.integers(len(data))
    del data[start : start + random.choice([random.integers(1, 100), len(data)])]
    return data


BYTES = (flip, flip_header, overwrite, overwrite, overwrite, cut, cut)


# Files that are sound HDF5 and no such data: (open file, name, random) -> None


def other_dtype(file, name, random):
    compound, enum = np.dtype([("r", "f4"), ("i", "f4")]), h5py.enum_dtype({"a": 0, "b": 1})
    text, ragged = h5py.string_dtype(), h5py.vlen_dtype(np.int32)
    kinds = (compound, enum, text, ragged, h5py.ref_dtype, np.dtype("c8"), np.dtype("S3"))
    kinds += (np.dtype("V5"), np.dtype("f2"), np.dtype(">f8"), np.dtype(("f4", (4,))))
    kinds += (np.dtype("i8"), np.dtype("?"), np.dtype("g"), h5py.regionref_dtype)
    kinds += (np.dtype("i1"), np.dtype(">u2"))
    kind, values = kinds[random.integers(len(kinds))], file[name][()]
    del file[name]
    if kind.kind in "fiub" and random.integers(2):  # with the values as far as it holds them
        file[name] = values.astype(kind)
    else:
        file.create_dataset(name, values.shape, dtype=kind, chunks=None)


def other_shape(file, name, random):
    values = file[name][()]
    changes = (
        *(lambda a: a[0], lambda a: a[None], lambda a: a[..., None], lambda a: a[:-1]),
        *(lambda a: a[:0], lambda a: a[..., :0], lambda a: a.T, lambda a: a.reshape(-1)),
        *(lambda a: a[(0,) * a.ndim], lambda a: np.repeat(a, 2, axis=a.ndim - 1)),
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
    file[name].attrs["class_names"] = kinds[random.integers(len(kinds))]


def other_scale(file, name, random):
    kinds = ("ab", np.nan, np.inf, 0, -1.0, 1e300, [1.0, 2.0], h5py.Empty("f4"), True, b"x")
    attribute = random.choice(["scale_factor", "_FillValue"])
    file[name].attrs[attribute] = kinds[random.integers(len(kinds))]


FILES = (other_dtype, other_dtype, other_shape, other_values, other_key, huge, elsewhere)
FILES += (other_names, other_scale)


def swap_files(folder, kinds, random):
    names = random.choice(files_of(kinds), 2, replace=False)
    one, other = (folder / f"{name}.h5" for name in names)
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def corrupt(folder, kinds, number):
    """Damage the split in `folder`; returns what was done. The number decides everything."""
    random = np.random.default_rng(number)
    ways = (*BYTES, *BYTES, *FILES, swap_files)
    way = ways[number // len(VARIANTS) % len(ways)]
    if way is swap_files:
        swap_files(folder, kinds, random)
        return "swap_files"
    name = random.choice(files_of(kinds))
    path = folder / f"{name}.h5"
    if way in BYTES:
        path.write_bytes(way(bytearray(path.read_bytes()), random))
    else:
        with h5py.File(path, "r+") as file:
            way(file, name, random)
    return f"{way.__name__} of {name}"


def check_sample(dataset, index):
    image, targets = dataset[index]
    assert image.shape == (3, *dataset.side) and image.dtype == torch.uint8
    for name, kind in dataset.targets.items():
        target, unknown = targets[name], kind.unknown(1, dataset.side)
        unknown = (kind.batch(unknown) if isinstance(kind, PixelTarget) else unknown)[0]
        assert target.shape == unknown.shape and target.dtype == unknown.dtype
        if kind.classes:
            allowed = {*range(kind.classes), unknown.flatten()[0].item()}
            assert set(target.unique().tolist()) <= allowed
        else:
            assert not target.isinf().any()
    box = targets.get("bbox", torch.tensor([torch.nan]))
    if not box.isnan().all():
        assert box.min() >= 0 and box.max() <= 1 and (box[:2] < box[2:]).all()


def outcome(folder, kinds, memory_limit):
    """'read' or 'refused'; raises what no user may meet."""
    try:
        dataset = H5Dataset("split", folder, KINDS[kinds], memory_limit)
        assert len(dataset) > 0
        for name, names in dataset.class_names.items():
            assert len(names) == dataset.targets[name].classes
            assert all(isinstance(n, str) and "\n" not in n for n in names)
        for index in range(min(len(dataset), 50)):
            check_sample(dataset, index)
    except DataError as error:
        assert "\n" not in str(error) and str(folder) in str(error), error
        str(error).encode()  # no half characters, which could not be printed
        return "refused"
    return "read"


def run_cases(valid, scratch, numbers, report):
    """What that process does: a line in `report` before and after each case."""
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    grown = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (grown, grown))
    with open(report, "w", buffering=1) as file:
        faulthandler.enable(file)
        for number in numbers:
            faulthandler.dump_traceback_later(SECONDS, exit=True, file=file)
            variant = VARIANTS[number % len(VARIANTS)]
            kinds, _ = variant.split("/")
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(valid / variant, scratch / "split")
            what = f"case {number}: {corrupt(scratch / 'split', kinds, number)}, {variant}"
            file.write(f"{what} ...\n")
            try:
                outcomes = [outcome(scratch, kinds, limit) for limit in (0, 2**30)]
                file.write(f"{what}: {' '.join(outcomes)}\n")
            except Exception:
                file.write(f"{what}: FAILED\n{traceback.format_exc()}\n")


def test_damaged_files_are_refused_or_read_as_documented(tmp_path):
    write_valid(tmp_path / "valid")
    report = tmp_path / "report"
    for variant in VARIANTS:
        folder, (kinds, _) = tmp_path / variant, variant.split("/")
        shutil.copytree(tmp_path / "valid" / variant, folder / "split")
        assert outcome(folder, kinds, 0) == outcome(folder, kinds, 2**30) == "read"
    arguments = (tmp_path / "valid", tmp_path / "scratch", range(CASES), report)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=run_cases, args=arguments)
    process.start()
    process.join()
    text = report.read_text()
    assert process.exitcode == 0, f"crash or hang, exit code {process.exitcode}: {text[-2000:]}"
    assert "FAILED" not in text, text[text.index("FAILED") - 200 :][:3000]
    assert text.count(": refused refused\n") > CASES / 3
    assert text.count(": read read\n") > CASES / 10
    assert text.count("case") == 2 * CASES
