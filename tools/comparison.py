"""The table of a comparison: values pooled over test images, and gains on the same images.

A column is a list of summaries (tools/histories.py): runs of one script that differ in seed and
fold. An estimate is an array (1 + RESAMPLES,): the value itself, and what it would be on other
images, drawn from those there are with replacement (paired bootstrap: all estimates of a table
draw the same images).
"""

import json
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tools.histories import parts, rows

RESAMPLES = 4000
FEWEST = 5  # of fewer images or runs an interval would say nothing
FREE = ("SEED", "DEMO_EPOCHS")  # constants that make no variant of a script
BLANK = "-"


class Metric(NamedTuple):
    """What one row of the table measures.

    Attributes:
        name: TASK_METRIC as histories call it.
        task: whose it is; `reference` is the name of the task's single-task script, or None.
        sign: 1, or -1 where lower is better.
        pooled: names of the rows it is computed from; none where it is averaged over runs.
    """

    name: str
    task: str
    reference: str | None
    sign: int
    pooled: tuple


def metrics(columns, split, everything=False):
    """The primary metrics of all tasks, then, with `everything`, the others."""
    runs = [run for column in columns.values() for run in column]
    if split == "test":
        runs = [run for run in runs if not run["unfinished"]]
    first, others = {}, {}
    for task, entry in (item for column in columns.values() for item in column[0]["tasks"].items()):
        for metric in entry["metrics"]:
            name, names = f"{task}_{metric}", parts(task, entry, metric)
            with_task = [run["rows"] for run in runs if task in run["tasks"]]
            there = split == "test" and all(n in table for table in with_task for n in names)
            sign = 1 if entry["higher_is_better"] else -1
            found = Metric(name, task, entry["reference"], sign, tuple(names) if there else ())
            (first if metric == entry["primary"] else others).setdefault(name, found)
    return [*first.values(), *(others.values() if everything else ())]


def samples(column, metric, split):
    """{unit: (N, parts, 2)}: numerators and denominators, by which columns are paired.

    The units are the sets of test images, one for each fold; an image that several seeds have seen
    counts once, with the mean of its numbers. Where the rows of images are unknown the runs
    themselves, (fold, seed), are the units, with N = 1.
    """
    found = {}
    for run in column:
        fold = str(run["data_fingerprint"].get("test"))
        if metric.pooled and metric.task in run["tasks"] and run["rows"]:
            found.setdefault((fold,), []).append(rows(run, metric.pooled))
            continue
        value = (run["test"] if split == "test" else run["best"].get("val", {})).get(metric.name)
        if value is not None and not metric.pooled:
            found[fold, run["seed"]] = [np.array([[[value, 1.0]]])]
    return {unit: np.mean(tables, axis=0) for unit, tables in found.items()}


