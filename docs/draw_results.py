"""Draw docs/masks.png and docs/front.png of results.md from the files in results/.

python docs/draw_results.py
"""

import sys
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.lines import Line2D

from engine.script import ROOT
from parts.figures import Figure, plain_style, save
from tools.shared import histories
from tools.shared.comparison import estimate, limits, metrics, units

FOLDS, FRONT_FOLDS, SEED = (0, 1, 2), (0, 1), 0  # of masks.png, of front.png, of both
SHARES = {"_m0.05": 32, "_m0.1": 64, "_m0.25": 161, "_m0.5": 322, "": 643}  # folder: masks
NETWORKS = {  # label: (ending of the folders, NAME, colour of Okabe and Ito, line)
    "MTL_OEQ from drawn pets": ("_drawn30k", "OEQ", "#CC79A7", "-"),
    "MTL_main from drawn pets": ("_drawn30k", "main", "#56B4E9", "-"),
    "MTL_OEQ": ("", "OEQ", "#D55E00", "-"),
    "MTL_OEQ, mask alone": ("_mask_only", "OEQ", "#D55E00", ":"),
    "MTL_main": ("", "main", "#009E73", "-"),
    "MTL_baseline": ("", "baseline", "#0072B2", ":"),
}
COLOURS = {0.1: "#56B4E9", 0.3: "#009E73", 1: "#D55E00"}  # weight of the task on the vertical axis
MARKERS = {0: "o", 0.1: "^", 0.3: "s", 1: "D"}  # weight of the third task
PANELS = (  # metric on the vertical axis and its title, its task, the third task
    ("bbox_iou", "box IoU", "bbox", "bin"),
    ("bin_accuracy", "accuracy", "bin", "bbox"),
)
KINDS = {"bbox": "box", "bin": "class"}


def column(folder, folds, name):
    """The summaries of a script's runs in a folder, with SEED and on these folds."""
    runs = [run for _, run in histories.find([str(folder)]) if run["name"] == name]
    found = [run for run in runs if run["fold"] in folds and run["seed"] == SEED]
    assert {run["fold"] for run in found} == set(folds), folder
    return found


def pooled(runs, name):
    """The estimate of a primary metric over the test images of the runs."""
    (metric,) = [m for m in metrics({"": runs}, "test") if m.name == name]
    return estimate(units(runs, metric, "test"))


def draw_masks(axis):
    """Test seg IoU over the number of training masks, a line for each network."""
    for i, (label, (ending, name, colour, line)) in enumerate(NETWORKS.items()):
        points = []
        for share, masks in SHARES.items():
            runs = column(ROOT / f"results/128{share}{ending}", FOLDS, name)
            value = pooled(runs, "seg_iou")
            low, high = limits(value)
            points.append((masks * (0.95 + 0.02 * i), value[0], value[0] - low, high - value[0]))
        x, y, below, above = zip(*points, strict=True)
        axis.errorbar(x, y, (below, above), color=colour, ls=line, marker="o", ms=4, label=label)
    axis.set_xscale("log")
    axis.set_xticks(list(SHARES.values()), [str(masks) for masks in SHARES.values()])
    axis.minorticks_off()
    axis.set_xlabel("training images with a mask, of 643; boxes and labels stay")
    axis.set_ylabel("seg IoU, test")
    axis.legend(fontsize=8, loc="lower right")


def draw_front(axis, metric, title, task, third):
    """A task's metric over seg IoU on validation images: fixed weights and other weightings."""
    for folder in sorted((ROOT / "results/128_front").iterdir()):
        runs = column(folder, FRONT_FOLDS, "main")
        weights = runs[0]["config"]["LOSS_WEIGHTS"]
        if weights[task]:
            style = {"color": COLOURS[weights[task]], "marker": MARKERS[weights[third]]}
            axis.plot(best(runs, "seg_iou"), best(runs, metric), ls="", **style)
    for letter, folder in weightings().items():
        runs = column(folder, FRONT_FOLDS, "weighting")
        axis.add_line(mark(letter, [best(runs, "seg_iou")], [best(runs, metric)]))
    plain = best(column(ROOT / "results/128", FRONT_FOLDS, "baseline"), "seg_iou")
    axis.axvline(plain, color="0.4", ls=":", lw=1, label="MTL_baseline")
    axis.set_xlabel("seg IoU, validation")
    axis.set_ylabel(f"{title}, validation")
    for weight, colour in COLOURS.items():
        axis.plot([], [], "o", color=colour, label=f"{KINDS[task]} weight {weight}")
    for weight, marker in MARKERS.items():
        axis.plot([], [], marker, color="0.6", label=f"{KINDS[third]} weight {weight}")
    axis.legend(fontsize=7)


def weightings():
    """{letter that stands for it in the figure: folder of the runs with another weighting}."""
    folders = sorted((ROOT / "results/128_weighting").iterdir())
    return dict(zip(ascii_uppercase[: len(folders)], folders, strict=True))


def mark(letter, x=(), y=(), **label):
    """A letter as the marker of a point, or in a legend."""
    return Line2D(x, y, ls="", marker=f"${letter}$", color="black", **label)


def best(runs, metric):
    """The mean over the runs of a metric on validation images, at each run's best epoch."""
    return fmean(run["best"]["val"][metric] for run in runs)


def main():
    """Draw the figures."""
    with plain_style():
        figure = Figure((7, 4), dpi=110, layout="constrained")
        draw_masks(figure.subplots())
        save(figure, ROOT / "docs/masks.png")
        figure = Figure((10, 4.5), dpi=110, layout="constrained")
        for axis, panel in zip(figure.subplots(1, 2), PANELS, strict=True):
            draw_front(axis, *panel)
        marks = [mark(letter, label=folder.name) for letter, folder in weightings().items()]
        figure.legend(handles=marks, loc="outside right upper", fontsize=7, title="weighting")
        save(figure, ROOT / "docs/front.png")


if __name__ == "__main__":
    main()
