"""A Python file executed as if some of its top-level names had other values."""

import __future__

import ast
import difflib
import functools
from collections import UserDict

from parts.commandline import flag
from parts.errors import UserError


def execute(path, module, given):
    """Execute a file in a module, with given names bound to their values from their definition on.

    Args:
        given: {NAME: value}.

    Raises:
        UserError: the file does not define a given name, or changes its value afterwards.
    """
    before = {name: repr(value) for name, value in given.items()}
    names = OverridingNamespace(vars(module), given)
    for code in statements(path):
        exec(code, vars(module), names)
    for name, value in given.items():
        if not hasattr(module, name):
            constants = filter(str.isupper, assigned(path.read_bytes()))
            near = difflib.get_close_matches(name, constants, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"{path.name}: expected a constant {name}, found none{hint}")
        if getattr(module, name) is not value or repr(value) != before[name]:
            raise UserError(
                f"{flag(name)}: expected {path.name} not to change {name} after defining it, found "
                "that it does; use another name for the changed value"
            )


def statements(path):
    """Yield the code of each top-level statement of a file.

    In one piece, `global NAME` in a function would let the top level bypass OverridingNamespace.
    """
    source = path.read_bytes()
    future = compile(source, path, "exec").co_flags & __future__.annotations.compiler_flag
    for number, node in enumerate(ast.parse(source, path).body):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if number == 0 or not is_text:  # a string on its own later is no docstring
            yield compile(ast.Module([node], []), path, "exec", future)


@functools.cache
def assigned(source):
    """The names that a file assigns to, in any scope."""
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
    return {node.id for node in names if isinstance(node.ctx, ast.Store)}


class OverridingNamespace(UserDict):
    """The top-level names of a script while it is executed; given names keep their given values."""

    def __init__(self, names, given):
        super().__init__()
        self.data = names
        self.given = given

    def __setitem__(self, name, value):
        self.data[name] = self.given.get(name, value)
