"""The constants of a script as command-line flags, its comments as their help."""

import argparse
import ast
import difflib
import inspect
import io
import math
import tokenize

KINDS = (int, float, str, tuple)  # bool is an int
PLACEHOLDERS = {int: "N", float: "X", str: "TEXT"}

COUNT = (lambda value: value >= 1, "a number above 0")
POSITIVE = (lambda value: 0 < value < math.inf, "a number above 0")
NOT_NEGATIVE = (lambda value: 0 <= value < math.inf, "a number of at least 0")
SHARE = (lambda value: 0 <= value < 1, "a number of at least 0 and below 1")
RULES = {  # of the constants the engine knows and those of a usual network; Network checks others
    **dict.fromkeys(("EPOCHS", "DEMO_EPOCHS", "BATCH_SIZE", "SIZE"), COUNT),
    **dict.fromkeys(("LEARNING_RATE", "CLIP_NORM"), POSITIVE),
    **dict.fromkeys(("WEIGHT_DECAY", "SEED"), NOT_NEGATIVE),
    **dict.fromkeys(("EMA_DECAY", "DROPOUT", "SHIFT", "COLOUR", "ERASE"), SHARE),
    "SIDES": (lambda value: all(0 < s <= 1 for s in value), "numbers above 0, at most 1"),
    "WIDTHS": (lambda value: len(value) > 1 < min(value), "two or more numbers above 1"),
    "STRETCH": (lambda value: 1 <= value <= 10, "1-10"),
    "DEGREES": (lambda value: 0 <= value <= 180, "0-180"),
    "SCALE": (
        lambda value: len(value) == 2 and 0.1 <= value[0] <= value[1] <= 10,
        "two numbers, 0.1 <= smallest <= largest <= 10",
    ),
}


class UserError(Exception):
    """A mistake of the user's; the message is one line that names the flag or file."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, with the nearest flag for a typo."""

    def error(self, message):
        wrong = message.removeprefix("unrecognized arguments: ").split()[0]
        like = "--" + wrong.split("=")[0].strip("-").replace("_", "-").lower()
        near = difflib.get_close_matches(like, self._option_string_actions, n=1)
        hint = f" (did you mean {near[0]}?)" if near and wrong.startswith("-") else ""
        self.exit(2, f"{self.prog}: {message}{hint}; --help lists the flags\n")


def constants(module):
    """{NAME: value} of the settings at the top of a script, in their order."""
    return {
        name: value
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, KINDS)
    }


def flag(name):
    """--h5-save-path for H5_SAVE_PATH."""
    return "--" + name.lower().replace("_", "-")


def described(source):
    """What the comments of a script say of its constants: {NAME: (group title, help)}.

    The comment beside a constant is its help. A comment line below an empty line or below the
    banner "# ----" is the title of the constants that follow.
    """
    lines, beside, titles = source.splitlines(), {}, {0: "settings"}  # by line number, from 1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type != tokenize.COMMENT or token.string.startswith("# --"):
            continue
        before = lines[row - 2].strip() if row > 1 else ""
        if token.line[:column].strip():
            beside[row] = token.string.lstrip("# ")
        elif not before or before.startswith("# --"):
            titles[row] = token.string.lstrip("# ")
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            rows = range(node.lineno, node.end_lineno + 1)
            title = titles[max(row for row in titles if row < node.lineno)]
            found[node.targets[0].id] = title, " ".join(beside[r] for r in rows if r in beside)
    return found


def parse(module, argv):
    """Set the module's constants from flags and return the other options.

    `H5_SAVE_PATH` is set by `--h5-save-path`, and so on. The options are `demo`, `resume`, `quiet`,
    `tensorboard`, `compile` (bool) and `device` (string or None).

    Raises:
        SystemExit: code 2 with one line on stderr, for an unknown flag or a value of another kind.
        UserError: a value that makes no sense.
    """
    defaults = constants(module)
    parser = _parser(module, defaults)
    options = parser.parse_args(argv)
    if options.demo:  # an easier task, so fewer epochs unless the user says how many
        parser.set_defaults(EPOCHS=module.DEMO_EPOCHS)
        options = parser.parse_args(argv)
    for name, default in defaults.items():
        value = getattr(options, name)
        setattr(module, name, tuple(value) if isinstance(default, tuple) else value)
    check(constants(module))
    return options


def _parser(module, defaults):
    """The parser of a script: the options of every run, then its constants in their groups."""
    summary = module.__doc__.splitlines()[0]
    parser = Parser(f"{module.__name__}.py", "%(prog)s [flags]", summary, allow_abbrev=False)
    run = parser.add_argument_group("the run")
    run.add_argument("--demo", action="store_true", help="synthetic data, drawn on the spot")
    run.add_argument("--resume", action="store_true", help="go on where a run stopped")
    run.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    run.add_argument(
        "--tensorboard", action="store_true", help="also write scalars and pictures for TensorBoard"
    )
    run.add_argument("--compile", action="store_true", help="torch.compile the training step")
    run.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: CUDA where there is one)")
    groups, comments = {}, described(inspect.getsource(module))
    for name, value in defaults.items():
        title, text = comments[name]
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        text = f"{text} (default: {_shown(value)})".strip().replace("%", "%%")
        group.add_argument(flag(name), dest=name, default=value, help=text, **_kind(value))
    return parser


def _kind(value):
    """How argparse reads values like this default."""
    if isinstance(value, bool):
        return {"action": argparse.BooleanOptionalAction}
    one = type(value[0]) if isinstance(value, tuple) else type(value)
    several = {"nargs": "+"} if isinstance(value, tuple) else {}
    return {"type": one, "metavar": PLACEHOLDERS[one], **several}


def _shown(value):
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check(values):
    """Refuse settings no run can have.

    Raises:
        UserError: names the flag, what was expected and what was found.
    """
    for name, value in values.items():
        accepts, expected = RULES.get(name, (lambda value: True, ""))
        if not accepts(value):
            raise UserError(f"{flag(name)}: expected {expected}, found {_shown(value)}")