@lru_cache(maxsize=4)
def draws(count):
    """(1 + RESAMPLES, count): how often each unit counts; in the first line once."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return np.concatenate([np.ones((1, count)), drawn])


def estimate(units, keys=None):
    """The estimate over all units or those of `keys`; NaN where nothing is known.

    Args:
        units: as `samples` returns them.
    """
    table = np.concatenate([units[key] for key in sorted(units if keys is None else keys)])
    sums = np.tensordot(draws(len(table)), table, axes=1)  # (1 + RESAMPLES, parts, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = (sums[..., 0] / sums[..., 1]).mean(-1)
    if len(table) < FEWEST:
        ratios[1:] = np.nan
    return ratios


def limits(found):
    """Lower and upper limit of the 95 % percentile interval; NaN where there is none."""
    known = found[1:][np.isfinite(found[1:])]
    return tuple(np.percentile(known, (2.5, 97.5))) if len(known) else (np.nan, np.nan)


def gain(column, reference, metric, split):
    """The estimate of how much better a column is on the images both have; None without any."""
    ours, theirs = (samples(runs, metric, split) for runs in (column, reference))
    shared = ours.keys() & theirs.keys()
    if not shared:
        return None
    return metric.sign * (estimate(ours, shared) - estimate(theirs, shared))


def delta_mtl(label, columns, split):
    """Mean relative gain of a column over its tasks' references in percent; None without them all.

    Maninis et al. 2019 (arXiv:1904.08918).
    """
    tasks = columns[label][0]["tasks"]
    chosen = [metric for metric in metrics(columns, split) if metric.task in tasks]
    if len(tasks) < 2 or any(m.reference not in columns or m.reference == label for m in chosen):
        return None
    pairs = [[samples(columns[c], m, split) for c in (label, m.reference)] for m in chosen]
    shared = set.intersection(*(set(units) for pair in pairs for units in pair))
    if not shared:
        return None
    gains = []
    for metric, pair in zip(chosen, pairs, strict=True):
        ours, theirs = (estimate(units, shared) for units in pair)
        with np.errstate(invalid="ignore", divide="ignore"):
            gains.append(100 * metric.sign * (ours - theirs) / theirs)
    return np.mean(gains, axis=0)


def shown(found, form=".4f"):
    """'value [low, high]', the value alone where there is no interval, or BLANK."""
    if found is None or not np.isfinite(found[0]):
        return BLANK
    low, high = limits(found)
    return f"{found[0]:{form}}" + (f" [{low:{form}}, {high:{form}}]" if np.isfinite(low) else "")


def markdown(columns, split, baseline, everything=False):
    """The table with its footnotes, in ASCII but for the labels.

    Args:
        columns: {label: [summary]}.
        split: "test", or "val" for the values of the best epoch.
        baseline: the column that gains are measured against.
        everything: all metrics, not only the primary ones.
    """
    table = run_rows(columns)
    for metric in metrics(columns, split, everything):
        units = [samples(column, metric, split) for column in columns.values()]
        name = metric.name if metric.sign > 0 else f"{metric.name} (lower is better)"
        table.append((name, [shown(estimate(each)) if each else BLANK for each in units]))
        gains = [
            None if label == baseline else gain(column, columns[baseline], metric, split)
            for label, column in columns.items()
        ]
        if any(found is not None for found in gains):
            table.append((f"gain over {baseline}", [shown(found, "+.4f") for found in gains]))
    delta = [shown(delta_mtl(label, columns, split), "+.2f") for label in columns]
    if set(delta) != {BLANK}:
        table.append(("delta MTL, %", delta))
    lines = [("", list(columns)), ("---", ["---"] * len(columns)), *table, *cost_rows(columns)]
    text = "".join(f"| {name} | {' | '.join(cells)} |\n" for name, cells in lines)
    return text + "\n" + "\n".join(footnotes(columns, split, baseline)) + "\n"


def tested(column):
    """{fingerprint: number of images} of the test splits of a column's finished runs."""
    finished = [run for run in column if not run["unfinished"]]
    return {str(run["data_fingerprint"].get("test")): run["data"]["test"] for run in finished}


def run_rows(columns):
    """Rows that say which runs a column is made of."""
    seeds = [", ".join(map(str, sorted({r["seed"] for r in c}))) for c in columns.values()]
    folds = [{str(r["data_fingerprint"].get("test")) for r in c} for c in columns.values()]
    images = [str(sum(tested(column).values())) for column in columns.values()]
    table = [("seeds", seeds), ("folds", [str(len(each)) for each in folds])]
    return [*table[: 1 + any(len(each) > 1 for each in folds)], ("test images", images)]


def cost_rows(columns):
    """Rows of what the runs cost, means over runs."""
    kinds = (
        ("minutes", "minutes", ".1f"),
        ("images/s", "images_per_second", ".0f"),
        ("parameters", "parameters", ",.0f"),
        ("GFLOP per image", "gflop", ".2f"),
        ("best epoch", "best_epoch", ".0f"),
    )
    table = []
    for title, key, form in kinds:
        found = [[run.get(key) for run in column] for column in columns.values()]
        found = [[value for value in column if value is not None] for column in found]
        table.append((title, [format(np.mean(c), form) if c else BLANK for c in found]))
    return table


