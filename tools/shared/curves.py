"""The picture of a comparison: validation curves, and a forest plot of the paired differences."""

from itertools import cycle

import matplotlib
import numpy as np

from parts.figures import Figure, plain_style, save
from tools.shared.comparison import gain, limits, metrics

STYLES = (  # colours of Okabe and Ito for colour-blind readers, dashes for grey print
    *(("#0072B2", "-"), ("#E69F00", "--"), ("#009E73", "-."), ("#CC79A7", ":")),
    *(("#D55E00", "-"), ("#56B4E9", "--"), ("#000000", "-."), ("#999999", ":")),
)


def save_picture(path, columns, split, baseline):
    """Curves of the first task's primary metric; gains over `baseline` in all primary metrics."""
    chosen, forest = metrics(columns, split), {}
    others = [label for label in columns if label != baseline]
    for metric in chosen:
        found = {label: gain(columns, label, baseline, metric, split) for label in others}
        found = {k: g for k, g in found.items() if g is not None and np.isfinite(g[0])}
        if found:
            forest[metric.name] = {k: (g[0], *limits(g)) for k, g in found.items()}
    colours = {label: colour for label, (colour, _) in zip(columns, cycle(STYLES))}
    size = 5 + 3.2 * len(forest), max(3.6, 1.6 + 0.36 * len(columns))
    with plain_style(), matplotlib.rc_context({"text.parse_math": False}):  # a label may hold $
        figure = Figure(size, dpi=110, layout="constrained")
        ratios = [1.6, *[1] * len(forest)]
        axes = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
        draw_curves(axes[0], columns, chosen[0].name)
        axes[0].legend(fontsize=8)
        for axis, (name, found) in zip(axes[1:], forest.items(), strict=True):
            draw_forest(axis, name, found, others, colours)
            axis.tick_params(labelleft=axis is axes[1])
        for axis in axes[1:2]:
            unit = "images" if split == "test" else "runs"
            title = f"{split}: gain over {baseline},\n95 % intervals over {unit}"
            axis.set_title(title, fontsize=11, loc="left")
        save(figure, path)


def draw_curves(axis, columns, metric):
    """Mean over runs of a validation metric by epoch, with a band of one sd on each side."""
    for (label, column), (colour, dashes) in zip(columns.items(), cycle(STYLES)):
        series = [run["curves"]["val"].get(metric, []) for run in column]
        if not any(series):  # the network lacks the task
            continue
        longest = max(map(len, series))  # a stopped run is shorter
        padded = [[*values, *[None] * (longest - len(values))] for values in series if values]
        table = np.ma.masked_invalid(np.array(padded, float).reshape(len(padded), longest))
        epochs, mean = np.arange(1, longest + 1), table.mean(0)
        axis.plot(epochs, mean, color=colour, linestyle=dashes, label=label)
        if len(table) > 1:
            spread = table.std(0, ddof=1)
            axis.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.15)
    late = [line.get_ydata()[len(line.get_ydata()) // 4 :] for line in axis.lines]
    late = np.ma.concatenate(late).compressed()  # the first quarter would hide the rest
    if len(late):
        margin = 0.05 * np.ptp(late) + 1e-3
        axis.set_ylim(late.min() - margin, late.max() + margin)
    axis.set_title("validation, mean and sd over runs", fontsize=11)
    axis.set(xlabel="epoch", ylabel=metric.replace("_", " "))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)


def draw_forest(axis, name, found, labels, colours):
    """A row for each label: its gain as a dot and the interval as a bar, empty if not `found`."""
    axis.axvline(0, color="grey", linewidth=1)
    for row, label in enumerate(labels):
        if label in found:
            value, low, high = found[label]
            axis.plot([low, high], [row, row], color=colours[label], linewidth=2)
            axis.plot([value], [row], "o", color=colours[label])
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_xlabel(f"{name.replace('_', ' ')} (better to the right)")
    axis.locator_params(axis="x", nbins=5)
    axis.grid(alpha=0.3, axis="x")
