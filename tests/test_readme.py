"""Every command, program and diff of the README and of CONTRIBUTING, in their order.

They run in one folder that has data/pets, so what a command leaves is there for the next. Training
is shrunk by flags added to a command. What installs or tests is executed by .ci/run, what downloads
or starts several processes is read by its own parser.
"""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from running import ROOT, SCRIPTS
from torch.distributed.run import get_args_parser

import MTL_main
from engine import cli
from tools import make_demo, prepare_pets, run_all

README = (ROOT / "README.md").read_text()
TINY = ["--epochs=1", "--batch-size=4", "--size=1", "--device=cpu", "--widths", *"8888"]
SMALLER = {"runs/all": "runs/main_seed1"}  # one run is there instead of the whole series
GATE = ("pip install", "python -m pytest", "ruff ")  # see .ci/run


def blocks(text, kind):
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block):
    """The single commands of a shell block, as lists of words."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(part) for line in lines for part in line.split(" && ") if part.strip()]


@pytest.fixture
def workplace(tmp_path, shared_data, monkeypatch):
    """A folder like a user's, entered; the networks of MTL_main are small meanwhile."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pets").symlink_to(shared_data)
    (tmp_path / "results").symlink_to(ROOT / "results")
    Image.new("RGB", (70, 40), "brown").save(tmp_path / "photo.jpg")
    draw = make_demo.make_demo
    monkeypatch.setattr(make_demo, "make_demo", lambda folder: draw(folder, 32, (8, 4, 4)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MTL_main, "WIDTHS", (8, 8, 8, 8))
    monkeypatch.setattr(MTL_main, "SIZE", 1)
    return tmp_path


def execute(words, monkeypatch):
    """One command of the README, shrunk."""
    line = " ".join(words)
    if line.startswith(GATE):
        files = [word for word in words if word.endswith((".txt", ".py"))]
        assert all((ROOT / name).is_file() for name in files), line
        return
    if words[0] == "torchrun":
        options = get_args_parser().parse_args(words[1:])
        words = ["python", options.training_script, *options.training_script_args]
    elif words[0] == "cp":
        assert (ROOT / words[1]).is_file()
        return
    elif "run_all.py" in line:
        assert run_all.parse(words[2:]).seeds
        return
    elif "--download" in words:
        assert prepare_pets.parse_arguments(words[2:]).download
        return
    assert words[0] == "python", line
    tiny = TINY if words[1].startswith("MTL_") and "--help" not in words else []
    with monkeypatch.context() as patch:
        for name, value in cli.constants(MTL_main).items():
            patch.setattr(MTL_main, name, value)  # so that what the flags set ends with the command
        patch.setattr(sys, "argv", [*words[1:], *tiny])
        try:
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, line


def test_every_command_and_program_runs(workplace, monkeypatch):
    for kind, block in re.findall(r"^```(sh|python)\n(.*?)^```$", README, re.M | re.DOTALL):
        if kind == "python":
            exec(compile(block, "README.md", "exec"), {})
            continue
        for words in commands(block):
            execute([SMALLER.get(word, word) for word in words], monkeypatch)
    left = {str(path.relative_to(workplace)) for path in workplace.rglob("*")}
    assert {"runs/main/main_test.png", "runs/mine/main_history.csv", "docs/compare.md"} <= left
    assert {"runs/main_seed1/main_model.pt", "predictions/photo_overlay.png"} <= left
    assert "runs/main/main_gallery.png" in left


def test_the_gate_does_what_the_documents_leave_to_it():
    gate = (ROOT / ".ci" / "run").read_text()
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        for block in blocks(text, "sh"):
            for line in (" ".join(words) for words in commands(block)):
                if line.startswith(GATE) and "requirements.txt" not in line:
                    assert line.removeprefix("pip install") in gate
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text()


def apply(diff, folder):
    """Apply a diff of the README: hunks without line numbers, each of whose places is unique."""
    old, new = re.findall(r"^(?:---|\+\+\+) (\S+)$", diff, re.MULTILINE)
    text = (folder / old).read_text()
    for hunk in diff.split("@@\n")[1:]:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        assert text.count(before) == 1, f"{old} has changed; the README's diff says\n{before}"
        text = text.replace(before, "".join(line[1:] for line in lines if line[0] in " +"))
    (folder / new).write_text(text)


TRAIN = """
import sys, torch, engine
torch.set_num_threads(1)
flags = sys.argv[1:]
engine.main("MTL_uncertainty", flags)
engine.main("MTL_area", flags)
area, uncertainty = (
    torch.load(f"out/{name}_history.pt", weights_only=True) for name in ("area", "uncertainty")
)
assert 0 <= area["test"]["area_error"] <= 1, area["test"]
(weight,) = uncertainty["train"]["bbox_weight"]
assert 0.9 < weight < 1.1 and weight != 1, weight  # it has moved
"""


def test_the_diffs_make_a_sixth_experiment_and_a_fourth_task(tmp_path, shared_data):
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    for package in ("engine", "tools"):
        shutil.copytree(ROOT / package, tmp_path / package)
    diffs = blocks(README, "diff")
    assert len(diffs) == 3
    for diff in diffs:
        apply(diff, tmp_path)
    flags = ["--h5-save-path", str(shared_data), "--file-save-path", "out", *TINY]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    assert {"uncertainty_test.png", "area_test.png"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }


def test_every_script_and_every_link_is_there():
    assert all(f"`{script}.py`" in README for script in SCRIPTS)
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
            assert (ROOT / link).exists(), link


def test_every_paper_that_the_code_names_is_among_the_sources():
    code = [*ROOT.glob("*.py"), *(ROOT / "engine").glob("*.py")]
    papers = {paper for path in code for paper in re.findall(r"arXiv:[\d.]+\d", path.read_text())}
    assert papers <= set(re.findall(r"arXiv:[\d.]+\d", README)), papers


def test_contributing_fits_on_one_screen_and_the_licence_is_mit():
    assert (ROOT / "CONTRIBUTING.md").read_text().count("\n") <= 50
    assert Path(ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 the")
