"""Draw the figures of the documents from the files in results/, into docs/ or another folder.

python docs/draw_results.py [FOLDER]
"""

import sys
from functools import cache
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from engine.script import ROOT
from parts.commandline import Parser
from parts.figures import Figure, plain_style, save
from tools.shared import histories
from tools.shared.common import command, make_folder
from tools.shared.comparison import differences, group, metrics, pooled
from tools.shared.forest import save_picture
from tools.shared.intervals import limits

PRETRAINED = "OEQ, pre-trained"
FORESTS = {  # picture: RUNS and --baseline of tools/compare.py
    "compare.png": (
        ("128", "128_seeds", f"{PRETRAINED}=128_low", f"{PRETRAINED}=128_low_seeds"),
        "main",
    ),
    "weightings.png": (("128_weighting",), "main"),
}
FOLDS, FRONT_FOLDS, SEED = (0, 1, 2), (0, 1), 0  # of masks.png, of front.png, of both
SHARES = {"_m0.05": 32, "_m0.1": 64, "_m0.25": 161, "_m0.5": 322, "": 643}  # series: masks
NETWORKS = {  # label: (ending of the series, NAME, colour of Okabe and Ito, line)
    "MTL_OEQ, pre-trained": ("_drawn30k", "OEQ", "#CC79A7", "-"),
    "MTL_main, pre-trained": ("_drawn30k", "main", "#56B4E9", "-"),
    "MTL_OEQ": ("", "OEQ", "#D55E00", "-"),
    "MTL_OEQ, mask alone": ("_mask_only", "OEQ", "#D55E00", ":"),
    "MTL_main": ("", "main", "#009E73", "-"),
    "MTL_baseline": ("", "baseline", "#0072B2", ":"),
}
APART = 0.013  # least distance of two labels in masks.png, in IoU
WEIGHTS = (0, 0.1, 0.3, 1)  # of box and class, in front.png
TITLES = {  # of the panels of a metric
    "seg_iou": "mask IoU",
    "bbox_iou": "box IoU",
    "bin_accuracy": "accuracy of cat or dog",
}


@cache
def series(name):
    """The runs of results/NAME.jsonl, as (place, summary)."""
    return histories.find([str(ROOT / f"results/{name}.jsonl")])


def column(name, folds, script):
    """The summaries of a script's runs in a series, with SEED and on these folds."""
    runs = [run for _, run in series(name) if run["name"] == script]
    found = [run for run in runs if run["fold"] in folds and run["seed"] == SEED]
    assert {run["fold"] for run in found} == set(folds), name
    return found


def draw_masks(axis):
    """Test mask IoU over the number of training masks, a line for each network."""
    lines = {}
    for i, (label, (ending, script, colour, style)) in enumerate(NETWORKS.items()):
        points = []
        for share, masks in SHARES.items():
            runs = column(f"128{share}{ending}", FOLDS, script)
            value = pooled(runs, metrics({"": runs}, "test")[0], "test")
            low, high = limits(value)
            points.append((masks * (0.95 + 0.02 * i), value[0], value[0] - low, high - value[0]))
        x, y, below, above = zip(*points, strict=True)
        axis.errorbar(x, y, (below, above), color=colour, ls=style, marker="o", ms=4, lw=1.5)
        lines[label] = y[0], colour
    height = 1.0
    for label, (value, colour) in sorted(lines.items(), key=lambda line: -line[1][0]):
        height = min(value, height - APART)
        axis.text(28, height, label, color=colour, ha="right", va="center", fontsize=9)
    axis.set_xscale("log")
    axis.set_xlim(left=9)
    axis.set_xticks(list(SHARES.values()), [str(masks) for masks in SHARES.values()])
    axis.minorticks_off()
    axis.set_xlabel("training photos with a mask, of 643 (bars: 95 % over test photos)")
    axis.set_ylabel("mask IoU on test photos")


def draw_front(axis, metric, title):
    """A metric on validation images in a cell for each pair of fixed weights of box and class."""
    task, grid = metric.split("_")[0], np.full((len(WEIGHTS), len(WEIGHTS)), np.nan)
    for name in dict.fromkeys(run["name"] for _, run in series("128_front")):
        runs = column("128_front", FRONT_FOLDS, name)
        weights = runs[0]["config"]["LOSS_WEIGHTS"]
        if weights[task]:  # a head whose loss has the weight 0 learns nothing
            place = WEIGHTS.index(weights["bbox"]), WEIGHTS.index(weights["bin"])
            grid[place] = best(runs, metric)
    axis.imshow(grid, cmap="Blues", vmin=np.nanmin(grid) - np.nanstd(grid))
    for (row, place), value in np.ndenumerate(grid):
        if np.isfinite(value):
            colour = "white" if value > np.nanmean(grid) else "black"
            axis.text(place, row, f"{value:.3f}", ha="center", va="center", color=colour)
    axis.set_xticks(range(len(WEIGHTS)), WEIGHTS)
    axis.set_yticks(range(len(WEIGHTS)), WEIGHTS)
    axis.set(xlabel="weight of the class's loss", ylabel="weight of the box's loss")
    axis.set_title(title, fontsize=10)


def best(runs, metric):
    """The mean over the runs of a metric on validation images, at each run's best epoch."""
    return fmean(run["best"][metric] for run in runs)


@command
def main(argv):
    """Draw the figures; raises UserError."""
    parser = Parser("draw_results.py", __doc__)
    parser.add_argument("folder", metavar="FOLDER", nargs="?", help="default: docs")
    folder = make_folder(parser.parse_args(argv).folder or ROOT / "docs", "FOLDER")
    for picture, (names, baseline) in FORESTS.items():
        labels = (name.rpartition("=") for name in names)
        runs = [f"{label}{equals}{ROOT}/results/{name}.jsonl" for label, equals, name in labels]
        found = differences(group(histories.find(runs)), "test", baseline)
        save_picture(folder / picture, found, TITLES)
    with plain_style():
        figure = Figure((6.8, 3.6), dpi=130, layout="constrained")
        draw_masks(figure.subplots())
        save(figure, folder / "masks.png")
        figure = Figure((9, 3.2), dpi=110, layout="constrained")
        for axis, panel in zip(figure.subplots(1, 3), TITLES.items(), strict=True):
            draw_front(axis, *panel)
        save(figure, folder / "front.png")


if __name__ == "__main__":
    sys.exit(main())
