"""A Python file executed as if some of its top-level names had other values."""

import __future__

import ast
import functools
from collections import UserDict


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
