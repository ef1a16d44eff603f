"""The documents of the repository, and what is in their code blocks."""

import re
import shlex

from running import ROOT

PATHS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PATHS += [ROOT / folder / "README.md" for folder in ("weights", "benchmarks")]
TEXTS = {  # also of what README need not link to
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*PATHS, ROOT / "results" / "README.md")
}


def blocks(text, *kinds):
    """[(kind, content)] of the fenced code blocks of some languages, in their order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(kind, content) for kind, content in found if kind in kinds]


def commands(block):
    """The single commands of a shell block, as lists of words; loops are unrolled."""
    block = re.sub(r"\\\n\s*", " ", block)
    block = re.sub(r"; do\n\s*(.*)\ndone", r"; do \1; done", block)
    lines = [line for whole in block.splitlines() for line in unrolled(whole)]
    return [shlex.split(part) for line in lines for part in line.split(" && ") if part.strip()]


def unrolled(line):
    """The lines that a line of the shell runs, one for each turn of its loops."""
    loop = re.fullmatch(r"for (\w+) in ([^;]+); do (.*); done", line)
    if not loop:
        return [line]
    name, values, body = loop.groups()
    return [part for v in values.split() for part in unrolled(body.replace(f"${name}", v))]
