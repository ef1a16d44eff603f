"""Settings: constants of every usual form, their flags and help, and every refusal."""

import importlib
import inspect
import re

import pytest
from running import ROOT, SCRIPTS

from dataload import Augment
from engine.script import load
from engine.settings import (
    UserError,
    arguments_from,
    as_dict,
    constants,
    help_texts,
    parse,
    tasks_under,
)

TOY = '''"""An experiment in 100% of the cases.

More of it.
"""

import math
from MTL_main import WIDTHS as TAKEN

# ---- constants: a banner ----
# paths
FILE_SAVE_PATH = "runs/toy"  # folder for results

# training
EPOCHS: int = 200
DEMO_EPOCHS = 7  # EPOCHS of --demo
# not a title, since no empty line is above
LEARNING_RATE = 3e-3  # 90% of the peak
WIDTHS = (
    8,  # channels
    16,
)
HALF = EPOCHS // 2
QUARTER = HALF // 2
A, B = 1, EPOCHS + 1

MIRROR = True  # still training: no title above
SEED = 0
SHARES = [0.5, 1.0]
LIMIT = None
RATES = {"seg": 1.0, "bbox": 0.5}
TASKS = {"seg": SEED}


class Network:
    def __init__(self, widths=WIDTHS, epochs=EPOCHS, *rest, half, **others):
        self.given = widths, epochs, half


def other(seed=SEED):
    return 1
'''


@pytest.fixture
def toy(tmp_path):
    """A function that writes a script, with some text replaced, and loads it."""

    def make(old="", new=""):
        assert old in TOY
        path = tmp_path / "MTL_toy.py"
        path.write_text(TOY.replace(old, new) if old else TOY)
        return load(path)

    return make


def test_comments_are_titles_and_help():
    found = help_texts(TOY)
    assert found["FILE_SAVE_PATH"] == ("paths", "folder for results")
    assert found["EPOCHS"] == found["HALF"] == found["A"] == found["B"] == ("training", "")
    assert found["DEMO_EPOCHS"] == ("training", "EPOCHS of --demo")
    assert found["LEARNING_RATE"] == ("training", "90% of the peak")
    assert found["WIDTHS"] == ("training", "channels")
    assert found["MIRROR"] == ("training", "still training: no title above")
    assert help_texts("A = 1  # one\n") == {"A": ("settings", "one")}


DEFAULTS = {
    "TAKEN": (32, 64, 128, 256),
    "FILE_SAVE_PATH": "runs/toy",
    "EPOCHS": 200,
    "DEMO_EPOCHS": 7,
    "LEARNING_RATE": 3e-3,
    "WIDTHS": (8, 16),
    "HALF": 100,
    "QUARTER": 50,
    "A": 1,
    "B": 201,
    "MIRROR": True,
    "SEED": 0,
    "SHARES": (0.5, 1.0),
    "LIMIT": None,
    "RATES": {"seg": 1.0, "bbox": 0.5},
}


def test_constants_of_every_usual_form_are_settings(toy):
    """Annotated, imported, computed, unpacked, a list, None and a dict."""
    settings, _ = parse(toy(), [])
    assert as_dict(settings) == DEFAULTS


def test_nothing_can_change_the_settings_and_they_change_nothing(toy):
    script = toy()
    settings, _ = parse(script, ["--epochs", "3", "--rates", "seg=2"])
    with pytest.raises(AttributeError):
        settings.EPOCHS = 5
    with pytest.raises(TypeError):
        settings.RATES["seg"] = 5
    assert (script.module.EPOCHS, script.module.RATES["seg"]) == (200, 1.0)
    again, _ = parse(script, [])  # the first call's flags are not the second's defaults
    assert as_dict(again) == DEFAULTS


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ("--widths 4 5 6 --no-mirror", {"WIDTHS": (4, 5, 6), "MIRROR": False}),
        ("--learning-rate 1 --seed 2", {"LEARNING_RATE": 1.0, "SEED": 2}),
        ("--a 0.5", {"A": 0.5}),  # a default of 1 does not rule out 0.5
        ("--shares 1", {"SHARES": (1.0,)}),
        ("--limit 3", {"LIMIT": 3}),
        ("--limit 3.5", {"LIMIT": 3.5}),
        ("--limit none", {"LIMIT": None}),
        ("--limit word", {"LIMIT": "word"}),
        ("--rates bbox=0.1", {"RATES": {"seg": 1.0, "bbox": 0.1}}),
        ("--epochs 40", {"EPOCHS": 40, "HALF": 20, "QUARTER": 10, "B": 41}),
        ("--epochs 40 --half 3", {"EPOCHS": 40, "HALF": 3, "QUARTER": 1, "B": 41}),
        ("--demo", {"EPOCHS": 7, "HALF": 3, "QUARTER": 1, "B": 8}),
        ("--demo --epochs 4", {"EPOCHS": 4, "HALF": 2, "QUARTER": 1, "B": 5}),
        (
            "--demo --demo-epochs 4",
            {"EPOCHS": 4, "DEMO_EPOCHS": 4, "HALF": 2, "QUARTER": 1, "B": 5},
        ),
        ("--demo --epochs 200", {}),  # as asked for, though it is the default
    ],
)
def test_flags(toy, flags, changed):
    """What is computed from a constant follows its flag."""
    settings, _ = parse(toy(), flags.split())
    assert as_dict(settings) == DEFAULTS | changed


