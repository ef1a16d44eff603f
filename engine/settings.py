"""The settings of a run: the constants at the top of a script, changed by command-line flags.

A constant is a top-level name in capitals whose value is a number, text, bool, None, or a tuple,
list or dict of these. Its flag is the name in lower case (`--h5-save-path`), the comment beside it
is the flag's help, and a comment line above a block is the title of a group of flags. A flag does
what editing the constant would do (script.py). A constant of any other type, such as an Enum or a
NamedTuple, has no flag.
"""

import argparse
import math
from enum import Enum
from pathlib import Path

from parts.commandline import Parser, as_text, flag, options_for, whole_number
from parts.comments import help_texts
from parts.errors import UserError
from parts.execution import assigned

NOT_SETTINGS = ("TASKS",)
SCALARS = (bool, int, float, str)

WHOLE = (lambda value: isinstance(value, int) and value >= 1, "a whole number above 0")
POSITIVE = (lambda value: 0 < value < math.inf, "a number above 0")
PATH = (lambda value: value.strip() != "", "a path")
RULES = {  # (test, expected) for the constants that the engine itself uses
    **dict.fromkeys(("EPOCHS", "DEMO_EPOCHS", "BATCH_SIZE"), WHOLE),
    **dict.fromkeys(("LEARNING_RATE", "CLIP_NORM"), POSITIVE),
    "WEIGHT_DECAY": (lambda value: 0 <= value < math.inf, "a number of at least 0"),
    "SEED": (lambda value: isinstance(value, int) and value >= 0, "a whole number from 0"),
    "EMA_DECAY": (lambda value: 0 <= value < 1, "a number of at least 0 and below 1"),
    "SIDES": (
        lambda value: len(value) > 0 and all(0 < share <= 1 for share in value),
        "numbers above 0, at most 1",
    ),
    "WEIGHTS": (lambda value: value is None or isinstance(value, str), "a file or None"),
    **dict.fromkeys(("H5_SAVE_PATH", "FILE_SAVE_PATH"), PATH),
}


def constants(module):
    """{NAME: value} of the settings of a script, in the order in which they are defined.

    What the script imports is not among them, unless it also assigns to the name.
    """
    own = assigned(Path(module.__file__).read_bytes()).difference(NOT_SETTINGS)
    names = (n for n in vars(module) if n in own and n.isupper() and n[0] != "_")
    return {name: plain(v) for name in names if is_setting(v := getattr(module, name))}


def is_setting(value):
    """Whether a flag can express the value."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and is_scalar(v) for k, v in value.items())
    return all(map(is_scalar, value)) if type(value) in (tuple, list) else is_scalar(value)


def is_scalar(value):
    """Whether the value is a number, text, bool or None, and not a member of an Enum."""
    return value is None or (isinstance(value, SCALARS) and not isinstance(value, Enum))


def plain(value):
    """The value in plain types, not NumPy's, which torch.load opens with weights_only=True."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value))
    return next((kind(value) for kind in SCALARS if isinstance(value, kind)), value)


def check(values):
    """UserError if one of {NAME: value} that the engine itself uses is out of range."""
    for name, value in values.items():
        accepts, expected = RULES.get(name, (lambda value: True, ""))
        if not _accepted(accepts, value):
            raise UserError(f"{flag(name)}: expected {expected}, found {as_text(value)}")


def _accepted(accepts, value):
    try:
        return accepts(value)
    except (TypeError, AttributeError):  # a value of the wrong type
        return False


def parser_of(title, summary, source, defaults):
    """The parser of a script: the options of every run, then the constants in their groups.

    The options are `demo`, `resume`, `overwrite`, `quiet`, `tensorboard`, `compile` (bool),
    `device`, `weights` (text or None) and `diagnose` (int). A constant is there only if it was
    given.

    Args:
        title, summary, source: the file's name, its description in a few lines, and its text.
        defaults: {NAME: value} of its constants.
    """
    parser = Parser(title, summary, usage="%(prog)s [flags]")
    run = parser.add_argument_group("the run")
    existing = run.add_mutually_exclusive_group()
    for group, name, text in (
        (run, "demo", "train on a small synthetic data set, generated for this run"),
        (existing, "resume", "continue where a run stopped"),
        (existing, "overwrite", "replace the run of this script that the folder holds"),
        (run, "quiet", "print warnings and errors only"),
        (run, "tensorboard", "also write scalars and pictures for TensorBoard"),
        (run, "compile", "compile the training step with torch.compile"),
    ):
        group.add_argument(f"--{name}", action="store_true", help=text)
    if "WEIGHTS" not in defaults:
        run.add_argument("--weights", metavar="FILE", help="start from the weights of another run")
    text = "measure how much the tasks' gradients conflict, every N steps (default: 0, never)"
    run.add_argument("--diagnose", metavar="N", type=whole_number(0, 10**9), default=0, help=text)
    run.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: CUDA if available)")
    groups, comments = {}, help_texts(source)
    for name, value in defaults.items():
        title, text = comments.get(name, ("settings", ""))
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        text = f"{text} (default: {as_text(value)})".strip().replace("%", "%%")
        options = {"dest": name, "default": argparse.SUPPRESS, "help": text, **options_for(value)}
        try:
            group.add_argument(flag(name), **options)
        except argparse.ArgumentError as error:
            raise UserError(
                f"{name}: expected a constant whose flag is free, found {flag(name)} taken; "
                "rename the constant"
            ) from error
    return parser
