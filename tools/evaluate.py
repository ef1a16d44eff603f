"""Evaluate a trained network on any data in the H5 layout: all metrics with their intervals.

    python tools/evaluate.py runs/main/main_model_lite.pt data/pets
    python tools/evaluate.py weights/OEQ_model_lite.pt data/mine --split val

MODEL is a file of a run, as for predict.py. Images keep the side they have in the data. [low, high]
is a 95 % percentile bootstrap interval over the images; it does not cover differences between
training runs.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS
from engine.trained import open_network
from parts.commandline import Parser
from tools.shared.common import as_path, command
from tools.shared.evaluated import evaluate_split, open_split
from tools.shared.intervals import estimate, limits


def rows(tasks, table):
    """Yield (name, known samples, value, low, high) of every metric; NaN if undefined."""
    for name, task in tasks.items():
        known = int((table[name]["loss"][:, 1] > 0).sum())
        parts = {metric: (metric,) for metric in table[name] if metric != "loss"} | task.means
        for metric, names in parts.items():
            pairs = torch.stack([table[name][part] for part in names], dim=1)  # (N, parts, 2)
            found = estimate({0: pairs.cpu().numpy()})
            yield f"{name}_{metric}", known, found[0], *limits(found)


@command
def main(argv):
    """Print one line for each metric; raises UserError."""
    parser = Parser("evaluate.py", __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="NAME_model.pt, NAME_model_lite.pt or NAME_last.pt")
    add("data", metavar="DATA", help="data folder with the split")
    add("--split", choices=SPLITS, default="test", help="the split to evaluate (default: test)")
    add("--device", metavar="DEVICE", help="cpu, cuda, ... (default: CUDA if available)")
    options = parser.parse_args(argv)
    network = open_network(as_path(options.model, "MODEL"), options.device)
    dataset = open_split(as_path(options.data, "DATA"), options.split, network)
    found = list(rows(network.tasks, evaluate_split(network, dataset)))
    width = max(len(name) for name, *_ in found)
    print(f"{len(dataset)} images of {dataset.side[0]} x {dataset.side[1]} in {dataset.folder}")
    for name, known, value, low, high in found:
        interval = f" [{low:.4f}, {high:.4f}]" if low == low else ""
        text = f"{value:.4f}{interval}" if value == value else "unknown"
        print(f"{name:{width}}  {text}  ({known} known)")


if __name__ == "__main__":
    sys.exit(main())
