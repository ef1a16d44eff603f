"""Draw docs/masks.png of results.md from the files in results/.

python docs/draw_results.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.pictures import Figure, plain_style, save
from engine.script import ROOT
from tools import histories
from tools.comparison import estimate, limits, metrics, units

SHARES = ("0.05", "0.1", "0.25", "1")  # of the training masks
NETWORKS = {  # label: (ending of the folders, NAME, colour of Okabe and Ito, line)
    "MTL_OEQ from drawn pets": ("_drawn", "OEQ", "#D55E00", "-"),
    "MTL_baseline": ("", "baseline", "#0072B2", ":"),
}


def column(folder, folds):
    """The summaries of a folder's runs on these folds."""
    found = [run for _, run in histories.find([str(folder)]) if run["fold"] in folds]
    assert {run["fold"] for run in found} == set(folds), folder
    return found


def pooled(runs, name):
    """The estimate of a primary metric over the test images of the runs."""
    (metric,) = [m for m in metrics({"": runs}, "test") if m.name == name]
    return estimate(units(runs, metric, "test"))


def draw_masks(axis, folds):
    """Test seg IoU over the share of the training masks, a line for each network."""
    for i, (label, (ending, name, colour, line)) in enumerate(NETWORKS.items()):
        points = []
        for share in SHARES:
            folder = ROOT / "results" / f"128{'' if share == '1' else f'_m{share}'}{ending}"
            runs = [run for run in column(folder, folds) if run["name"] == name]
            value = pooled(runs, "seg_iou")
            low, high = limits(value)
            points.append(
                (float(share) * (0.97 + 0.02 * i), value[0], value[0] - low, high - value[0])
            )
        x, y, below, above = zip(*points, strict=True)
        axis.errorbar(x, y, (below, above), color=colour, ls=line, marker="o", ms=4, label=label)
    axis.set_xscale("log")
    axis.set_xticks([float(s) for s in SHARES], [f"{float(s):.0%}" for s in SHARES])
    axis.minorticks_off()
    axis.set_xlabel("share of the training masks; boxes and labels stay")
    axis.set_ylabel("seg IoU, test")
    axis.legend(fontsize=8, loc="lower right")


def main():
    """Draw the figure."""
    with plain_style():
        figure = Figure((7, 4), dpi=110, layout="constrained")
        draw_masks(figure.subplots(), folds=(0,))
        save(figure, ROOT / "docs/masks.png")


if __name__ == "__main__":
    main()
