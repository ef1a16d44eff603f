"""The comments beside constants, which are the help texts of their flags."""

import ast
import io
import tokenize


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


def _targets(node):
    """The names that a top-level statement assigns to."""
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
