"""One experiment: a script, executed under given constants, and what it must define."""

import copy
import functools
import itertools
import linecache
import math
import os
import pickle
import re
import sys
import tokenize
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import NamedTuple

from engine.settings import check, constants, is_setting, parser_of
from parts.commandline import flag
from parts.errors import UserError, with_class
from parts.execution import execute

ROOT = Path(__file__).resolve().parent.parent
CONSTANTS = (  # that the engine itself needs
    *("H5_SAVE_PATH", "FILE_SAVE_PATH", "EPOCHS", "BATCH_SIZE", "LEARNING_RATE"),
    *("WEIGHT_DECAY", "EMA_DECAY", "CLIP_NORM", "SIDES", "SEED"),
)
DEFINITIONS = ("Network", "TASKS", "weighting", "augmentation")
origins = {}  # {name of a module that was executed here: (place, constants)}
executing = []  # paths of the scripts that are being executed
numbers = itertools.count(1)


class Script(NamedTuple):
    """An experiment.

    Attributes:
        path: of its file.
        module: the file, executed.
    """

    path: Path
    module: ModuleType

    @property
    def name(self):
        """NAME in its artefacts: the file's name without MTL_ and .py."""
        return self.path.stem.removeprefix("MTL_") or self.path.stem

    @property
    def place(self):
        """The path for a history: from the repository's folder if it is in there."""
        return place_of(self.path)


def load(place, **given):
    """A script as a module, executed as if these constants had been edited.

    `load("MTL_main.py", WIDTHS=(8, 16)).Network()` is the network that `--widths 8 16` trains. The
    source is executed with each given constant bound to its value from its definition on, so
    everything that reads it sees it. Every call executes the file again, as a new module.

    Args:
        place: path of the script, or the name by which Python imports it.
        given: {NAME: value}.

    Raises:
        UserError: there is no such file or constant, a value is out of range, or the script
            changes a given constant after defining it.
    """
    path = find(place)
    check(given)
    if path in executing:
        raise UserError(
            'engine.main: expected it below `if __name__ == "__main__":`, found it outside'
        )
    name = f"script_{next(numbers)}_{re.sub(r'[^A-Za-z0-9]', '_', path.stem)}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and torch.compile look there
    linecache.checkcache(str(path))
    kept = {n: copy.deepcopy(v) if is_setting(v) else v for n, v in given.items()}
    executing.append(path)
    try:
        execute(path, module, kept)
    finally:
        executing.pop()
    others = {name: value for name, value in given.items() if not is_setting(value)}
    origins[name] = place_of(path), constants(module) | others
    return module


def load_recorded(path, recorded):
    """The module of a script under the constants that a history or a pickle has recorded.

    They are set one by one, in the order of their definition, until none differs, so that constants
    that are computed from others, even step by step, follow.

    Args:
        recorded: {NAME: value}; what the script does not have is left out.
    """
    given = {name: value for name, value in recorded.items() if not is_setting(value)}
    while True:
        module = load(path, **given)
        found = {n: v for n, v in constants(module).items() if n in recorded.keys() - given.keys()}
        changed = [name for name, value in found.items() if repr(value) != repr(recorded[name])]
        if not changed:
            return module
        given[changed[0]] = recorded[changed[0]]


def find(place, *folders):
    """The resolved path of a script, from its path or its name as a module.

    Args:
        folders: where else to look for a script that a file names, as it may have moved since. A
            relative path then starts from the repository's folder.

    Raises:
        UserError: there is no such file; names the paths that were tried.
    """
    path = Path(os.path.expanduser(place))
    dotted = Path(f"{str(place).replace('.', '/')}.py")  # of "MTL_main" or "examples.breed"
    names = [path] if path.suffix == ".py" else [path, dotted]
    bases = [ROOT] if folders else [Path(), ROOT]
    wanted = [base / name for name in names for base in bases]
    wanted += [Path(folder).resolve() / name.name for folder in folders for name in names]
    found = next(filter(os.path.isfile, wanted), None)
    if found is None:
        looked = ", ".join(map(str, dict.fromkeys(wanted)))
        raise UserError(f"{place}: expected a script, found no such file; looked for {looked}")
    return found.resolve()


