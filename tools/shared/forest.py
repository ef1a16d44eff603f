"""The picture of a comparison: a forest plot of the differences, with both intervals."""

import textwrap

import matplotlib
from matplotlib.lines import Line2D

from parts.figures import Figure, plain_style, save

STATED, OPEN = "#0072B2", "0.6"  # Okabe and Ito's blue; grey for intervals that include 0
IMAGES = {"linewidth": 6, "alpha": 0.35, "solid_capstyle": "butt"}
RUNS = {"linewidth": 1.5, "marker": "|"}
DOT = {"marker": "o", "markersize": 5}
NOT_AMONG_ALL = DOT | {"markerfacecolor": "white"}


def save_picture(path, found, titles=None):
    """Draw a panel for each metric and a row for each network of [Difference], none empty.

    `titles` has those of the panels whose title is not the metric's name, {metric: title}.
    """
    labels = list(dict.fromkeys(each.label for each in found))
    panels = list(dict.fromkeys(each.metric for each in found))
    names = [textwrap.wrap(label, 36) for label in labels]
    row = 0.17 + 0.15 * max(map(len, names))  # inches
    size = 1 + 0.08 * min(36, max(map(len, labels))) + 2.7 * len(panels), 1.5 + row * len(labels)
    with plain_style(), matplotlib.rc_context({"text.parse_math": False}):  # a label may hold $
        figure = Figure(size, dpi=110, layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, metric in zip(axes, panels, strict=True):
            draw_forest(axis, [each for each in found if each.metric == metric], labels)
            title = (titles or {}).get(metric, metric.replace("_", " "))
            axis.set_title(title, fontsize=10)
        axes[0].set_yticks(range(len(labels)), map("\n".join, names), fontsize=9)
        count = sum(each.direction is not None for each in found)
        corrected = f"not after correction for {count}"
        handles = [
            Line2D([], [], color=STATED, label="95 % over test images", **IMAGES),
            Line2D([], [], color=STATED, label="95 % over runs", **RUNS),
            Line2D([], [], color=OPEN, linewidth=6, label="no measurable difference"),
            Line2D([], [], color=STATED, ls="", label=corrected, **NOT_AMONG_ALL),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
        save(figure, path)


def draw_forest(axis, found, labels):
    """A row for each label: the difference as a dot, its two intervals as a bar and a line."""
    scale = 100 if found[0].unit == "points" else 1
    axis.axvline(0, color="black", linewidth=0.8)
    for each in found:
        row, colour = labels.index(each.label), STATED if each.direction else OPEN
        for ends, style in ((each.images, IMAGES), (each.runs, RUNS)):
            axis.plot([scale * end for end in ends], [row, row], color=colour, **style)
        dot = NOT_AMONG_ALL if each.direction and not each.holds else DOT
        axis.plot([scale * each.value], [row], color=colour, **dot)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    over = ", ".join(dict.fromkeys(each.reference for each in found))
    axis.set_xlabel(f"{found[0].unit or 'better'} over {over}".strip(), fontsize=9)
    axis.locator_params(axis="x", nbins=5)
    axis.grid(alpha=0.3, axis="x")
