"""Scripts of any name in any folder: trained, resumed, opened by all tools and in new processes."""

import contextlib
import copy
import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from forked import forget_us, in_a_new_process
from PIL import Image
from running import ROOT, arguments, changed, history, load, name_of, run, without_pictures

import engine
from dataload import H5Dataset
from engine.batches import PicklableDataset
from engine.evaluation import predict as predict_outputs
from engine.script import PICKLE
from parts.errors import UserError
from tools import evaluate, gallery, predict

NAMES = [
    "exp.v2/MTL_lr0.1.py",
    "code/MTL_b.py",
    'my scripts/MTL_it\'s "50 %" [1]*.py',
    "кошки/MTL_кошка é.py",
    "tools/lab.py",
]

IMAGES = torch.arange(3 * 32 * 32).view(1, 3, 32, 32).remainder(251).to(torch.uint8)
PIXELS = IMAGES[0].permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def trained(shared_data, tmp_path_factory):
    """{script outside the repository: folder of its run}, each trained for an epoch."""
    folder, found = tmp_path_factory.mktemp("elsewhere"), {}
    for name in NAMES:
        script = folder / name
        script.parent.mkdir()
        shutil.copy(ROOT / "MTL_baseline.py", script)
        found[script] = folder / "runs" / name
        with without_pictures():
            run(script, shared_data, found[script], "--epochs", "1")
    return found


@pytest.fixture
def cat(tmp_path):
    Image.new("RGB", (40, 30), "white").save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_a_script_of_any_name_and_place(trained, shared_data, tmp_path, cat, capsys, number):
    script, out = [*trained.items()][number]
    name = name_of(script)
    endings = ["history.csv", "history.pt", "last.pt", "model.pt", "model_lite.pt"]
    endings += ["seg_loss.png", "test.png"]
    assert sorted(p.name for p in out.glob("[!.]*")) == [f"{name}_{end}" for end in endings]
    assert (history(out, name)["name"], history(out, name)["script"]) == (name, str(script))
    printed = run(script, shared_data, out, "--epochs", "1", "--resume")
    assert printed == f"{name} is finished, nothing is left to do; see {out}\n"
    for ending in ("model.pt", "last.pt"):
        assert not predict.main([str(out / f"{name}_{ending}"), str(cat), f"--out={tmp_path}"])
        assert 0 <= json.loads(capsys.readouterr().out)["mask_area"] <= 1
    assert not evaluate.main([str(out / f"{name}_model_lite.pt"), str(shared_data)])
    assert f"{history(out, name)['test']['seg_iou']:.3f}" in capsys.readouterr().out
    assert not gallery.main([str(out), str(shared_data), "--count", "1"])
    assert capsys.readouterr().out == f"{out}/{name}_gallery.png\n"
    (out / f"{name}_gallery.png").unlink()


# --------------------------------------------------------------------------------- in a new process


def open_whole_networks(files, out):
    """As `python -c "import torch; torch.load(...)"` in the repository does."""
    forget_us()
    os.chdir(ROOT)
    sys.path.insert(0, "")
    networks = [torch.load(file, weights_only=False).eval() for file in files]
    with torch.inference_mode():
        torch.save([network(IMAGES)["seg"] for network in networks], out)


def test_whole_networks_open_in_a_new_process_with_the_same_outputs(trained, tmp_path):
    files = [out / f"{name_of(script)}_model.pt" for script, out in trained.items()]
    in_a_new_process(open_whole_networks, files, tmp_path / "theirs.pt")
    for (script, out), seg in zip(trained.items(), load(tmp_path / "theirs.pt"), strict=True):
        network = engine.load(script, WIDTHS=(8, 8, 16, 16)).Network().eval()
        network.load_state_dict(torch.load(out / f"{name_of(script)}_model_lite.pt"))
        assert torch.allclose(network(IMAGES)["seg"], seg, atol=1e-5)


