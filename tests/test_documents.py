"""Every command, program and diff of README, docs/, weights/ and results/, in their order.

Those of one document run in one folder that has data/pets, so what a command leaves is there for
the next. Training is shrunk by flags added to a command, and pictures of runs are empty files. What
installs or tests is executed by .ci/run; what prepares pets, starts several processes or made the
published results is read by its own parser.
"""

import runpy
import shutil
import sys

import h5py
import pytest
from documents import TEXTS, blocks, commands
from PIL import Image
from running import ROOT, TINY, without_pictures
from torch.distributed.run import get_args_parser

from engine import script
from parts import demo_data
from tools import prepare_nyuv2, prepare_pets, run_all

SHORT = ["--epochs", "1", "--batch-size", "4", "--device", "cpu", *TINY[4:]]
SMALLER = {"runs/all": "runs/main_seed1"}  # one tiny run in the place of a series
# the trainings of these are parsed, not run, and tools that need their runs are left out
READ_ONLY = ("docs/results.md", "docs/notebook.md", "docs/nyuv2.md", "weights/README.md")
NOT_RUN = ("CONTRIBUTING.md", "benchmarks/README.md")
NEED_RUNS = ("tools/pseudo_labels.py", "benchmarks/mirrored_view.py")
GATE = ("pip install", "python -m pytest", "ruff ")  # see .ci/run
LEFT = {  # files that a document's commands must have left
    "README.md": (
        *("runs/main/main_test.png", "predictions/photo_overlay.png"),
        "runs/fine_tune/fine_tune_model.pt",
    ),
    "docs/artefacts.md": ("predictions/photo_mask.png", "runs/mine/main_gallery.png"),
    "docs/own_data.md": ("runs/arrays/main_history.csv", "runs/few_masks/OEQ_model_lite.pt"),
    "docs/extending.md": (
        *("runs/bottleneck/bottleneck_model.pt", "runs/normal/bottleneck_model.pt"),
        *("runs/border/border_history.pt", "runs/area/area_history.pt"),
        *("runs/breed/breed_history.pt", "runs/upgrad/weighting_test.png"),
        *("runs/depth_kept/depth_gallery.png", "predictions/photo_map.npy"),
        *("runs/notebook/main_history.pt", "runs/diagnosed/main_conflict.png"),
    ),
}


class Workplace:
    """A folder like a user's, in which the commands of one document run.

    Args:
        folder: the current one.
        data: a tiny data set.
        monkeypatch: sets sys.argv.
        reads_only: whether the flags of a training are only read.
    """

    def __init__(self, folder, data, monkeypatch, reads_only=False):
        self.folder, self.data, self.monkeypatch = folder, data, monkeypatch
        self.reads_only = reads_only

    def shell(self, words):
        """Run one command."""
        line = " ".join(words)
        if line.startswith(GATE):
            files = [word for word in words if word.endswith((".txt", ".py"))]
            assert all((ROOT / name).is_file() for name in files), line
        elif words[0] == "torchrun":
            options = get_args_parser().parse_args(words[1:])
            assert script.parse(ROOT / options.training_script, options.training_script_args)
        elif words[0] == "cp":
            shutil.copy(ROOT / words[1], self.folder / words[2])
        else:
            assert words[0] == "python", line
            is_module = words[1] == "-m"
            place = words[2].replace(".", "/") + ".py" if is_module else words[1]
            self.python(place, words[3 if is_module else 2 :])

    def python(self, place, flags):
        """Run a script or tool of this folder or of the repository."""
        path = next(p for p in (self.folder / place, ROOT / place) if p.is_file())
        trains = place.startswith(("MTL_", "examples/")) and "--help" not in flags
        if place == "tools/run_all.py":
            assert run_all.choose_scripts(run_all.parse(flags).scripts)
        elif place == "tools/prepare_pets.py":
            self.prepare(prepare_pets.parse(flags))
        elif place == "tools/prepare_nyuv2.py":
            assert prepare_nyuv2.parse(flags)
        elif self.reads_only and trains:
            assert script.parse(path, flags)
        elif self.reads_only and (place in NEED_RUNS or "=runs/" in " ".join(flags)):
            assert path.is_file()
        else:
            self.execute(path, [*flags, *(shortened(path) if trains else [])])

    def execute(self, path, flags):
        """Run a file as a program, within this process."""
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [str(path), *flags])
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as stop:
                assert not stop.code, f"{path.name} {' '.join(flags)}"

    def prepare(self, options):
        """Put tiny data where prepare_pets would write."""
        if options.out.exists():
            return
        shutil.copytree(self.data, options.out)
        for split in options.out.iterdir() if options.breeds else ():
            with h5py.File(split / "binary.h5") as labels, h5py.File(split / "breeds.h5", "w") as f:
                f["breeds"] = labels["binary"][()]
        if options.mask_share < 1:
            with h5py.File(options.out / "train" / "masks.h5", "r+") as file:
                file["masks"][::2] = 255

    def apply(self, diff):
        """Make the file of a diff whose hunks have no line numbers; each place is unique."""
        old, new = (line.split()[1] for line in diff.splitlines()[:2])
        text = (ROOT / old).read_text()
        for hunk in diff.split("@@\n")[1:]:
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            assert text.count(before) == 1, f"{old} has changed; the diff says\n{before}"
            text = text.replace(before, "".join(line[1:] for line in lines if line[0] in " +"))
        (self.folder / new).write_text(text)


