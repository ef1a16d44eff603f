"""Settings: constants of every usual form, their flags and help, and every refusal."""

import re

import pytest
from running import ROOT, SCRIPTS

from engine.script import load, parse
from engine.settings import constants, help_texts
from parts.errors import UserError

EXAMPLES = [p for p in sorted((ROOT / "examples").glob("*.py")) if "engine.main(" in p.read_text()]
EXPERIMENTS = [f"{name}.py" for name in SCRIPTS] + [f"examples/{path.name}" for path in EXAMPLES]

TOY = '''"""An experiment in 100% of the cases.

More of it.
"""

import math
import enum
from typing import NamedTuple
from stat import *
from stat import ST_SIZE as TAKEN

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
SWITCHES = {"on": True, "start": None}
ACTIVATION = ("leaky", 0.1)
_HIDDEN, lower = 1, 2
TASKS = {"seg": SEED}
'''
DEFAULTS = {
    "FILE_SAVE_PATH": "runs/toy", "EPOCHS": 200, "DEMO_EPOCHS": 7, "LEARNING_RATE": 3e-3,
    "WIDTHS": (8, 16), "HALF": 100, "QUARTER": 50, "A": 1, "B": 201, "MIRROR": True, "SEED": 0,
    "SHARES": [0.5, 1.0], "LIMIT": None, "RATES": {"seg": 1.0, "bbox": 0.5},
    "SWITCHES": {"on": True, "start": None}, "ACTIVATION": ("leaky", 0.1),
}  # fmt: skip


@pytest.fixture
def toy(tmp_path):
    """A function that writes a script, with some text replaced: its path."""

    def make(old="", new=""):
        assert old in TOY
        path = tmp_path / "MTL_toy.py"
        path.write_text(TOY.replace(old, new) if old else TOY)
        return path

    return make


def settings(path, flags=""):
    """{NAME: value} under a command line."""
    return vars(parse(path, flags.split())[1])


