"""A flag is an edit: whatever reads a constant, wherever, sees the given value."""

import re
import sys
import traceback

import pytest
import torch
from running import ROOT

import engine
from engine.script import parse
from parts.errors import UserError

MAIN = (ROOT / "MTL_main.py").read_text()


# Under X = 5, `seen` is what the last line says.
PLACES = {
    "a function": "X = 2\ndef read():\n    return X\nseen = read()",
    "a default argument": "X = 2\ndef read(x=X, *, y=X):\n    return x + y\nseen = read() / 2",
    "a lambda": "X = 2\nseen = (lambda: X)()",
    "a class": "X = 2\nclass A:\n    x = X\n    def read(self):\n        return X\n"
    "seen = (A.x + A().read()) / 2",
    "a decorator": "import functools\nX = 2\n@functools.lru_cache(X)\ndef f():\n    pass\n"
    "seen = f.cache_parameters()['maxsize']",
    "a dataclass": "import dataclasses\nX = 2\n@dataclasses.dataclass\nclass A:\n"
    "    x: int = X\nseen = A().x",
    "a comprehension": "X = 2\nseen = len([i for i in range(9) if i < X])",
    "a computed constant": "X = 2\nY = X + 1\nseen = Y - 1",
    "a constant with a type": "X: int = 2\nseen = X",
    "several names": "A, (X, *B) = 1, (2, 3)\nseen = X",
    "another name too": "A = X = 2\nassert A == 2\nseen = X",
    "a change in its place": "X = 2\nX += 7\nseen = X",
    "a second definition": "X = 2\nX = 3\nseen = X",
    "a condition": "A = True\nif A:\n    X = 2\nelse:\n    X = 3\nseen = X",
    "a failed import": "try:\n    import nothing_of_this_name\n    X = 1\n"
    "except ImportError:\n    X = 2\nseen = X",
    "a loop": "for X in range(3):\n    pass\nseen = X",
    "a with statement": "import contextlib\nwith contextlib.nullcontext(2) as X:\n    seen = X",
    "an assignment in an expression": "if (X := 2):\n    seen = X",
    "an import": "from stat import ST_SIZE as X\nseen = X",
    "a star import": "from stat import *\nX = 2\nseen = X",
    "a deletion after its use": "X = 2\nseen = X\ndel seen\nseen = X",
    "a function that could change it": "X = 2\ndef set_x():\n    global X\n    X = 3\nseen = X",
    "a global statement": "global X\nX = 2\nseen = X",
    "all names": "X = 2\nseen = {**locals()}['X'] + len([n for n in dir() if n == 'X']) - 1",
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES)
def test_a_constant_is_seen_wherever_it_is_read(tmp_path, case):
    path = tmp_path / "MTL_x.py"
    path.write_text(f'"""Doc."""\n{PLACES[case]}\n"no docstring"\n')
    before, edited = engine.load(path), engine.load(path, X=5)
    assert (edited.X, edited.seen, edited.__doc__) == (5, 5, "Doc.")
    assert getattr(before, "seen", None) != 5  # both live side by side
    if case != "an import":  # which is none of the script's own
        script, settings, _ = parse(path, ["--x", "5"])
        assert (script.module.seen, settings.X) == (5, 5)


def test_annotations_are_not_evaluated_where_the_script_says_so(tmp_path):
    path = tmp_path / "MTL_x.py"
    path.write_text("from __future__ import annotations\nX = 1\ndef f(a: Later): pass\n")
    assert engine.load(path, X=2).f.__annotations__ == {"a": "Later"}


def test_two_modules_live_side_by_side_and_nothing_is_shared(tmp_path):
    path = tmp_path / "MTL_x.py"
    path.write_text('RATES = {"a": 1}\nWIDTHS = [1]\nHALF = RATES["a"] / 2\n')
    rates = {"a": 4}
    one, other = engine.load(path, RATES=rates), engine.load(path, WIDTHS=[2, 3])
    one.RATES["a"] = 7
    assert (rates, one.HALF, other.HALF, engine.load(path).WIDTHS) == ({"a": 4}, 2.0, 0.5, [1])
    assert one.__name__ != other.__name__ and sys.modules[one.__name__] is one
    small, wide = (engine.load("MTL_main", WIDTHS=w).Network() for w in ((8, 8), (16, 16)))
    assert [len(n.encoder(torch.zeros(1, 3, 32, 32))[-1][0]) for n in (small, wide)] == [8, 16]