def test_tasks_that_depend_on_a_setting_follow_it(toy):
    _, options = parse(toy(), ["--seed", "5", "--device", "cpu", "--quiet"])
    assert options.tasks == {"seg": 5}
    assert tasks_under(toy().module, {"SEED": 5, "AN_OLDER_ONE": 1}) == {"seg": 5}
    assert (options.device, options.quiet, options.demo, options.weights) == (
        *("cpu", True, False),
        None,
    )


def test_a_function_gets_the_settings_that_its_signature_names(toy):
    script = toy()
    settings, _ = parse(script, ["--epochs", "8"])
    given = arguments_from(settings, script.module.Network)
    assert given == {"widths": (8, 16), "epochs": 8, "half": 4}
    with pytest.raises(UserError, match="DEGREES: expected this constant, which Augment needs as"):
        arguments_from(settings, Augment)


@pytest.mark.parametrize("value", ["object()", "{1: 2}", "(1, (2, 3))", "[None]", "open"])
def test_a_constant_that_no_flag_can_express_is_refused(toy, value):
    with pytest.raises(UserError, match="LIMIT: expected a number, text, bool, None, or a tuple"):
        parse(toy("LIMIT = None", f"LIMIT = {value}"), [])


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("return 1", "return SEED", "reads it directly; write def"),
        ("self.given = widths", "self.given = SEED", "expected __init__ to take SEED"),
        ("class Network:", "class Network:\n    seed = SEED", "expected Network to take SEED"),
    ],
)
def test_a_changed_setting_that_the_code_would_not_see_is_refused(toy, old, new, line):
    script = toy(old, new)
    parse(script, [])
    with pytest.raises(UserError, match=f"--seed: .*{line}"):
        parse(script, ["--seed", "5"])


def test_help_groups_the_flags_with_defaults(toy, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(toy(), ["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: MTL_toy.py [flags] An experiment in 100% of the cases.")
    assert "paths: --file-save-path TEXT folder for results (default: runs/toy)" in text
    assert "training: --epochs N (default: 200)" in text
    assert "--learning-rate X 90% of the peak (default: 0.003)" in text
    assert "--widths X [X ...] channels (default: 8 16)" in text
    assert "--rates KEY=VALUE [KEY=VALUE ...] (default: seg=1.0 bbox=0.5)" in text
    for option in ("--resume", "--overwrite", "--weights FILE", "--tensorboard", "--quiet"):
        assert option in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_its_constants_in_titled_groups(name):
    module = importlib.import_module(name)
    comments = help_texts(inspect.getsource(module))
    assert all(comments[constant][1] for constant in constants(module))
    titles = {comments[constant][0] for constant in constants(module)}
    assert titles == {"paths", "training", "losses", "network", "augmentation"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epoch 3", "unrecognized arguments: --epoch 3 (did you mean --epochs?)"),
        ("--Learning_Rate=1", "unrecognized arguments: --Learning_Rate=1 (did you mean --learn"),
        ("-epochs 3", "unrecognized arguments: -epochs 3 (did you mean --epochs?)"),
        ("file", "unrecognized arguments: file; --help lists the flags"),
        ("--zzz", "unrecognized arguments: --zzz; --help lists the flags"),
        ("--epochs many", "argument --epochs: expected a number, found 'many'"),
        ("--widths", "argument --widths: expected at least one argument"),
        ("--rates bin=1", "argument --rates: expected seg=VALUE, bbox=VALUE, found 'bin=1'"),
        ("--rates seg", "argument --rates: expected seg=VALUE, bbox=VALUE, found 'seg'"),
        ("--rates seg=x", "argument --rates: expected a number, found 'x'"),
        ("--resume --overwrite", "argument --overwrite: not allowed with argument --resume"),
    ],
)
def test_flags_that_cannot_be_read_are_refused_in_one_line(toy, flags, message):
    with pytest.raises(UserError) as refusal:
        parse(toy(), flags.split())
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


REFUSED = [
    ("--epochs 0", "a whole number above 0, found 0"),
    ("--epochs 1.5", "a whole number above 0, found 1.5"),
    ("--demo-epochs -1", "a whole number above 0, found -1"),
    ("--batch-size 0", "a whole number above 0, found 0"),
    ("--learning-rate inf", "a number above 0, found inf"),
    ("--clip-norm nan", "a number above 0, found nan"),
    ("--weight-decay -0.1", "a number of at least 0, found -0.1"),
    ("--seed -1", "a whole number from 0, found -1"),
    ("--ema-decay 1", "a number of at least 0 and below 1, found 1.0"),
    ("--sides 1 nan", "numbers above 0, at most 1, found 1.0 nan"),
    ("--file-save-path=", "a path, found "),
    ("--h5-save-path=", "a path, found "),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED)
def test_values_no_run_can_have_are_refused(flags, message):
    flag = flags.split()[0].strip("=")
    with pytest.raises(UserError, match=re.escape(f"{flag}: expected {message}")):
        parse(load(ROOT / "MTL_main.py"), flags.split())
