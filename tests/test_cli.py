"""The command line: flags and help from a script's constants and comments, and every refusal."""

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest
from engine.cli import RULES, UserError, constants, described, parse

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("MTL_*.py") if path.stem != "MTL_Utils")
SCRIPT = '''"""An experiment in 100% of the cases.

More of it.
"""

import math

# ---- constants: a banner ----
# paths
FILE_SAVE_PATH = "runs/toy"  # folder for results

# training
EPOCHS = 200
DEMO_EPOCHS = 7  # EPOCHS of --demo
# not a title, since no empty line is above
LEARNING_RATE = 3e-3  # 90% of the peak
WIDTHS = (
    8,  # channels
    16,
)

MIRROR = True  # still training: no title above
SEED = 0
TASKS = {}
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "MTL_toy.py"
    path.write_text(SCRIPT)
    spec = importlib.util.spec_from_file_location("MTL_toy", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["MTL_toy"] = module  # where inspect looks for its source
    spec.loader.exec_module(module)
    yield module
    del sys.modules["MTL_toy"]


def test_comments_are_titles_and_help():
    assert described(SCRIPT) == {
        "FILE_SAVE_PATH": ("paths", "folder for results"),
        "EPOCHS": ("training", ""),
        "DEMO_EPOCHS": ("training", "EPOCHS of --demo"),
        "LEARNING_RATE": ("training", "90% of the peak"),
        "WIDTHS": ("training", "channels"),
        "MIRROR": ("training", "still training: no title above"),
        "SEED": ("training", ""),
        "TASKS": ("training", ""),
    }
    assert described("A = 1  # one\n") == {"A": ("settings", "one")}


def test_flags_set_the_constants(script):
    flags = "--epochs 3 --widths 4 5 6 --learning-rate 1e-4 --no-mirror --device cpu --quiet"
    options = parse(script, flags.split())
    assert constants(script) == {
        "FILE_SAVE_PATH": "runs/toy",
        "EPOCHS": 3,
        "DEMO_EPOCHS": 7,
        "LEARNING_RATE": 1e-4,
        "WIDTHS": (4, 5, 6),
        "MIRROR": False,
        "SEED": 0,
    }
    assert (options.device, options.quiet, options.demo) == ("cpu", True, False)
    assert not options.tensorboard and not options.resume


@pytest.mark.parametrize(("flags", "epochs"), [("--demo", 7), ("--demo --epochs 2", 2), ("", 200)])
def test_the_demo_has_epochs_of_its_own(script, flags, epochs):
    parse(script, flags.split())
    assert constants(script)["EPOCHS"] == epochs


def test_help_groups_the_flags_with_defaults(script, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(script, ["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: MTL_toy.py [flags] An experiment in 100% of the cases.")
    assert "paths: --file-save-path TEXT folder for results (default: runs/toy)" in text
    assert "training: --epochs N (default: 200)" in text
    assert "--learning-rate X 90% of the peak (default: 0.003)" in text
    assert "--widths N [N ...] channels (default: 8 16)" in text
    assert "--tensorboard" in text and "--quiet" in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_its_constants_in_titled_groups(name):
    module = importlib.import_module(name)
    comments = described(inspect.getsource(module))
    titles = {comments[constant][0] for constant in constants(module)}
    assert {"paths", "training", "network", "augmentation"} <= titles
    assert "settings" not in titles


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epoch 3", "unrecognized arguments: --epoch 3 (did you mean --epochs?)"),
        ("--Learning_Rate=1", "unrecognized arguments: --Learning_Rate=1 (did you mean --learn"),
        ("-epochs 3", "unrecognized arguments: -epochs 3 (did you mean --epochs?)"),
        ("file", "unrecognized arguments: file; --help lists the flags"),
        ("--zzz", "unrecognized arguments: --zzz; --help lists the flags"),
        ("--epochs many", "argument --epochs: invalid int value: 'many'"),
        ("--epochs 1.5", "argument --epochs: invalid int value: '1.5'"),
        ("--widths", "argument --widths: expected at least one argument"),
    ],
)
def test_flags_that_cannot_be_read_are_refused_in_one_line(script, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        parse(script, flags.split())
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert printed.startswith(f"MTL_toy.py: {message}")
    assert printed.count("\n") == 1


BAD = {
    "EPOCHS": (0, "a number above 0, found 0"),
    "DEMO_EPOCHS": (-1, "a number above 0, found -1"),
    "BATCH_SIZE": (0, "a number above 0, found 0"),
    "SIZE": (0, "a number above 0, found 0"),
    "LEARNING_RATE": (float("inf"), "a number above 0, found inf"),
    "CLIP_NORM": (float("nan"), "a number above 0, found nan"),
    "WEIGHT_DECAY": (-0.1, "a number of at least 0, found -0.1"),
    "SEED": (-1, "a number of at least 0, found -1"),
    "EMA_DECAY": (1.0, "a number of at least 0 and below 1, found 1.0"),
    "DROPOUT": (-0.5, "a number of at least 0 and below 1, found -0.5"),
    "SHIFT": (1.5, "a number of at least 0 and below 1, found 1.5"),
    "COLOUR": (float("nan"), "a number of at least 0 and below 1, found nan"),
    "WIDTHS": ((8, 1), "two or more numbers above 1, found 8 1"),
    "SIDES": ((1.0, float("nan")), "numbers above 0, at most 1, found 1.0 nan"),
    "ERASE": (1.0, "a number of at least 0 and below 1, found 1.0"),
    "DEGREES": (-1.0, "0-180, found -1.0"),
    "STRETCH": (0.9, "1-10, found 0.9"),
    "SCALE": ((1.6, 0.7), "two numbers, 0.1 <= smallest <= largest <= 10, found 1.6 0.7"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_of_a_script_has_a_rule(name):
    values = constants(importlib.import_module(name))
    numbers = {n for n, value in values.items() if not isinstance(value, str | bool)}
    assert numbers <= set(RULES)


BAD_SCALES = [(0.0, 1.0), (1.0,), (0.7, 1.0, 1.6), (0.5, float("inf"))]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [(name, *case) for name, case in BAD.items()]
    + [("SCALE", scale, "two numbers, 0.1 <= smallest <= largest") for scale in BAD_SCALES]
    + [("WIDTHS", (8,), "two or more numbers above 1, found 8")],
)
def test_values_no_run_can_have_are_refused(tmp_path, monkeypatch, name, value, message):
    good = importlib.import_module("MTL_main")
    module = type(good)("MTL_main")
    vars(module).update(vars(good), __file__=good.__file__)
    flag = "--" + name.lower().replace("_", "-")
    values = value if isinstance(value, tuple) else (value,)
    arguments = [flag, *map(str, values)]
    with pytest.raises(UserError, match=re.escape(f"{flag}: expected {message}")):
        parse(module, arguments)
