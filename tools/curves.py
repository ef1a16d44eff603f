"""The picture of a comparison: validation curves with bands, and bars of the main metrics."""

from itertools import cycle

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from engine.artefacts import replacing
from tools.comparison import MAIN_METRICS, values

STYLES = (  # colours of Okabe and Ito, told apart by all readers, and dashes for grey print
    *(("#0072B2", "-"), ("#E69F00", "--"), ("#009E73", "-."), ("#CC79A7", ":")),
    *(("#D55E00", "-"), ("#56B4E9", "--"), ("#F0E442", "-.")),
)


def save_picture(path, columns, split):
    """Validation seg IoU over epochs, and main metrics of `split`, of {label: {seed: summary}}."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.4), dpi=110, layout="constrained", width_ratios=(1, 1.2)
    )
    draw_curves(left, columns)
    draw_bars(right, columns, split)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    with replacing(path) as temporary:
        figure.savefig(temporary)
    plt.close(figure)


def draw_curves(axis, columns):
    """Mean over seeds of the validation seg IoU by epoch, with a band of one sd on each side."""
    metric = MAIN_METRICS["seg"]
    for (label, seeds), (colour, dashes) in zip(columns.items(), cycle(STYLES)):
        if any(metric not in run["curves"]["val"] for run in seeds.values()):
            axis.plot([], [], color=colour, linestyle=dashes, label=label)  # for the legend
            continue  # a network without this task
        series = np.array([run["curves"]["val"][metric] for run in seeds.values()], float)
        epochs, mean = np.arange(1, series.shape[1] + 1), series.mean(0)  # (seeds, epochs)
        axis.plot(epochs, mean, color=colour, linestyle=dashes, label=label)
        if len(series) > 1:
            spread = series.std(0, ddof=1)
            axis.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.15)
    axis.set_title("validation, mean ± sd over seeds", fontsize=11)
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel(metric.replace("_iou", " IoU"))
    axis.grid(alpha=0.3)


def draw_bars(axis, columns, split):
    """A bar for each column in each main metric, with its sd and the seeds as dots."""
    width = 0.8 / len(columns)
    for place, (seeds, (colour, _)) in enumerate(zip(columns.values(), cycle(STYLES))):
        metrics = values(seeds, split)
        for position, metric in enumerate(MAIN_METRICS.values()):
            numbers = np.array(list(metrics.get(metric, {}).values()))
            if not len(numbers):
                continue
            x = position + (place + 0.5) * width - 0.4
            spread = numbers.std(ddof=1) if len(numbers) > 1 else None
            axis.bar(x, numbers.mean(), 0.9 * width, color=colour, alpha=0.75, yerr=spread)
            axis.plot(np.full(len(numbers), x), numbers, ".", color="black", markersize=4)
            axis.text(x, 0.02, f"{numbers.mean():.3f}", rotation=90, ha="center", fontsize=9)
    names = [name.replace("_iou", " IoU").replace("_", " ") for name in MAIN_METRICS.values()]
    axis.set_xticks(range(len(names)), names)
    axis.set_ylim(0, 1)
    axis.set_title(f"{split}, mean ± sd over seeds, one dot a seed", fontsize=11)
    axis.grid(alpha=0.3, axis="y")