CHANGES = {
    "globals": "X = 2\nglobals()['X'] = 3\n",
    "a function that is called": "X = 2\ndef f():\n    global X\n    X = 3\nf()\n",
    "its own content": "X = [2]\nX.append(3)\n",
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_constant_that_the_script_changes_later_cannot_be_given(tmp_path, case):
    path = tmp_path / "MTL_x.py"
    path.write_text(CHANGES[case])
    assert parse(path, [])[1].X in (3, [2, 3])
    with pytest.raises(UserError) as refusal:
        parse(path, ["--x", "5"])
    assert str(refusal.value) == (
        "--x: expected MTL_x.py not to change X after defining it, found that it does; "
        "use another name for the changed value"
    )


REFUSED = {
    "WIDTH": ((8, 8), "MTL_main.py: expected a constant WIDTH, found none (did you mean WIDTHS?)"),
    "ZZZ": (1, "MTL_main.py: expected a constant ZZZ, found none"),
    "EPOCHS": (0, "--epochs: expected a whole number above 0, found 0"),
    "CLIP_NORM": ("no", "--clip-norm: expected a number above 0, found no"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_constants_that_cannot_be_given_are_refused(name):
    value, message = REFUSED[name]
    with pytest.raises(UserError) as refusal:
        engine.load("MTL_main", **{name: value})
    assert str(refusal.value) == message


def test_any_value_may_be_given_from_python(tmp_path):
    path = tmp_path / "MTL_x.py"
    path.write_text("LEAK = 0.1\nBLOCK = object\nTASKS = {}\nMADE = BLOCK()\n")
    tasks = {"seg": engine.load("MTL_main").TASKS["seg"]}
    module = engine.load(path, LEAK=float("nan"), BLOCK=dict, TASKS=tasks)
    assert module.LEAK != module.LEAK and module.MADE == {} and module.TASKS is tasks


FAILS = {
    "assert X < 3, 'X is too large'": "AssertionError: X is too large",
    "assert X < 3": "AssertionError",
    "Y = 1 // (X - 5)": "ZeroDivisionError: integer division or modulo by zero",
    "Y = {2: 'two'}[X]": "KeyError: 5",
    "if X > 3: raise ValueError('two\\nlines')": "ValueError: two lines",
    "Y = X.upper() if X == 5 else X": "AttributeError: 'int' object has no attribute 'upper'",
}


@pytest.mark.parametrize("line", FAILS)
def test_values_under_which_a_script_cannot_be_executed_are_named(tmp_path, line, capsys):
    path = tmp_path / "MTL_x.py"
    path.write_text(f"A = 1\nX = 2\n{line}\n")
    with pytest.raises(SystemExit, match=r"^2$"):
        engine.main(path, ["--x", "5", "--a", "7"])
    expected = f"MTL_x.py: --a, --x: MTL_x.py cannot be executed ({FAILS[line]})\n"
    assert capsys.readouterr().err == expected


def test_a_script_that_fails_by_itself_keeps_its_traceback(tmp_path):
    path = tmp_path / "MTL_x.py"
    path.write_text("X = 2\n\nY = X / 0  # mine\n")
    with pytest.raises(ZeroDivisionError) as caught:
        parse(path, [])
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.lineno, last.line) == (str(path), 3, "Y = X / 0  # mine")


def test_a_script_that_runs_when_it_is_imported_is_refused(tmp_path, capsys):
    path = tmp_path / "MTL_x.py"
    path.write_text(MAIN.replace('if __name__ == "__main__":\n    engine', "engine"))
    with pytest.raises(SystemExit, match=r"^2$"):
        engine.main(path, [])
    expected = 'expected it below `if __name__ == "__main__":`, found it outside'
    assert capsys.readouterr().err == f"MTL_x.py: engine.main: {expected}\n"


def test_a_constant_that_is_conditional_may_be_missing_under_others(tmp_path):
    path = tmp_path / "MTL_x.py"
    path.write_text("X = 2\nif X > 3:\n    Y = 1\n")
    assert parse(path, ["--x", "5"])[1].Y == 1
    with pytest.raises(UserError, match=re.escape("MTL_x.py: expected a constant Y, found none")):
        engine.load(path, Y=3)
