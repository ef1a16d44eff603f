"""Draw a synthetic data set of cats and dogs in the H5 layout of dataload.py; see drawn_pets.py.

python tools/make_demo.py --out DIR [--varied] [--side 128] [--counts 640 96 96] [--seed 0]
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS
from drawn_pets import make_demo
from engine.settings import Parser, UserError
from tools.common import run_tool


def whole_number(low, high):
    """An argparse type: a whole number from `low` to `high`."""

    def parse(text):
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            message = f"expected a whole number from {low} to {high}, found '{text}'"
            raise argparse.ArgumentTypeError(message)
        return int(text)

    return parse


def draw(argv):
    """Parse the flags and draw."""
    parser = Parser("make_demo.py", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, metavar="DIR", help="folder without splits yet")
    parser.add_argument("--varied", action="store_true", help="more variety, to pre-train on")
    parser.add_argument("--side", type=whole_number(32, 1024), default=128, help="pixels")
    parser.add_argument("--counts", type=whole_number(2, 10**5), nargs="+", default=[640, 96, 96])
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0)
    flags = parser.parse_args(argv)
    if len(flags.counts) != len(SPLITS):
        raise UserError(f"--counts: expected 3 numbers, found {len(flags.counts)}")
    if not flags.out.strip():
        raise UserError(f"--out: expected a folder, found '{flags.out}'")
    folder, style = os.path.expanduser(flags.out), "varied" if flags.varied else "demo"
    try:
        make_demo(folder, flags.side, flags.counts, flags.seed, style)
    except (OSError, MemoryError) as error:
        raise UserError(f"--out {flags.out}: cannot be written ({error})") from error


def main(argv=None):
    """Run the tool; returns the exit code: 0, 2 for a mistake, 130 for Ctrl-C."""
    return run_tool("make_demo.py", draw, argv)


if __name__ == "__main__":
    sys.exit(main())