def train_and_use_tools(fakes, data, out, cat):
    """Under PYTHONSAFEPATH=1, other packages of our names stand before and behind all else."""
    for first in ("MTL_baseline.py", "tools/predict.py", "tools/evaluate.py", "tools/gallery.py"):
        forget_us(str(fakes))
        model = str(out / "baseline_model.pt")
        sys.argv = {
            "MTL_baseline.py": arguments(data, out, "--epochs", "1", "--quiet"),
            "tools/predict.py": [model, str(cat), "--out", str(out)],
            "tools/evaluate.py": [model, str(data)],
            "tools/gallery.py": [str(out), str(data)],
        }[first]
        sys.argv.insert(0, str(ROOT / first))
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, first
    forget_us()
    os.chdir(ROOT)
    sys.path = ["", *sys.path, str(fakes)]  # as `python -m` does
    sys.argv = ["-m", "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_module("examples.bbox_only", run_name="__main__", alter_sys=True)


def test_other_packages_of_our_names_do_not_win(shared_data, tmp_path, cat):
    for name in ("tools", "examples", "parts", "engine"):
        (tmp_path / "fakes" / name).mkdir(parents=True)
        (tmp_path / "fakes" / name / "__init__.py").write_text("raise ImportError('not ours')\n")
    given = tmp_path / "fakes", shared_data, tmp_path / "out", cat
    printed = in_a_new_process(train_and_use_tools, *given)
    assert "usage: bbox_only.py [flags]" in printed
    assert (tmp_path / "out/baseline_gallery.png").is_file()
    assert (tmp_path / "out/cat_mask.png").is_file()


def test_a_script_elsewhere_in_a_process_of_its_own(shared_data, tmp_path):
    """With nothing but PYTHONPATH, PYTHONSAFEPATH, and a notebook's backend in the environment."""
    script = tmp_path / "exp.v2" / "MTL_0.1 кошка.py"
    script.parent.mkdir()
    shutil.copy(ROOT / "MTL_baseline.py", script)
    more = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    more |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, script, *arguments(shared_data, tmp_path / "out", "--epochs", "1")]
    done = subprocess.run(line, cwd=tmp_path, env=os.environ | more, capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    assert {path.suffix for path in (tmp_path / "out").glob("[!.]*")} == {".pt", ".png", ".csv"}


# ---------------------------------------------------------------- scripts that moved or were edited


def test_a_script_that_moved_is_looked_for(
    trained, shared_data, tmp_path, monkeypatch, cat, capsys
):
    script, out = next(iter(trained.items()))
    shutil.copytree(out, tmp_path / "run")
    (moved := tmp_path / "moved.py").write_bytes(script.read_bytes())
    script.unlink()
    monkeypatch.chdir(tmp_path)
    places = f"looked for {script}, {tmp_path / 'run' / script.name}"
    line = f"predict.py: {script}: expected a script, found no such file; {places}\n"
    files = [str(tmp_path / "run" / f"lr0.1_{end}") for end in ("model.pt", "model_lite.pt")]
    for file in files:
        assert predict.main([file, str(cat), f"--out={tmp_path}"]) == 2
        assert capsys.readouterr().err == line
    with pytest.raises(UserError, match="expected a script, found no such file; looked for "):
        torch.load(files[0], weights_only=False)
    shutil.copy(moved, tmp_path / "run" / script.name)
    for file in files:
        assert predict.main([file, str(cat), f"--out={tmp_path}"]) == 0
    shutil.copy(moved, tmp_path / script.name)  # where the user is
    assert torch.load(files[0], weights_only=False).stride == 32
    shutil.copy(moved, script)


def test_a_script_of_the_same_name_where_the_user_is_does_not_win(finished, tmp_path, monkeypatch):
    (tmp_path / "MTL_main.py").write_text("raise ValueError('not mine')\n")
    monkeypatch.chdir(tmp_path)
    record = history(finished["MTL_main"])
    assert record["script"] == "MTL_main.py"
    for ending in ("model.pt", "model_lite.pt"):
        network = engine.open_network(finished["MTL_main"] / f"main_{ending}", "cpu")
        assert set(network.tasks) == {"seg", "bbox", "bin"}
    with pytest.raises(ValueError, match="not mine"):  # what is named by hand is the user's own
        engine.load("MTL_main.py")


def test_places_by_hand(tmp_path, monkeypatch, capsys):
    """A path, a path in the repository, and the name of a module."""
    monkeypatch.chdir(tmp_path)
    for place in ("MTL_main.py", "MTL_main", "examples/area.py", "examples.area"):
        module = engine.load(place)
        assert Path(module.__file__) == ROOT / f"{place.removesuffix('.py').replace('.', '/')}.py"
    (tmp_path / "no_ending").write_text("X = 1\n")
    assert engine.load("no_ending").X == 1
    with pytest.raises(SystemExit, match=r"^2$"):
        engine.main("MTL_mian.py", [])
    assert capsys.readouterr().err == (
        "MTL_mian.py: MTL_mian.py: expected a script, found no such file; looked for MTL_mian.py, "
        f"{ROOT / 'MTL_mian.py'}\n"
    )


# ------------------------------------------------------------- trained networks, and later edits

STEPWISE = changed(
    (ROOT / "MTL_main.py").read_text(),
    ("WIDTHS = (32, 64, 128, 256)", "DEPTH = 3  # levels\nWIDTHS = []\nfor _ in range(DEPTH):\n"
     "    WIDTHS.append(8)\n#"),
    ("SEED = 0", "SEED = 0\nSIGN = 1.0\nSTARTED = 0\ndef start_once():\n    global STARTED\n"
     "    STARTED += 1\nstart_once()\n#"),
    ("self.decode(self.encoder(image))", "self.decode(self.encoder(image * SIGN * GAIN))"),
    ("EPOCHS = 250", "GAIN = 1.0  # no flag is given for it\nEPOCHS = 250"),
    ("import sys\n", "import sys\nfrom dataclasses import replace\n"),
    ('"seg": SEG,', '"seg": replace(SEG, primary=PRIMARY),'),
    ("UNITS = 1", 'PRIMARY = "iou"  # metric that chooses the best epoch\nUNITS = 1'),
)  # fmt: skip


def test_a_network_opens_as_it_was_trained_though_its_script_was_edited(
    shared_data, tmp_path, capsys
):
    """Constants that are built step by step, counted up, read in forward alone or in TASKS."""
    path, out = tmp_path / "MTL_steps.py", tmp_path / "out"
    path.write_text(STEPWISE)
    sizes = ["--depth", "2", "--epochs", "1", "--batch-size", "4", "--sign", "0.5"]
    paths = arguments(shared_data, out)[:6]
    engine.main(path, [*paths, *sizes, "--primary", "dice"])
    record, printed = history(out, "steps"), capsys.readouterr().err
    assert record["tasks"]["seg"]["primary"] == "dice"
    assert re.search(r"epoch 1/1: seg \d\.\d+/\d\.\d+, dice \d\.\d+;", printed)
    assert (record["config"]["WIDTHS"], record["config"]["STARTED"]) == ([8, 8], 1)
    assert "warning" not in printed
    before = engine.open_network(out / "steps_model_lite.pt", "cpu").output(PIXELS)
    edits = ("SIGN = 1.0", "SIGN = 2.0"), ("GAIN = 1.0", "GAIN = 3.0"), ("DEPTH = 3", "DEPTH = 4")
    path.write_text(changed(STEPWISE, *edits, ("SEED = 0", "SEED = 0\nNEW = 1")))
    for name in ("steps_model_lite.pt", "steps_model.pt", "steps_last.pt"):
        opened = engine.open_network(out / name, "cpu")
        assert all(torch.equal(before[task], each) for task, each in opened.output(PIXELS).items())
        assert opened.tasks["seg"].primary == "dice" and opened.tasks.keys() == before.keys()
    whole = torch.load(out / "steps_model.pt", weights_only=False).eval()
    assert torch.equal(predict_outputs(whole, IMAGES)[0]["seg"], before["seg"])
    in_a_new_process(open_whole_networks, [out / "steps_model.pt"], tmp_path / "theirs.pt")
    assert torch.allclose(whole(IMAGES)["seg"], load(tmp_path / "theirs.pt")[0], atol=1e-5)


KINDS = """
from dataclasses import dataclass
from enum import Enum, Flag
from typing import NamedTuple
import torch
from torch import nn

SIZE = 3

class Mode(Enum):
    PLAIN = "plain"
    RICH = "rich"

class Parts(Flag):
    HEAD = 1
    TAIL = 2

class Shape(NamedTuple):
    height: int
    width: int = SIZE

@dataclass(frozen=True)
class Options:
    mode: Mode
    shape: Shape = Shape(1)

    @dataclass
    class Inner:
        size: int = SIZE

def twice(x):
    return SIZE * x

def local():
    return lambda x: x

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.options, self.parts = Options(Mode.RICH), Parts.HEAD | Parts.TAIL
        self.inner, self.act, self.kinds = Options.Inner(), twice, [Shape, Network]
        self.method = self.forward

    def forward(self, x):
        return self.act(x) + self.inner.size + self.options.shape.width
"""


def test_classes_of_any_kind_are_restored_with_the_network(tmp_path):
    path = tmp_path / "MTL_it's 0.1.py"
    path.write_text(KINDS)
    module = engine.load(path, SIZE=5)
    torch.save(module.Network(), tmp_path / "x.pt", pickle_module=PICKLE)
    opened = torch.load(tmp_path / "x.pt", weights_only=False)
    theirs = sys.modules[type(opened).__module__]
    assert theirs is not module and theirs.SIZE == 5
    assert opened.options == theirs.Options(theirs.Mode.RICH, theirs.Shape(1, 5))
    assert opened.options.mode is theirs.Mode.RICH and opened.kinds[0] is theirs.Shape
    assert opened.parts == theirs.Parts.HEAD | theirs.Parts.TAIL and opened.inner.size == 5
    assert opened(torch.tensor(2)) == opened.method(torch.tensor(2)) == 20
    assert copy.deepcopy(opened).options == opened.options
    opened.act = theirs.local()  # a function without a name
    with pytest.raises((pickle.PicklingError, AttributeError)):
        torch.save(opened, tmp_path / "y.pt", pickle_module=PICKLE)


def test_the_function_of_a_derived_target_reaches_workers_that_are_no_forks(shared_data, tmp_path):
    """As they open it: in a process that has not executed the script."""
    path = tmp_path / "MTL_a.b.py"
    path.write_text((ROOT / "examples/area.py").read_text())
    module = engine.load(path)
    targets = {name: task.target for name, task in module.TASKS.items()}
    dataset = H5Dataset("train", shared_data, targets, memory_limit=0)
    content = bytes(ForkingPickler.dumps(PicklableDataset(dataset)))
    del sys.modules[module.__name__]
    opened = pickle.loads(content)
    expected, found = (each[[0, 3]][1]["area"] for each in (dataset, opened))
    assert torch.equal(expected, found) and (found > 0).all()
    function = opened.targets["area"].function
    assert function.__module__ != module.__name__
