"""A Python file executed as if some of its top-level names had other values."""

import __future__

import ast
import functools
from collections import UserDict


def statements(path):
    """The code of each top-level statement of a file by itself.

    In one piece, `global NAME` in any function makes the top level store NAME past `Bound`.
    """
    source = path.read_bytes()
    future = compile(source, path, "exec").co_flags & __future__.annotations.compiler_flag
    for number, node in enumerate(ast.parse(source, path).body):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if number == 0 or not is_text:  # a later text alone is no docstring
            yield compile(ast.Module([node], []), path, "exec", future)


@functools.cache
def assigned(source):
    """The names that a file assigns to, in whatever scope."""
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
    return {node.id for node in names if isinstance(node.ctx, ast.Store)}


class Bound(UserDict):
    """The top-level names of a script while it is executed: those that are given stay as given."""

    def __init__(self, names, given):
        super().__init__()
        self.data = names
        self.given = given

    def __setitem__(self, name, value):
        self.data[name] = self.given.get(name, value)
