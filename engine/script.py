"""One experiment: a script loaded from its file, and a check of what it must define."""

import importlib.util
import linecache
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from engine.settings import UserError

ROOT = Path(__file__).resolve().parent.parent
NEEDED = {  # by the engine itself
    "constant": (
        *("H5_SAVE_PATH", "FILE_SAVE_PATH", "EPOCHS", "BATCH_SIZE", "LEARNING_RATE"),
        *("WEIGHT_DECAY", "EMA_DECAY", "CLIP_NORM", "SIDES", "SEED"),
    ),
    "definition": ("Network", "TASKS", "weighting"),
}


class Script(NamedTuple):
    """An experiment.

    Attributes:
        name: NAME in its artefacts: the file's name without MTL_ and .py.
        module_name: the name by which Python imports it in the repository, "MTL_main" or
            "examples.bbox_only"; a saved network refers to it.
        module: the file, executed anew.
    """

    name: str
    module_name: str
    module: ModuleType

    @property
    def title(self):
        """The file's name, for messages."""
        return Path(self.module.__file__).name


def load(place):
    """The Script of a path that ends in .py, or of a module's name.

    Every call executes the file again, so that edits take effect, in a notebook too.

    Raises:
        UserError: there is no such file or module.
    """
    path = Path(place) if str(place).endswith(".py") else _path_of(str(place))
    if not path.is_file():
        raise UserError(f"{place}: expected a script, found no such file")
    path = path.resolve()
    inside = path.is_relative_to(ROOT)
    parts = path.relative_to(ROOT).with_suffix("").parts if inside else (path.stem,)
    name = ".".join(parts)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    linecache.checkcache(str(path))
    sys.modules[name] = module  # where pickle looks for the network's class
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), vars(module))
    return Script(path.stem.removeprefix("MTL_"), name, module)


def _path_of(name):
    """The file of a module; a path that does not exist if there is no such module."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a folder is missing, or this is not a name
        spec = None
    return Path(spec.origin) if spec and spec.has_location else ROOT / f"{name}.py"


def check_script(script, constants):
    """Refuse a script that lacks what every run needs.

    Raises:
        UserError: names the file and what is missing.
    """
    for kind, names in NEEDED.items():
        defined = constants if kind == "constant" else vars(script.module)
        missing = [name for name in names if name not in defined]
        if missing:
            raise UserError(f"expected a {kind} {missing[0]}, found none")
    if not isinstance(script.module.TASKS, dict) or not script.module.TASKS:
        raise UserError("TASKS: expected {name: Task} with a task, found none")


def check_tasks(tasks, weights, outputs, targets):
    """Refuse a script whose tasks, weights, outputs and targets do not match.

    Args:
        weights: {task: float}.
        tasks, outputs, targets: the names of each.

    Raises:
        UserError: names the task and what it lacks.
    """
    for task in tasks:
        for what, names in (("weight", weights), ("output", outputs), ("target", targets)):
            if task not in names:
                where = {"weight": "weighting()", "output": "Network", "target": "the data"}[what]
                raise UserError(
                    f"TASKS: expected a {what} for '{task}' from {where}, found "
                    f"{', '.join(map(str, names)) or 'none'}"
                )
    surplus = [name for name in weights if name not in tasks]
    if surplus:
        raise UserError(f"weighting(): expected weights of {', '.join(tasks)}, found {surplus[0]}")
    for task, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise UserError(
                f"--loss-weights: expected numbers of at least 0, found {weight} for '{task}'"
            )
