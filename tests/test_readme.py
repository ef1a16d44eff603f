"""Every command, program and diff of README, CONTRIBUTING and docs/, in their order.

The commands of one document run in one folder that has data/pets, so what a command leaves is there
for the next. Training is shrunk by flags added to a command. What installs or tests is executed by
.ci/run; what prepares pets, starts several processes or made the published results is read by its
own parser.
"""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from PIL import Image
from running import ROOT, SCRIPTS, TINY
from torch.distributed.run import get_args_parser

from docs import draw_networks
from engine import script, settings
from parts import demo_data
from tools import compare, prepare_pets, run_all
from tools.shared import histories
from tools.shared.common import EXPERIMENTS
from tools.shared.comparison import metrics, pooled

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS.append(ROOT / "weights" / "README.md")
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCUMENTS}
README, EXTENDING = TEXTS["README.md"], TEXTS["docs/extending.md"]
SHORT = ["--epochs=1", "--batch-size=4", "--device=cpu", *TINY[4:]]
SMALLER = {"runs/all": "runs/main_seed1"}  # one tiny run in the place of a series
WORDS = {"seg_iou": "seg IoU", "bbox_iou": "box IoU", "bin_accuracy": "accuracy"}
MIOU = {"seg_miou": "mIoU"}
RESULTS = {  # rows of the README's table: series in results/ and NAME
    "`MTL_baseline`": ("128", "baseline"),
    "box head alone": ("128", "bbox_only"),
    "class head alone": ("128", "bin_only"),
    "`MTL_main`": ("128", "main"),
    "`MTL_OEQ`": ("128", "OEQ"),
    "`MTL_baseline` after 30,000 drawn pets": ("128_drawn30k", "baseline"),
    "`MTL_main` after 30,000 drawn pets": ("128_drawn30k", "main"),
    "`MTL_OEQ` after 30,000 drawn pets": ("128_drawn30k", "OEQ"),
    "the same, 240 epochs": ("128_drawn30k_240", "OEQ"),
    "`MTL_baseline`, folds 0 to 2": ("256", "baseline"),
    "`MTL_main`, folds 0 to 2": ("256", "main"),
    "`MTL_OEQ`, folds 0 to 2": ("256", "OEQ"),
    "`MTL_OEQ` from that of 240 epochs, folds 0 to 2": ("256_after_128", "OEQ"),
}
READ_ONLY = ("docs/results.md", "weights/README.md")  # their trainings are parsed, not run
GATE = ("pip install", "python -m pytest", "ruff ")  # see .ci/run
LEFT = {  # files that a document's commands must have left
    "README.md": (
        *("runs/main/main_test.png", "runs/main_seed1/main_model.pt", "runs/table/compare.md"),
        "predictions/photo_overlay.png",
    ),
    "docs/artefacts.md": (
        *("predictions/photo_mask.png", "runs/mine/main_gallery.png"),
        "runs/summaries.jsonl",
    ),
    "docs/own_data.md": ("runs/mine/main_history.csv", "runs/few_masks/OEQ_model_lite.pt"),
    "docs/extending.md": (
        *("runs/upgrad/weighting_test.png", "runs/breed/breed_test.png"),
        *("runs/notebook/main_test.png", "runs/diagnosed/main_conflict.png"),
    ),
}


def blocks(text, kind):
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block):
    """The single commands of a shell block, as lists of words; loops are unrolled."""
    lines = [line for whole in block.splitlines() for line in unrolled(whole)]
    return [shlex.split(part) for line in lines for part in line.split(" && ") if part.strip()]


def unrolled(line):
    """The lines that a line of the shell runs, one for each turn of its loops."""
    loop = re.fullmatch(r"for (\w+) in ([^;]+); do (.*); done", line)
    if not loop:
        return [line]
    name, values, body = loop.groups()
    return [part for v in values.split() for part in unrolled(body.replace(f"${name}", v))]


