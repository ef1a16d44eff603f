"""What a second, mirrored view of the test images gives each network, and which is better without.

    python benchmarks/mirrored_view.py runs/128 [--split val]

MTL_OEQ averages its outputs for an image and for the mirrored image; any network can. Every run in
the folder is evaluated with and without, on the data that it was trained on. The Markdown table
holds the primary metrics pooled over all runs (folds, seeds) of a script.
"""

import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import H5Dataset
from engine.evaluation import evaluate
from engine.settings import Parser
from tools.common import as_path, choose_device, command
from tools.networks import open_network

BATCH_SIZE = 32


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


def primary_sums(weights, split, processes):
    """(name, {(task metric, mirrored): (2,) numerator and denominator over the split}) of a run."""
    network, tasks, history = open_network(weights, processes.device)
    dataset, found = H5Dataset(split, history["config"]["H5_SAVE_PATH"]), {}
    for mirrored in (False, True):
        views = Views(network, tasks, mirrored)
        for name, pairs in evaluate(views, dataset, tasks, BATCH_SIZE, processes).items():
            metric = tasks[name].primary
            found[f"{name} {metric}", mirrored] = pairs[metric].sum(0).cpu()
    return history["name"], found


@command
def main(argv):
    """Evaluate the runs and print the table; raises UserError."""
    parser = Parser("mirrored_view.py", __doc__)
    parser.add_argument("runs", metavar="RUNS", help="a folder of finished runs")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="(test)")
    options, processes = parser.parse_args(argv), choose_device(None)
    sums, runs = defaultdict(lambda: torch.zeros(2, dtype=torch.float64)), defaultdict(int)
    for weights in sorted(as_path(options.runs, "RUNS").glob("**/*_model_lite.pt")):
        name, found = primary_sums(weights, options.split, processes)
        runs[name] += 1
        for key, pair in found.items():
            sums[name, *key] += pair
    metrics = list(dict.fromkeys(metric for _, metric, _ in sums))
    print(f"| network | runs | {' | '.join(f'{m} | mirrored too' for m in metrics)} |")
    print("| --- | --- |" + " --- | --- |" * len(metrics))
    for name, count in runs.items():
        pairs = [sums.get((name, metric, m)) for metric in metrics for m in (False, True)]
        cells = ["-" if pair is None else f"{pair[0] / pair[1]:.3f}" for pair in pairs]
        print(f"| {name} | {count} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