def footnotes(columns, split, baseline):
    """Lines: what the numbers are, what the intervals cover, what else differs between columns."""
    runs = [run for column in columns.values() for run in column]
    where = "Test split" if split == "test" else "Validation split at the best epoch"
    epochs, batch = (_range(r["config"][key] for r in runs) for key in ("EPOCHS", "BATCH_SIZE"))
    data = ", ".join(f"{_range(r['data'][name] for r in runs)} {name}" for name in runs[0]["data"])
    side = " x ".join(map(str, runs[0]["side"]))
    yield (
        f"{where}. Budget: {epochs} epochs, batches of {batch}, {data} images of {side} a run. "
        "Minutes are of training and validation, images/s the training images by that time; GFLOP "
        "are of a forward and backward pass."
    )
    yield from _interval_notes(split)
    if len(columns) > 1:
        yield f"A gain over {baseline} above 0 is better, also where a lower value is better."
    chosen = metrics(columns, split)
    if any(delta_mtl(label, columns, split) is not None for label in columns):
        references = ", ".join(f"{m.task} {m.reference}" for m in chosen)
        yield (
            "Delta MTL (Maninis et al. 2019, arXiv:1904.08918) is the mean relative gain in the "
            f"primary metrics of a network's own tasks. References: {references}."
        )
    yield from _incomplete(columns, split, baseline)
    yield from different_constants(columns)


def _interval_notes(split):
    if split == "test":
        yield (
            "Values are pooled over the test images of all folds; an image seen with several seeds "
            "counts once, with the mean of its numerators and denominators. [low, high]: 95 % "
            f"percentile bootstrap over the test images ({RESAMPLES} resamples, the same images in "
            "all columns). It covers the choice of the test images only: not the training images, "
            "and of seeds and folds no more than that they are averaged. Metrics whose values by "
            "image are not kept have none."
        )
    else:
        yield (
            "Values are means over runs. [low, high]: 95 % percentile bootstrap over runs (seeds "
            f"and folds, {RESAMPLES} resamples), where there are at least {FEWEST}. It covers which "
            "of them were run; the best epoch is chosen on these images."
        )


def _incomplete(columns, split, baseline):
    """Lines for runs that are not finished, and for images a column does not share."""
    for label, column in columns.items():
        for run in (run for run in column if run["unfinished"]):
            fold = "" if run["fold"] is None else f", fold {run['fold']}"
            values = "" if split == "val" else "; --split val shows what it has reached"
            yield f"{label}, seed {run['seed']}{fold}: unfinished, {run['unfinished']}{values}."
    ours = tested(columns[baseline])
    for label, column in columns.items() if split == "test" else ():
        theirs = tested(column)
        if theirs and theirs.keys() != ours.keys():
            shared = sum(count for fold, count in theirs.items() if fold in ours)
            yield (
                f"Gains of {label} over {baseline} are on the {shared} test images both have, of "
                f"{sum(theirs.values())} and {sum(ours.values())}."
            )


def different_constants(columns):
    """Lines for constants that scripts share by name but not by value."""
    found = {}
    for label, column in columns.items():
        for name, value in column[0]["config"].items():
            if name.isupper() and name not in FREE:
                found.setdefault(name, {}).setdefault(json.dumps(value), []).append(label)
    for name, values in found.items():
        if len(values) > 1:
            each = ", ".join(f"{value} in {' and '.join(who)}" for value, who in values.items())
            yield f"Not only the networks differ: {name} is {each}."


def _range(numbers):
    low, *_, high = (*sorted(set(numbers)) * 2,)
    return str(low) if low == high else f"{low}-{high}"
