"""What a second, mirrored view of the test images gains, and which network is better without it.

    python benchmarks/mirrored_view.py runs/128 [--split val]

MTL_OEQ averages its outputs for an image and for the mirrored image; any network can. Every run in
the folder is evaluated with and without, on the data that it was trained on. The Markdown table
holds the primary metrics pooled over the folds of each script; below it stand the gains of each
network over the others without the second view, with 95 % bootstrap intervals over the images.
"""

import sys
from collections import defaultdict
from itertools import combinations
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from engine.trained import open_network
from parts.commandline import Parser
from parts.errors import UserError
from tools.shared.common import EXPERIMENTS, as_path, command
from tools.shared.evaluated import evaluate_split, open_split
from tools.shared.histories import refuse_earlier
from tools.shared.intervals import estimate, limits


class Views(nn.Module):
    """A network that sees the image alone, or also the mirrored one and averages the outputs."""

    def __init__(self, network, tasks, mirrored):
        super().__init__()
        self.network, self.tasks, self.mirrored = network, tasks, mirrored

    def forward(self, images):
        plain = self.network.decode(self.network.encoder(images))
        if not self.mirrored:
            return plain
        other = self.network.decode(self.network.encoder(images.flip(3)))
        return {name: (plain[name] + self.tasks[name].mirror(other[name])) / 2 for name in plain}


def primary_rows(weights, split):
    """(name, test set, {(task metric, mirrored): (N, 1, 2) numerators and denominators}).

    Raises:
        UserError: the folder of the run holds other data now, the run is of an earlier version, or
            its network has no decode.
    """
    trained, found = open_network(weights), {}
    network, history = trained.network, trained.history
    refuse_earlier(weights, history)
    if not callable(getattr(network, "decode", None)):
        raise UserError(f"{weights}: expected a Network with encoder and decode, found no decode")
    folder = as_path(history["config"]["H5_SAVE_PATH"], "--h5-save-path")
    dataset = open_split(folder, split, trained)
    recorded, there = history["data_fingerprint"][split], dataset.fingerprint()
    if recorded != there:
        expected, other = (", ".join(map(": ".join, f.items())) for f in (recorded, there))
        raise UserError(f"{dataset.folder}: expected the run's data, {expected}, found {other}")
    for mirrored in (False, True):
        trained.network = Views(network, trained.tasks, mirrored)
        for name, pairs in evaluate_split(trained, dataset).items():
            metric = trained.tasks[name].primary
            found[f"{name} {metric}", mirrored] = pairs[metric][:, None].cpu().numpy()
    return history["name"], there["images"], found


def gains(rows, metric):
    """Yield a line for every pair of networks: how much better the later one is without mirror."""
    known = [name for name in rows if (metric, False) in rows[name]]
    for other, name in combinations(known, 2):
        ours, theirs = rows[name][metric, False], rows[other][metric, False]
        shared = ours.keys() & theirs.keys()
        difference = estimate(ours, shared) - estimate(theirs, shared)
        low, high = limits(difference)
        yield f"{metric}, {name} over {other}: {difference[0]:+.3f} [{low:+.3f}, {high:+.3f}]"


@command
def main(argv):
    """Evaluate the runs and print the table; raises UserError."""
    parser = Parser("mirrored_view.py", __doc__)
    parser.add_argument("runs", metavar="RUNS", help="folder of finished runs, one seed per fold")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="default: test")
    options = parser.parse_args(argv)
    rows = defaultdict(lambda: defaultdict(dict))  # {network: {(metric, mirrored): {fold: rows}}}
    for weights in sorted(as_path(options.runs, "RUNS").glob("**/*_model_lite.pt")):
        name, fold, found = primary_rows(weights, options.split)
        for key, pairs in found.items():
            if fold in rows[name][key]:
                raise UserError(f"{weights}: expected one run of {name} per fold, found another")
            rows[name][key][fold] = pairs
    if not rows:
        raise UserError(f"{options.runs}: expected finished runs, found none")
    order = [*EXPERIMENTS, *sorted(rows.keys() - {*EXPERIMENTS})]
    rows = {name: rows[name] for name in order if name in rows}
    metrics = list(dict.fromkeys(metric for found in rows.values() for metric, _ in found))
    print(f"| network | {' | '.join(f'{m} | mirrored too' for m in metrics)} |")
    print("| --- |" + " --- | --- |" * len(metrics))
    for name, found in rows.items():
        keys = [(metric, mirrored) for metric in metrics for mirrored in (False, True)]
        cells = [f"{estimate(found[key])[0]:.3f}" if key in found else "-" for key in keys]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\nWithout the mirrored view:")
    for metric in metrics:
        print(*gains(rows, metric), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