def shortened(path):
    """Those of the flags SHORT that a script has."""
    names, found = script.parse(path, [])[1].__dict__, []
    for word in SHORT:
        if word.startswith("--"):
            is_known = word == "--device" or word[2:].upper().replace("-", "_") in names
        found += [word] if is_known else []
    return found


@pytest.fixture
def small(tmp_path, shared_data, monkeypatch):
    """Enters a folder that has data, weights and results, and where what is drawn is small."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pets").symlink_to(shared_data)
    for folder in ("weights", "results", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    Image.new("RGB", (70, 40), "brown").save(tmp_path / "photo.jpg")
    draw = demo_data.make_demo
    monkeypatch.setattr(
        demo_data,
        "make_demo",
        lambda folder, *rest, breeds=False, **more: draw(folder, 32, (8, 4, 4), breeds=breeds),
    )
    monkeypatch.chdir(tmp_path)
    with without_pictures():
        yield tmp_path


def program(block):
    """A Python block, in which a training is short."""
    flags = ", ".join(f'"{flag}"' for flag in SHORT)
    for name in ("MTL_main.py",):
        block = block.replace(f'"{name}"', repr(str(ROOT / name)))
    return block.replace('"--epochs", "2"', flags)


@pytest.mark.parametrize("document", [name for name in TEXTS if name not in NOT_RUN])
def test_every_command_program_and_diff_runs(document, small, shared_data, monkeypatch):
    place = Workplace(small, shared_data, monkeypatch, document in READ_ONLY)
    if document == "README.md":  # with pictures, masks and a table of a reader's own
        _, stand_ins = blocks(TEXTS["docs/own_data.md"], "python")[0]
        exec(compile(stand_ins, document, "exec"), {})
    if document == "docs/artefacts.md":  # it describes what others have left
        place.shell(["python", "MTL_main.py"])
        place.shell(["python", "MTL_main.py", "--file-save-path=runs/mine"])
        (small / "data" / "mine").symlink_to(shared_data)
    for kind, block in blocks(TEXTS[document], "sh", "python", "diff"):
        if kind == "python":
            exec(compile(program(block), document, "exec"), {})
        elif kind == "sh":
            for words in commands(block):
                place.shell([SMALLER.get(word, word) for word in words])
        elif block.startswith("---"):  # a diff of whole files, not an excerpt
            place.apply(block)
    left = {path.relative_to(small).as_posix() for path in small.rglob("*")}
    assert set(LEFT.get(document, ())) <= left
