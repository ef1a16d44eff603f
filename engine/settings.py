"""The settings of a run: the constants at the top of a script, changed by command-line flags.

A constant is a top-level name in capitals whose value is a number, text, bool, None, or a tuple,
list or dict of these. Its flag is the name in lower case (`--h5-save-path`), the comment beside it
is the flag's help, and a comment line above a block is the title of a group of flags.
"""

import argparse
import ast
import collections
import difflib
import inspect
import io
import math
import tokenize
from types import MappingProxyType

NOT_SETTINGS = ("TASKS",)
SCALARS = (bool, int, float, str)

WHOLE = (lambda value: isinstance(value, int) and value >= 1, "a whole number above 0")
POSITIVE = (lambda value: 0 < value < math.inf, "a number above 0")
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
    **dict.fromkeys(
        ("H5_SAVE_PATH", "FILE_SAVE_PATH"),
        (lambda value: value.strip() != "", "a path"),
    ),
}


class UserError(Exception):
    """A user's mistake; the message is one line that names the flag or file."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError, with the nearest flag for a typo."""

    def __init__(self, prog, description, **options):
        options["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, allow_abbrev=False, **options)

    def error(self, message):
        wrong = message.removeprefix("unrecognized arguments: ").split()[0]
        like = "--" + wrong.split("=")[0].strip("-").replace("_", "-").lower()
        near = difflib.get_close_matches(like, self._option_string_actions, n=1)
        hint = f" (did you mean {near[0]}?)" if near and wrong.startswith("-") else ""
        raise UserError(f"{message}{hint}; --help lists the flags")


def whole_number(low, high):
    """An argparse type: a whole number from `low` to `high`."""

    def parse(text):
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            message = f"expected a whole number from {low} to {high}, found '{text}'"
            raise argparse.ArgumentTypeError(message)
        return int(text)

    return parse


def flag(name):
    """--h5-save-path for H5_SAVE_PATH."""
    return "--" + name.lower().replace("_", "-")


def constants(module):
    """{NAME: value} of the settings of a script, in the order in which they are defined.

    Raises:
        UserError: a name in capitals has a value that no flag can express.
    """
    found, source = {}, inspect.getsource(module)
    assigned = {name for node in ast.parse(source).body for name in _targets(node)}
    for name, value in vars(module).items():
        if not name.isupper() or name.startswith("_") or name in NOT_SETTINGS:
            continue
        if _is_setting(value):
            found[name] = value
        elif name in assigned:
            raise UserError(
                f"{name}: expected a number, text, bool, None, or a tuple, list or dict of these, "
                f"found a {type(value).__name__}; write a name that is no setting in lower case"
            )
    return found


def _is_setting(value):
    if isinstance(value, dict):
        return all(isinstance(k, str) and isinstance(v, SCALARS) for k, v in value.items())
    if isinstance(value, tuple | list):
        return all(isinstance(item, SCALARS) for item in value)
    return value is None or isinstance(value, SCALARS)


def _targets(node):
    """The names that a top-level statement assigns to."""
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]


def parse(script, argv):
    """(settings, options) from a Script and its command line.

    The settings are an immutable named tuple. The options are `demo`, `resume`, `overwrite`,
    `quiet`, `tensorboard`, `compile` (bool), `device`, `weights` (text or None), `diagnose` (int),
    and `tasks`, the script's TASKS under these settings.

    Raises:
        UserError: an unknown flag, a wrong type of value, a value out of range, or a constant that
            no flag can express.
    """
    source, defaults = inspect.getsource(script.module), constants(script.module)
    parser = _parser(script, source, defaults)
    options = parser.parse_args(argv)
    chosen = {name: vars(options)[name] for name in defaults if name in vars(options)}
    if options.demo and "DEMO_EPOCHS" in defaults:  # an easier task
        chosen = {"EPOCHS": chosen.get("DEMO_EPOCHS", defaults["DEMO_EPOCHS"])} | chosen
    scope, changed = _recompute(source, script.module, defaults, chosen)
    _refuse_direct_use(source, changed - {*NOT_SETTINGS})
    values = {name: scope[name] for name in defaults}
    options.tasks = scope.get("TASKS")
    for name, value in values.items():
        accepts, expected = RULES.get(name, (lambda value: True, ""))
        if not _accepted(accepts, value):
            raise UserError(f"{flag(name)}: expected {expected}, found {_as_text(value)}")
    return freeze(values), options


def tasks_under(module, config):
    """TASKS of a script under the settings {NAME: value} of a run, which it may depend on."""
    chosen = {name: config[name] for name in vars(module) if name.isupper() and name in config}
    return _recompute(inspect.getsource(module), module, vars(module), chosen)[0]["TASKS"]


def _accepted(accepts, value):
    try:
        return accepts(value)
    except (TypeError, AttributeError):  # a value of the wrong type
        return False


def freeze(values):
    """{NAME: value} as an immutable named tuple."""
    immutable = {list: tuple, dict: MappingProxyType}
    frozen = {n: immutable.get(type(value), lambda v: v)(value) for n, value in values.items()}
    return collections.namedtuple("Settings", frozen)(**frozen)


def as_dict(settings):
    """{NAME: value} of settings, of types that torch.load opens with weights_only=True."""
    values = settings._asdict()
    return {n: dict(v) if isinstance(v, MappingProxyType) else v for n, v in values.items()}