@pytest.fixture
def workplace(tmp_path, shared_data, monkeypatch):
    """A folder like a user's, entered, where what is drawn is small."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pets").symlink_to(shared_data)
    for folder in ("weights", "results"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    Image.new("RGB", (70, 40), "brown").save(tmp_path / "photo.jpg")
    draw = demo_data.make_demo
    monkeypatch.setattr(
        demo_data, "make_demo", lambda folder, *rest, **more: draw(folder, 32, (8, 4, 4))
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pretend_to_prepare(words, shared_data):
    """Read the flags of prepare_pets; put tiny data where it would write."""
    options = prepare_pets.parse(words)
    if options.out.exists():
        return
    shutil.copytree(shared_data, options.out)
    for split in options.out.iterdir() if options.breeds else ():
        with h5py.File(split / "binary.h5") as labels, h5py.File(split / "breeds.h5", "w") as file:
            file["breeds"] = labels["binary"][()]
    if options.mask_share < 1:
        with h5py.File(options.out / "train" / "masks.h5", "r+") as file:
            file["masks"][::2] = 255


def execute(words, shared_data, monkeypatch, reads_only=False):
    """One command of a document, shrunk; with `reads_only`, the flags of a script are only read."""
    line = " ".join(words)
    if line.startswith(GATE):
        files = [word for word in words if word.endswith((".txt", ".py"))]
        assert all((ROOT / name).is_file() for name in files), line
        return
    if words[0] == "torchrun":
        options = get_args_parser().parse_args(words[1:])
        words = ["python", options.training_script, *options.training_script_args]
        reads_only = True
    elif words[0] == "cp":
        assert (ROOT / words[1]).is_file()
        return
    elif "run_all.py" in line:
        options = run_all.parse(words[2:])
        assert run_all.choose_scripts(options.scripts)
        return
    elif "prepare_pets.py" in line:
        pretend_to_prepare(words[2:], shared_data)
        return
    assert words[0] == "python", line
    if reads_only and words[1] in ("tools/pseudo_masks.py", "benchmarks/mirrored_view.py"):
        assert (ROOT / words[1]).is_file()  # for a series of runs that is not there
        return
    place = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
    flags = words[3 if words[1] == "-m" else 2 :]
    trains = place.startswith(("MTL_", "examples/")) and "--help" not in flags
    if trains and reads_only:
        assert settings.parse(script.load(ROOT / place), flags)
        return
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / place), *flags, *(SHORT if trains else [])])
        try:
            runpy.run_path(str(ROOT / place), run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, line


@pytest.mark.parametrize("document", [name for name in TEXTS if name != "CONTRIBUTING.md"])
def test_every_command_and_program_runs(document, workplace, shared_data, monkeypatch):
    if document == "docs/artefacts.md":  # it describes what others have left
        execute(["python", "MTL_main.py"], shared_data, monkeypatch)
        execute(["python", "MTL_main.py", "--file-save-path=runs/mine"], shared_data, monkeypatch)
        (workplace / "data" / "mine").symlink_to(shared_data)
    for kind, block in re.findall(
        r"^```(sh|python)\n(.*?)^```$", TEXTS[document], re.M | re.DOTALL
    ):
        if kind == "python":
            program = block.replace('"--epochs", "2"', ", ".join(f'"{flag}"' for flag in SHORT))
            program = program.replace('"MTL_main.py"', repr(str(ROOT / "MTL_main.py")))
            exec(compile(program, document, "exec"), {})
            continue
        for words in commands(block):
            words = [SMALLER.get(word, word) for word in words]
            execute(words, shared_data, monkeypatch, document in READ_ONLY)
    left = {path.relative_to(workplace).as_posix() for path in workplace.rglob("*")}
    assert set(LEFT.get(document, ())) <= left


def test_the_gate_does_what_the_documents_leave_to_it():
    gate = (ROOT / ".ci" / "run").read_text()
    for text in TEXTS.values():
        for block in blocks(text, "sh"):
            for line in (" ".join(words) for words in commands(block)):
                if line.startswith(GATE) and "requirements.txt" not in line:
                    assert line.removeprefix("pip install") in gate
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text()


def apply(diff, folder):
    """Apply a diff of a document: hunks without line numbers, each of whose places is unique."""
    old, new = re.findall(r"^(?:---|\+\+\+) (\S+)$", diff, re.MULTILINE)
    text = (folder / old).read_text()
    for hunk in diff.split("@@\n")[1:]:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        assert text.count(before) == 1, f"{old} has changed; the diff says\n{before}"
        text = text.replace(before, "".join(line[1:] for line in lines if line[0] in " +"))
    (folder / new).write_text(text)


TRAIN = """
import json, sys, torch, engine
torch.set_num_threads(1)
from tools import predict
flags = sys.argv[1:]
engine.main("MTL_uncertainty.py", flags)
engine.main("MTL_area.py", flags)
area, uncertainty = (
    torch.load(f"out/{name}_history.pt", weights_only=True) for name in ("area", "uncertainty")
)
assert 0 < area["test"]["area_error"] <= 1, area["test"]
(weight,) = uncertainty["train"]["bbox_weight"]
assert 0.28 < weight < 0.32 and weight != 0.3, weight  # it has moved
assert predict.main(["out/area_model_lite.pt", "out/area_test.png", "--out", "out"]) == 0
"""


def test_the_diffs_make_a_sixth_experiment_and_a_fourth_task(tmp_path, shared_data):
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    for package in ("engine", "tools"):
        shutil.copytree(ROOT / package, tmp_path / package)
    diffs = blocks(EXTENDING, "diff")
    assert len(diffs) == 3
    for diff in diffs:
        apply(diff, tmp_path)
    flags = ["--h5-save-path", str(shared_data), "--file-save-path", "out", *SHORT]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    assert '"area": 0.' in done.stdout
    assert {"uncertainty_test.png", "area_test.png"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }


def links(name):
    """The files that a document links to or shows, as paths."""
    found = re.findall(r"\]\((?!http)([^)#]+)\)", TEXTS[name])
    return [(ROOT / name).parent / link for link in found]


@pytest.mark.parametrize("document", TEXTS)
def test_every_link_leads_to_a_file(document):
    missing = {path.relative_to(ROOT).as_posix() for path in links(document) if not path.exists()}
    assert not missing


def figures(folder, name, words=WORDS):
    """{word: text} of some metrics of a script's runs in results/, pooled over the folds."""
    runs = [run for _, run in histories.find([str(ROOT / "results" / f"{folder}.jsonl")])]
    runs = [run for run in runs if run["name"] == name]
    wanted = [m for m in metrics({"": runs}, "test", everything=True) if m.name in words]
    return {words[m.name]: f"{pooled(runs, m, 'test')[0]:.3f}" for m in wanted}