def refusal(path, flags):
    """The line that refuses a command line."""
    with pytest.raises(UserError) as caught:
        parse(path, flags.split())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_imported_name_that_the_script_assigns_to_is_its_own(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("from stat import *\nif ST_DEV:\n    from stat import ST_UID\nST_INO = 7\n")
    assert (settings(path), settings(path, "--st-ino 5")) == ({"ST_INO": 7}, {"ST_INO": 5})


FLAGS = {
    "--widths 4 5 6 --no-mirror": {"WIDTHS": (4, 5, 6), "MIRROR": False},
    "--learning-rate 1 --seed 2": {"LEARNING_RATE": 1.0, "SEED": 2},
    "--a 0.5": {"A": 0.5},  # a default of 1 does not rule out 0.5
    "--shares 1": {"SHARES": [1.0]},
    "--limit 3": {"LIMIT": 3},
    "--limit 3.5": {"LIMIT": 3.5},
    "--limit none": {"LIMIT": None},
    "--limit word": {"LIMIT": "word"},
    "--limit True": {"LIMIT": True},
    "": {},  # a list, None, a dict, annotated, computed and unpacked; what is imported is none
    "--rates bbox=0.1": {"RATES": {"seg": 1.0, "bbox": 0.1}},
    "--rates bbox=0.1 --rates seg=2": {"RATES": {"seg": 2.0, "bbox": 0.1}},
    "--switches on=False start=3": {"SWITCHES": {"on": False, "start": 3}},
    "--activation relu 2 none": {"ACTIVATION": ("relu", 2, None)},
    "--epochs 40": {"EPOCHS": 40, "HALF": 20, "QUARTER": 10, "B": 41},
    "--epochs 40 --half 3": {"EPOCHS": 40, "HALF": 3, "QUARTER": 1, "B": 41},
    "--demo": {"EPOCHS": 7, "HALF": 3, "QUARTER": 1, "B": 8},
    "--demo --epochs 4": {"EPOCHS": 4, "HALF": 2, "QUARTER": 1, "B": 5},
    "--demo --demo-epochs 4": {"DEMO_EPOCHS": 4, "EPOCHS": 4, "HALF": 2, "QUARTER": 1, "B": 5},
    "--demo --epochs 200": {},  # as asked for, though it is the default
}


@pytest.mark.parametrize("flags", FLAGS)
def test_flags(toy, flags):
    """What is computed from a constant follows its flag; nothing changes for the next command."""
    path = toy()
    found = settings(path, flags)
    assert found == DEFAULTS | FLAGS[flags] and [*found] == [*DEFAULTS]
    assert settings(path) == DEFAULTS
    assert all(type(found[name]) is type(value) for name, value in FLAGS[flags].items())


def test_options_of_the_run_and_the_script_are_told_apart(toy):
    script, _, options = parse(toy(), ["--seed", "5", "--device", "cpu", "--quiet"])
    assert script.module.TASKS == {"seg": 5} and script.name == "toy"
    assert (options.device, options.quiet, options.demo) == ("cpu", True, False)
    assert (options.weights, options.diagnose) == (None, 0)


def test_a_constant_WEIGHTS_is_the_default_of_its_flag(toy):
    path = toy("LIMIT = None", 'WEIGHTS = "a.pt"')
    for flags, expected in (("", "a.pt"), ("--weights b.pt", "b.pt"), ("--weights=", None)):
        assert (parse(path, flags.split())[2].weights or None) == expected
    path = toy("LIMIT = None", 'WEIGHTS = {"seg": 1.0}')
    assert refusal(path, "") == "--weights: expected a file or None, found seg=1.0"


class_of = "class Kind({}):\n    LARGE = {}\n\n\nLIMIT = Kind{}"
NO_FLAG = {
    **{text: f"LIMIT = {text}" for text in ("object()", "{1: 2}", "(1, (2, 3))", "open", "3j")},
    "an Enum": class_of.format("enum.Enum", 1, ".LARGE"),
    "an Enum of text": class_of.format("str, enum.Enum", "'large'", ".LARGE"),
    "a NamedTuple": "class Kind(NamedTuple):\n    a: int\n    b: int\n\n\nLIMIT = Kind(1, 2)",
}


@pytest.mark.parametrize("case", NO_FLAG)
def test_a_constant_that_no_flag_can_express_has_no_flag(toy, case):
    path = toy("LIMIT = None", NO_FLAG[case])
    assert settings(path) == {n: value for n, value in DEFAULTS.items() if n != "LIMIT"}
    assert refusal(path, "--limit 3").startswith("unrecognized arguments: --limit 3")


@pytest.mark.parametrize("name", ["DEVICE", "HELP", "RESUME", "NO_MIRROR"])
def test_a_constant_whose_flag_is_taken_is_refused(toy, name):
    taken = "--" + name.lower().replace("_", "-")
    assert refusal(toy("LIMIT", name), "") == (
        f"{name}: expected a constant whose flag is free, found {taken} taken; rename the constant"
    )


def test_help_groups_the_flags_with_defaults(toy, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(toy(), ["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: MTL_toy.py [flags] An experiment in 100% of the cases.")
    assert "paths: --file-save-path TEXT folder for results (default: runs/toy)" in text
    assert text.endswith(
        "training: --epochs N (default: 200) --demo-epochs N EPOCHS of --demo (default: 7) "
        "--learning-rate X 90% of the peak (default: 0.003) --widths X [X ...] channels "
        "(default: 8 16) --half N (default: 100) --quarter N (default: 50) --a N (default: 1) "
        "--b N (default: 201) --mirror, --no-mirror still training: no title above (default: True) "
        "--seed N (default: 0) --shares X [X ...] (default: 0.5 1.0) --limit TEXT (default: None) "
        "--rates KEY=VALUE [KEY=VALUE ...] (default: seg=1.0 bbox=0.5) --switches KEY=VALUE "
        "[KEY=VALUE ...] (default: on=True start=None) --activation X [X ...] (default: leaky 0.1)"
    )
    for option in ("--resume", "--overwrite", "--weights FILE", "--tensorboard", "--quiet"):
        assert option in text


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfA = 1\r\nB = A + 1  # \xc3\xa9\r\n",
        b"# coding: latin-1\nA = 1\nB = A + 1  # \xe9\n",
        b"A = 1\n\x0cB = A + 1  # \xc3\xa9\n",
    ],
)
def test_a_file_of_any_encoding_and_line_ends(tmp_path, capsys, content):
    path = tmp_path / "x.py"
    path.write_bytes(content)
    assert settings(path, "--a 2") == {"A": 2, "B": 3}
    with pytest.raises(SystemExit):
        parse(path, ["--help"])
    text, title = capsys.readouterr().out, "coding: latin-1" if b"coding" in content else "settings"
    assert f"\n{title}:\n" in text and "é (default: 2)" in text


@pytest.mark.parametrize("docstring", ["", '"""  """', '"\\n"'])
def test_a_script_without_a_docstring_is_called_by_its_name(toy, capsys, docstring):
    path = toy(TOY[: TOY.index("import math")], f"{docstring}\n")
    with pytest.raises(SystemExit):
        parse(path, ["--help"])
    assert capsys.readouterr().out.startswith("usage: MTL_toy.py [flags]\n\nMTL_toy\n")


@pytest.mark.parametrize("place", EXPERIMENTS)
def test_help_begins_with_the_first_paragraph_of_the_docstring(place, capsys):
    with pytest.raises(SystemExit):
        parse(ROOT / place, ["--help"])
    summary = capsys.readouterr().out.split("\n\n")[1]
    assert (ROOT / place).read_text().startswith(f'"""{summary}')
    assert summary.endswith(".")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_its_constants_in_titled_groups(name):
    path = ROOT / f"{name}.py"
    found, comments = constants(load(path)), help_texts(path.read_text())
    assert all(comments[constant][1] for constant in found)
    titles = {comments[constant][0] for constant in found}
    assert titles == {"paths", "training", "losses", "network", "augmentation"}


def test_an_empty_argument_is_refused(toy):
    """Such as an unset variable of the shell."""
    for empty in ("", " "):
        with pytest.raises(UserError, match=r"^unrecognized arguments: +; --help lists the flags$"):
            parse(toy(), [empty])


UNREADABLE = {
    "--Learning_Rate=1": "unrecognized arguments: --Learning_Rate=1 (did you mean --learn",
    "-epochs 3": "unrecognized arguments: -epochs 3 (did you mean --epochs?)",
    "file": "unrecognized arguments: file; --help lists the flags",
    "--zzz": "unrecognized arguments: --zzz; --help lists the flags",
    "--red": "unrecognized arguments: --red; --help lists the flags",
    "--epochs many": "argument --epochs: expected a number, found 'many'",
    "--widths": "argument --widths: expected at least one argument",
    "--rates bin=1": "argument --rates: expected seg=VALUE, bbox=VALUE, found 'bin=1'",
    "--rates seg": "argument --rates: expected seg=VALUE, bbox=VALUE, found 'seg'",
    "--rates seg=x": "argument --rates: expected a number, found 'x'",
    "--switches on=1": "argument --switches: expected True or False, found '1'",
    "--resume --overwrite": "argument --overwrite: not allowed with argument --resume",
    "--diagnose -1": "argument --diagnose: expected a whole number from 0 to ",
    "--weights=": "--weights: expected a file, found an empty path",
}


@pytest.mark.parametrize("flags", UNREADABLE)
def test_flags_that_cannot_be_read_are_refused_in_one_line(toy, flags):
    assert refusal(toy(), flags).startswith(UNREADABLE[flags])


NEAR = {
    **dict.fromkeys(("--lr", "--LR", "--lr=1", "-lr", "--lrr"), "--learning-rate"),
    **dict.fromkeys(("--learning_rate", "--lrate"), "--learning-rate"),
    **dict.fromkeys(("--wd", "--weight_decay"), "--weight-decay"),
    **dict.fromkeys(("--bs", "--batch", "--batch_size", "--batchsize"), "--batch-size"),
    **dict.fromkeys(("--epoch", "--num_epochs", "--max-epochs"), "--epochs"),
    **{"--data": "--h5-save-path", "--output": "--file-save-path", "--clip": "--clip-norm"},
    **{"--width": "--widths", "--color": "--colour", "--ema": "--ema-decay"},
}


@pytest.mark.parametrize("written", NEAR)
def test_a_near_miss_and_the_common_names_find_the_flag(written):
    line = refusal(ROOT / "MTL_main.py", f"{written} 1")
    hint = f"(did you mean {NEAR[written]}?)"
    assert line == f"unrecognized arguments: {written} 1 {hint}; --help lists the flags"


def test_a_common_name_is_no_hint_for_a_flag_that_is_not_there(toy):
    assert "--h5-save-path" not in refusal(toy(), "--data 1")


REFUSED = {
    "--epochs 0": "a whole number above 0, found 0",
    "--epochs 1.5": "a whole number above 0, found 1.5",
    "--demo-epochs -1": "a whole number above 0, found -1",
    "--batch-size 0": "a whole number above 0, found 0",
    "--learning-rate inf": "a number above 0, found inf",
    "--clip-norm nan": "a number above 0, found nan",
    "--weight-decay -0.1": "a number of at least 0, found -0.1",
    "--seed -1": "a whole number from 0, found -1",
    "--ema-decay 1": "a number of at least 0 and below 1, found 1.0",
    "--sides 1 nan": "numbers above 0, at most 1, found 1.0 nan",
    "--file-save-path=": "a path, found ",
    "--h5-save-path=": "a path, found ",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_values_no_run_can_have_are_refused(flags):
    name = flags.split()[0].strip("=")
    assert refusal(ROOT / "MTL_main.py", flags) == f"{name}: expected {REFUSED[flags]}"


def test_values_of_a_script_are_checked_as_flags_are(toy):
    with pytest.raises(UserError, match=re.escape("--epochs: expected a whole number above 0")):
        settings(toy("EPOCHS: int = 200", "EPOCHS: int = 0"))