def arguments_from(settings, function):
    """{parameter: value} for those parameters of a function that have the name of a setting.

    Raises:
        UserError: a parameter without a default has no setting.
    """
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if hasattr(settings, name.upper()):
            found[name] = getattr(settings, name.upper())
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise UserError(
                f"{name.upper()}: expected this constant, which {function.__name__} needs as "
                f"'{name}', found none"
            )
    return found


def _recompute(source, module, defaults, chosen):
    """The top-level names of a script under the `chosen` values, and those whose values change.

    Lines that use a changed name are executed again, so HALF = EPOCHS // 2 follows --epochs.
    """
    scope = dict(vars(module)) | chosen
    changed = {name for name, value in chosen.items() if value != defaults[name]}
    for node in ast.parse(source).body:
        names = {*_targets(node)}
        used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - names
        if names and used & changed and not isinstance(node, ast.AugAssign):
            exec(compile(ast.Module([node], []), module.__file__, "exec"), scope)
            scope |= chosen
            changed |= names
    return scope, changed


def _refuse_direct_use(source, changed):
    """Refuse a changed setting that a function reads directly: it would see the default."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    for outer in (node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)):
        statements = [node for node in outer.body if not isinstance(node, kinds)]
        for node in (node for statement in statements for node in ast.walk(statement)):
            if isinstance(node, ast.Name) and node.id in changed:
                raise UserError(
                    f"{flag(node.id)}: expected {outer.name} to take {node.id} as a parameter, "
                    f"found that line {node.lineno} reads it directly; write "
                    f"def ...(..., {node.id.lower()}={node.id})"
                )


def _parser(script, source, defaults):
    """The parser of a script: the options of every run, then the constants in their groups."""
    summary = (script.module.__doc__ or script.name).strip().splitlines()[0]
    parser = Parser(script.title, summary, usage="%(prog)s [flags]")
    run = parser.add_argument_group("the run")
    existing = run.add_mutually_exclusive_group()
    for group, name, text in (
        (run, "demo", "train on a small synthetic data set, drawn on the spot"),
        (existing, "resume", "continue where a run stopped"),
        (existing, "overwrite", "start over in a folder that holds a run of this script"),
        (run, "quiet", "print warnings and errors only"),
        (run, "tensorboard", "also write scalars and pictures for TensorBoard"),
        (run, "compile", "compile the training step with torch.compile"),
    ):
        group.add_argument(f"--{name}", action="store_true", help=text)
    run.add_argument("--weights", metavar="FILE", help="start from the weights of another run")
    text = "record the tasks' gradients every N steps; changes no weights (default: 0, never)"
    run.add_argument("--diagnose", metavar="N", type=whole_number(0, 10**9), default=0, help=text)
    run.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: CUDA where there is one)")
    groups, comments = {}, help_texts(source)
    for name, value in defaults.items():
        title, text = comments.get(name, ("settings", ""))
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        text = f"{text} (default: {_as_text(value)})".strip().replace("%", "%%")
        options = {"dest": name, "default": argparse.SUPPRESS, "help": text, **_parsing(value)}
        group.add_argument(flag(name), **options)
    return parser


def help_texts(source):
    """{NAME: (group title, help)} of the constants of a script, from its comments.

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
        for name in _targets(node):
            rows = range(node.lineno, node.end_lineno + 1)
            title = titles[max(row for row in titles if row < node.lineno)]
            found[name] = title, " ".join(beside[row] for row in rows if row in beside)
    return found


def _parsing(value):
    """The options of argparse for a flag with this default."""
    if isinstance(value, bool):
        return {"action": argparse.BooleanOptionalAction}
    if isinstance(value, dict):
        return {"nargs": "+", "action": _Entries, "entries": value, "metavar": "KEY=VALUE"}
    if isinstance(value, tuple | list):
        return {"nargs": "+", "type": _converter(value), "metavar": "X"}
    metavar = {int: "N", float: "X"}.get(type(value), "TEXT")
    return {"type": _converter([value]), "metavar": metavar}


def _converter(values):
    """The function that turns text into a value of the same type as `values`."""
    if values and all(isinstance(value, str) for value in values):
        return str
    if any(isinstance(value, float) for value in values):
        return lambda text: float(_number(text))
    return _number if all(isinstance(v, int) for v in values) and values else _guess


def _number(text):
    """An int if the text is one, else a float: a default of 1 does not rule out 0.5."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    raise argparse.ArgumentTypeError(f"expected a number, found '{text}'")


def _guess(text):
    """None, a number or the text itself, for a constant whose default has no clear type."""
    try:
        return None if text.lower() == "none" else _number(text)
    except argparse.ArgumentTypeError:
        return text


class _Entries(argparse.Action):
    """KEY=VALUE ... changes these entries of a dict and keeps the others."""

    def __init__(self, *arguments, entries, **options):
        super().__init__(*arguments, **options)
        self.entries = entries

    def __call__(self, parser, namespace, texts, option_string=None):
        changed = dict(self.entries)
        for text in texts:
            key, equals, value = text.partition("=")
            if key not in self.entries or not equals:
                keys = ", ".join(f"{key}=VALUE" for key in self.entries)
                parser.error(f"argument {option_string}: expected {keys}, found '{text}'")
            try:
                changed[key] = _converter([self.entries[key]])(value)
            except argparse.ArgumentTypeError as error:
                parser.error(f"argument {option_string}: {error}")
        setattr(namespace, self.dest, changed)


def _as_text(value):
    if isinstance(value, dict | MappingProxyType):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