@pytest.mark.parametrize("label", RESULTS)
def test_the_table_of_the_readme_is_that_of_the_results(label):
    (row,) = [line for line in README.splitlines() if line.startswith(f"| {label} |")]
    _, _, _, seg, miou, bbox, accuracy = (cell.strip() for cell in row.strip("|").split("|"))
    found = {"seg IoU": seg, "mIoU": miou, "box IoU": bbox, "accuracy": accuracy}
    found = {name: f"0{value}" for name, value in found.items() if value}
    assert found == figures(*RESULTS[label], WORDS | MIOU)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_figures_in_a_scripts_header_are_those_of_the_results(name):
    header = (ROOT / f"MTL_{name}.py").read_text(encoding="utf-8").split('"""')[1]
    assert dict(re.findall(r"(seg IoU|box IoU|accuracy) (0\.\d+)", header)) == figures("128", name)


def test_the_tables_of_the_comparisons_are_what_their_commands_print(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    document, compared = TEXTS["docs/results.md"], 0
    for block in re.findall(r"^```sh\n(.*?)^```$", document, re.M | re.DOTALL):
        for words in commands(block):
            if words[1] == "tools/compare.py" and "results/" in words[2]:
                assert compare.main(words[2:]) == 0
                values, differences, _ = capsys.readouterr().out.split("\n\n")
                assert values in document and differences in document, " ".join(words)
                compared += 1
    assert compared


def test_every_page_and_script_is_named_in_the_readme():
    assert all(f"`{script}.py`" in README for script in SCRIPTS)
    linked = {path.resolve() for path in links("README.md")}
    assert set(DOCUMENTS) - {ROOT / "README.md"} <= linked


def test_every_paper_that_the_code_names_is_among_the_sources():
    folders = ("", "engine/", "tools/", "examples/", "docs/", "benchmarks/")
    code = [path for folder in folders for path in ROOT.glob(f"{folder}*.py")]
    named = r"arXiv:[\d.]+\d|https?://[^\s)\"',]+"
    papers = {paper for path in code for paper in re.findall(named, path.read_text("utf-8"))}
    papers = {paper.rstrip("/.") for paper in papers if not re.search("hdfgroup|w3.org", paper)}
    sources = TEXTS["docs/sources.md"]
    assert papers and not {paper for paper in papers if paper not in sources}


def test_the_drawing_of_the_networks_is_that_of_its_script():
    drawn = (ROOT / "docs" / "networks.svg").read_text(encoding="utf-8")
    assert drawn == draw_networks.picture()


def test_the_documents_are_short_and_the_licence_is_mit():
    assert README.count("\n") <= 150
    assert TEXTS["CONTRIBUTING.md"].count("\n") <= 50
    assert Path(ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 the")


def test_the_release_is_the_same_everywhere():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.search(r"^## (\S+) \((\S+)\)$", changes, re.MULTILINE).groups()
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {version}\n" in citation and f"date-released: {date}\n" in citation
