"""Draw synthetic cats and dogs (parts/drawn_scenes.py) as a data set in the layout of dataload.py.

python tools/make_demo.py --out DATA [--varied] [--side 128] [--counts 640 96 96] [--seed 0]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.commandline import SEEDS, Parser, whole_number
from parts.demo_data import make_demo
from tools.shared.common import as_path, command


@command
def main(argv):
    """Draw the data set and write it."""
    parser = Parser("make_demo.py", __doc__)
    add, counts = parser.add_argument, (640, 96, 96)
    add("--out", required=True, metavar="DATA", help="folder to create, or one without splits")
    add("--varied", action="store_true", help="many poses, coats and scenes, for pre-training")
    sides = whole_number(32, 1024)
    add("--side", type=sides, default=128, metavar="N", help="side in pixels (default: 128)")
    text = "samples in train, val and test (default: 640 96 96)"
    add("--counts", type=whole_number(2, 10**5), nargs=3, default=counts, metavar="N", help=text)
    add("--seed", type=SEEDS, default=0, metavar="N", help="random seed (default: 0)")
    options = parser.parse_args(argv)
    out = as_path(options.out, "--out")
    style = "varied" if options.varied else "demo"
    make_demo(out, options.side, options.counts, options.seed, style)


if __name__ == "__main__":
    sys.exit(main())
