"""The table of a comparison: means, spreads, and gains paired by seed."""

import math

import numpy as np

from tools.histories import BUDGET

MAIN_METRICS = {"seg": "seg_iou", "bbox": "bbox_iou", "bin": "bin_accuracy"}  # higher is better
REFERENCES = {"seg": "baseline", "bbox": "ablation_bbox", "bin": "ablation_bin"}
T_QUANTILES = (  # 97.5 % of Student's t for 1, 2, ... degrees of freedom
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
BLANK = "-"


def interval(differences):
    """Mean of n paired differences, and half the width of its 95 % t interval (NaN for n = 1).

    Beyond 31 pairs the quantile of 30 degrees of freedom is kept, which is 4 % too wide at most.
    """
    differences = np.asarray(differences, float)
    count = len(differences)
    if count < 2:
        return differences.mean(), math.nan
    quantile = T_QUANTILES[min(count - 1, len(T_QUANTILES)) - 1]
    return differences.mean(), quantile * differences.std(ddof=1) / math.sqrt(count)


def values(seeds, split):
    """{metric: {seed: value}} of one column, without losses and without what is not known."""
    found = {}
    for seed, run in seeds.items():
        for name, value in (run["test"] if split == "test" else run["best"]["val"]).items():
            if value is not None and not name.endswith("_loss"):
                found.setdefault(name, {})[seed] = value
    return found


def gains(column, reference):
    """Differences {seed: value} of two {seed: value}, over the seeds they share."""
    return {seed: column[seed] - reference[seed] for seed in column if seed in reference}


def relative_gains(columns, split):
    """{column: {task: {seed: percent}}} against the reference network of each task.

    Maninis et al. 2019 (arXiv:1904.08918), for metrics of which more is better: 100 (m - b) / b.
    """
    table = {label: values(seeds, split) for label, seeds in columns.items()}
    found = {label: {} for label in columns}
    for task, metric in MAIN_METRICS.items():
        reference = table.get(REFERENCES[task], {}).get(metric, {})
        for label, metrics in table.items():
            difference = gains(metrics.get(metric, {}), reference)
            if label != REFERENCES[task] and difference:
                found[label][task] = {
                    s: 100 * d / reference[s] for s, d in difference.items() if reference[s]
                }
    return found


def mean_gain(tasks):
    """Delta MTL {seed: percent}, the mean over all tasks; empty unless each task has a gain."""
    if set(tasks) != set(MAIN_METRICS):
        return {}
    shared = set.intersection(*(set(by_seed) for by_seed in tasks.values()))
    return {seed: np.mean([tasks[task][seed] for task in tasks]) for seed in sorted(shared)}


def markdown(columns, split, baseline):
    """The table with a footnote.

    Args:
        columns: {label: {seed: summary}}.
        split: "test", or "val" for the values of the best epoch.
        baseline: the column that gains are measured against; there are none if it is not there.
    """
    table = {label: values(seeds, split) for label, seeds in columns.items()}
    rows = [("seeds", [", ".join(map(str, seeds)) for seeds in columns.values()])]
    names = list(dict.fromkeys(name for metrics in table.values() for name in metrics))
    for name in names:
        rows.append((name, [spread(table[label].get(name, {})) for label in columns]))
        reference = table.get(baseline, {}).get(name)
        if reference and len(columns) > 1:
            row = [
                BLANK if label == baseline else gain(gains(table[label].get(name, {}), reference))
                for label in columns
            ]
            rows.append((f"gain over {baseline}", row))
    rows += relative_rows(columns, split) + cost_rows(columns)
    lines = [("", list(columns)), ("---", ["---"] * len(columns)), *rows]
    text = "".join(f"| {name} | {' | '.join(cells)} |\n" for name, cells in lines)
    return text + "\n" + footnotes(columns, split, baseline) + "\n"


def relative_rows(columns, split):
    """Rows of the relative gains by task and of their mean; none without references."""
    relative = relative_gains(columns, split)
    rows = []
    for task, metric in MAIN_METRICS.items():
        if any(task in tasks for tasks in relative.values()):
            cells = [gain(tasks.get(task, {}), ".2f") for tasks in relative.values()]
            rows.append((f"relative gain in {metric}, %", cells))
    means = [mean_gain(tasks) for tasks in relative.values()]
    if any(means):
        rows.append(("Δ MTL, %", [gain(by_seed, ".2f") for by_seed in means]))
    return rows


def cost_rows(columns):
    """Rows of what the runs cost."""
    kinds = (
        ("minutes", "minutes", ".1f"),
        ("images/s", "images_per_second", ".0f"),
        ("parameters", "parameters", ",.0f"),
        ("GFLOP per image", "gflop", ".2f"),
        ("best epoch", "best_epoch", ".0f"),
    )
    rows = []
    for title, key, form in kinds:
        found = [[run.get(key) for run in seeds.values()] for seeds in columns.values()]
        found = [[value for value in column if value is not None] for column in found]
        rows.append((title, [format(np.mean(c), form) if c else BLANK for c in found]))
    return rows


def spread(by_seed):
    """'mean ± sd' of {seed: value}."""
    if not by_seed:
        return BLANK
    numbers = np.array(list(by_seed.values()))
    deviation = f" ± {numbers.std(ddof=1):.4f}" if len(numbers) > 1 else ""
    return f"{numbers.mean():.4f}{deviation}"


def gain(by_seed, form=".4f"):
    """'+mean [low, high]' of paired differences {seed: value}; without the interval for one."""
    if not by_seed:
        return BLANK
    mean, half = interval(list(by_seed.values()))
    limits = f" [{mean - half:+{form}}, {mean + half:+{form}}]" if math.isfinite(half) else ""
    return f"{mean:+{form}}{limits}"


def footnotes(columns, split, baseline):
    """What the numbers are: split, budget, intervals and references."""
    runs = [run for seeds in columns.values() for run in seeds.values()]
    what = "Test split" if split == "test" else "Validation split at the best epoch"
    counts = {name: dict.fromkeys(run["data"][name] for run in runs) for name in runs[0]["data"]}
    data = ", ".join(f"{' or '.join(map(str, each))} {name}" for name, each in counts.items())
    config = {key: dict.fromkeys(run["config"][key] for run in runs) for key in BUDGET}
    epochs, batch = (" or ".join(map(str, config[key])) for key in BUDGET)
    side = " x ".join(map(str, runs[0]["side"]))
    lines = [
        f"{what}: mean ± standard deviation over seeds. Budget: {epochs} epochs, "
        f"batches of {batch}, {data} images of {side}."
    ]
    if baseline in columns and len(columns) > 1:
        lines.append("Gains are paired by seed, with the 95 % t interval of their mean.")
    if any(relative_gains(columns, split).values()):
        references = ", ".join(f"{t} {name}" for t, name in REFERENCES.items())
        lines.append(
            "Relative gains and their mean over all tasks, Δ MTL, follow Maninis et al. 2019 "
            f"(arXiv:1904.08918). References: {references}. No network has the box or the class "
            "as its only task, so the smallest network with the task stands in."
        )
    lines.append(
        "Minutes are of training and validation, images/s the training images by that time; "
        "GFLOP are of a forward and backward pass."
    )
    return "\n".join(lines)