def place_of(path):
    """A resolved path as text, from the repository's folder if it is in there."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def parse(file, argv):
    """(Script, settings, options) of a file and its command line.

    The settings have the constants of the executed script as attributes; the options are those of
    `settings.parser_of`.

    Raises:
        UserError: an unknown flag, a value of a wrong type or out of range, or values under which
            the script cannot be executed.
    """
    path = find(file)
    module = load(path)
    defaults, text = constants(module), (module.__doc__ or "").strip() or path.stem
    with tokenize.open(path) as file:  # in its own encoding
        source = file.read()
    summary = re.split(r"\n\s*\n", text)[0]  # the first paragraph
    options = parser_of(path.name, summary, source, defaults).parse_args(argv)
    if options.demo and "H5_SAVE_PATH" in vars(options):
        raise UserError(
            f"--demo: expected no --h5-save-path beside it, found {options.H5_SAVE_PATH}"
        )
    if getattr(options, "weights", None) == "":  # such as an unset variable of the shell
        raise UserError("--weights: expected a file, found an empty path")
    chosen = {name: vars(options)[name] for name in defaults if name in vars(options)}
    chosen |= {n: tuple(v) for n, v in chosen.items() if isinstance(defaults[n], tuple)}
    if options.demo and "DEMO_EPOCHS" in defaults:  # an easier task
        chosen = {"EPOCHS": chosen.get("DEMO_EPOCHS", defaults["DEMO_EPOCHS"])} | chosen
    check(chosen)
    changed = {n: value for n, value in chosen.items() if repr(value) != repr(defaults[n])}
    if changed:
        try:
            module = load(path, **changed)
        except UserError:
            raise
        except Exception as error:
            flags = ", ".join(map(flag, changed))
            reason = with_class(error)
            raise UserError(f"{flags}: {path.name} cannot be executed ({reason})") from error
    values = constants(module)
    check(values)
    options.weights = values.get("WEIGHTS") or getattr(options, "weights", None)
    return Script(path, module), SimpleNamespace(**values), options


def check_script(script, settings):
    """UserError names what a script lacks that every run needs."""
    missing = [name for name in CONSTANTS if not hasattr(settings, name)]
    if missing:
        raise UserError(f"expected a constant {missing[0]}, found none")
    check_definitions(script.module, DEFINITIONS)


def check_definitions(module, names):
    """UserError unless a script defines these names, and TASKS, one of them, as {name: Task}."""
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise UserError(f"expected a definition {missing[0]}, found none")
    tasks = module.TASKS
    if not isinstance(tasks, dict) or not tasks:
        raise UserError("TASKS: expected {name: Task} with a task, found none")
    for name, task in tasks.items():
        if not hasattr(task, "target"):
            raise UserError(f"TASKS: expected a Task for '{name}', found {type(task).__name__}")


def check_tasks(tasks, weights, outputs, targets):
    """Check that a script's tasks, weights, outputs and targets match.

    Args:
        weights: {task: float}.
        tasks, outputs, targets: the names of each.

    Raises:
        UserError: they do not; names the task and what it lacks.
    """
    for task in tasks:
        for what, where, names in (
            ("a weight", "weighting()", weights),
            ("an output", "Network", outputs),
            ("a target", "the data", targets),
        ):
            if task not in names:
                raise UserError(
                    f"TASKS: expected {what} for '{task}' from {where}, found "
                    f"{', '.join(map(str, names)) or 'none'}"
                )
    surplus = [name for name in weights if name not in tasks]
    if surplus:
        raise UserError(f"weighting(): expected weights of {', '.join(tasks)}, found {surplus[0]}")
    first = next(iter(tasks))
    for task, weight in weights.items():
        if not 0 <= weight < math.inf or (task == first and weight == 0):
            low = "above 0, as it chooses the best epoch" if task == first else "of at least 0"
            raise UserError(f"--loss-weights: expected a number {low}, found {weight} for '{task}'")


# ---- whole networks as files: opening one executes the script again ----


class Pickler(pickle.Pickler):
    """A Pickler that stores a script's classes as attributes of the script, to be executed again.

    A class is usually pickled by the name of its module. A script outside the import path or with
    a dot in its name has none, and the name says nothing of the constants of the run.
    """

    def reducer_override(self, item):
        """How to restore a script, or a class or function of it."""
        if isinstance(item, ModuleType) and item.__name__ in origins:
            return restore, origins[item.__name__]
        defined_in = getattr(item, "__module__", None)
        is_named = isinstance(item, type | FunctionType) and "<" not in item.__qualname__
        if is_named and defined_in in origins:  # no local name or lambda
            return attribute, (sys.modules[defined_in], item.__qualname__)
        return NotImplemented


PICKLE = SimpleNamespace(Pickler=Pickler, __name__="pickle")  # for torch.save(pickle_module=...)


def pickle_from(folder):
    """The same for torch.load, of a file in a folder, where a script that has moved may be."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            found = super().find_class(module, name)
            return functools.partial(restore, folder=folder) if found is restore else found

    return SimpleNamespace(Unpickler=Unpickler, load=pickle.load, __name__="pickle")


def restore(place, recorded, folder="."):
    """The module of a script for a pickle."""
    return load_recorded(find(place, folder), recorded)


def attribute(module, name):
    """What a script defines under a name, which may hold dots."""
    return functools.reduce(getattr, name.split("."), module)
