"""The table of a comparison: values pooled over test images, and gains on the same images.

A column is a list of summaries (tools/histories.py): runs of one script that differ in seed and
fold. An estimate is an array (1 + RESAMPLES,): the value itself, then its values on images that are
drawn with replacement; the draws are the same for all estimates of a table.
"""

import json
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tools.shared.histories import rows, test_set

RESAMPLES = 2000
FEWEST = 5  # images or runs; fewer would make an interval meaningless
FREE = ("SEED", "DEMO_EPOCHS")  # constants that may differ within a column
BLANK = "-"
COSTS = {  # key of a summary: title, format
    "minutes": ("minutes", ".1f"),
    "images_per_second": ("images/s", ".0f"),
    "parameters": ("parameters", ",.0f"),
    "gflop": ("GFLOP per image", ".2f"),
    "best_epoch": ("best epoch", ".0f"),
}
INTERVALS = {
    "test": "Test split. Values are pooled over the test images of all folds; an image tested with "
    "several seeds counts once, with the mean of its numerators and denominators. [low, high] is a "
    f"95 % percentile bootstrap over the test images ({RESAMPLES} resamples, the same for all "
    "columns). It covers the choice of the test images only: where there are several training "
    "sets, seeds or folds, values are averaged over them, and their spread is not included.",
    "val": "Validation split at the best epoch, which is chosen on the same images. Values are "
    f"means over runs. [low, high], given {FEWEST} runs or more, is a 95 % percentile bootstrap "
    f"over runs ({RESAMPLES} resamples): it covers seeds and folds, not the choice of images.",
}


class Metric(NamedTuple):
    """What a row of the table measures."""

    name: str  # TASK_METRIC, as in histories
    task: str
    reference: str | None  # NAME of the task's single-task script
    sign: int  # 1, or -1 if lower is better
    pooled: tuple  # the rows it is computed from; empty if only its value per run is known


def metrics(columns, split, everything=False):
    """The primary metrics of all tasks and then, with `everything`, the others."""
    runs = [run for column in columns.values() for run in column if not run["unfinished"]]
    first, others = {}, {}
    for task, entry in (item for column in columns.values() for item in column[0]["tasks"].items()):
        tables = [run["rows"] for run in runs if task in run["tasks"]]
        for metric in entry["metrics"]:
            names = [f"{task}_{n}" for n in entry.get("means", {}).get(metric, [metric])]
            known = split == "test" and all(name in table for table in tables for name in names)
            sign, pooled = 1 if entry["higher_is_better"] else -1, tuple(names) if known else ()
            found = Metric(f"{task}_{metric}", task, entry["reference"], sign, pooled)
            (first if metric == entry["primary"] else others).setdefault(found.name, found)
    return [*first.values(), *(others.values() if everything else ())]


def units(column, metric, split):
    """{key: (N, parts, 2)} numerators and denominators of each test set, or of each run (N = 1)."""
    found = {}
    for run in column:
        if metric.pooled:
            if metric.pooled[0] in run["rows"]:
                found.setdefault((test_set(run),), []).append(rows(run, metric.pooled))
            continue
        values = run["test"] if split == "test" else run["best"].get("val", {})
        if values.get(metric.name) is not None:
            found[test_set(run), run["seed"]] = [np.array([[[values[metric.name], 1.0]]])]
    return {key: np.mean(tables, axis=0) for key, tables in found.items()}


@lru_cache(maxsize=4)
def draws(count):
    """(1 + RESAMPLES, count): how often each image or run is drawn; once each in the first row."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return np.concatenate([np.ones((1, count)), drawn])


def estimate(found, keys=None):
    """The estimate over units, all or those of `keys`: the mean of the parts that are defined; NaN
    if nothing is known."""
    table = np.concatenate([found[key] for key in sorted(found if keys is None else keys)])
    sums = np.tensordot(draws(len(table)), table, axes=1)  # (1 + RESAMPLES, parts, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.ma.masked_invalid(sums[..., 0] / sums[..., 1]).mean(-1).filled(np.nan)
    if len(table) < FEWEST:
        ratios[1:] = np.nan
    return ratios


def limits(found):
    """Lower and upper limit of the 95 % interval of an estimate; NaN if there is none."""
    known = found[1:][np.isfinite(found[1:])]
    return tuple(np.percentile(known, (2.5, 97.5))) if len(known) else (np.nan, np.nan)


def gain(columns, label, other, metric, split, relative=False):
    """How much better a column is than another (in percent if `relative`), on the images of both.

    An estimate, or None if a column lacks the metric or is the other one.
    """
    if label == other or other not in columns:
        return None
    ours, theirs = (units(columns[name], metric, split) for name in (label, other))
    shared = ours.keys() & theirs.keys()
    if not shared:
        return None
    ours, theirs = estimate(ours, shared), estimate(theirs, shared)
    with np.errstate(invalid="ignore", divide="ignore"):
        return metric.sign * (ours - theirs) * (100 / theirs if relative else 1)


def delta_mtl(columns, label, split):
    """Mean relative gain of the tasks over their references in percent, None if one is missing."""
    tasks = columns[label][0]["tasks"]
    chosen = [metric for metric in metrics(columns, split) if metric.task in tasks]
    gains = [gain(columns, label, m.reference, m, split, relative=True) for m in chosen]
    return None if any(found is None for found in gains) else np.mean(gains, axis=0)


def shown(found, form=".4f"):
    """'value [low, high]' of an estimate, 'value' if it has no interval, or BLANK."""
    if found is None or not np.isfinite(found[0]):
        return BLANK
    low, high = limits(found)
    return f"{found[0]:{form}}" + (f" [{low:{form}}, {high:{form}}]" if np.isfinite(low) else "")


def markdown(columns, split, baseline, everything=False):
    """The table of {label: [summary]}, with its footnotes; ASCII except for the labels."""
    seeds = [", ".join(map(str, sorted({r["seed"] for r in c}))) for c in columns.values()]
    folds = [len({test_set(run) for run in column}) for column in columns.values()]
    images = [str(sum(tested(column).values())) for column in columns.values()]
    table = [("", list(columns)), ("---", ["---"] * len(columns)), ("seeds", seeds)]
    table += [("folds", map(str, folds))] if max(folds) > 1 else []
    table += [("test images", images)]
    for metric in metrics(columns, split, everything):
        found = [units(column, metric, split) for column in columns.values()]
        name = metric.name if metric.sign > 0 else f"{metric.name} (lower is better)"
        table.append((name, [shown(estimate(each)) if each else BLANK for each in found]))
        gains = [gain(columns, label, baseline, metric, split) for label in columns]
        if any(found is not None for found in gains):
            table.append((f"gain over {baseline}", [shown(found, "+.4f") for found in gains]))
    delta = [shown(delta_mtl(columns, label, split), "+.2f") for label in columns]
    if set(delta) != {BLANK}:
        table.append(("delta MTL, %", delta))
    finished = [[r for r in column if not r["unfinished"]] for column in columns.values()]
    for key, (title, form) in COSTS.items():
        known = [[run[key] for run in runs if run[key] is not None] for runs in finished]
        table.append((title, [format(np.mean(each), form) if each else BLANK for each in known]))
    text = "".join(f"| {name} | {' | '.join(cells)} |\n" for name, cells in table)
    return text + "\n" + "\n".join(footnotes(columns, split, baseline)) + "\n"


def tested(column):
    """{test set: number of images} of a column's finished runs."""
    return {test_set(run): run["data"]["test"] for run in column if not run["unfinished"]}


def footnotes(columns, split, baseline):
    """Lines: what the numbers are, what the intervals cover, how else the columns differ."""
    runs = [run for column in columns.values() for run in column]
    epochs, batch = (_range(r["config"][key] for r in runs) for key in ("EPOCHS", "BATCH_SIZE"))
    data = ", ".join(f"{_range(r['data'][name] for r in runs)} {name}" for name in runs[0]["data"])
    references = ", ".join(f"{m.task} {m.reference}" for m in metrics(columns, split))
    yield INTERVALS[split]
    yield (
        f"Budget of a run: {epochs} epochs, batches of {batch}, {data} images of "
        f"{' x '.join(map(str, runs[0]['side']))}. Minutes cover training and validation; images/s "
        "are training images in that time; GFLOP are those of a forward and backward pass. A gain "
        f"over {baseline} above 0 is better. Delta MTL (Maninis et al. 2019, arXiv:1904.08918) is "
        "the mean relative gain of a network's tasks in their primary metrics over their "
        f"references: {references}."
    )
    ours = tested(columns[baseline])
    for label, column in columns.items():
        for run in (run for run in column if run["unfinished"]):
            yield f"{label}, seed {run['seed']}: {run['unfinished']}, validation values only."
        theirs = tested(column)
        if split == "test" and theirs and theirs.keys() != ours.keys():
            shared = sum(count for images, count in theirs.items() if images in ours)
            yield (
                f"{label} has {sum(theirs.values())} test images, {baseline} has "
                f"{sum(ours.values())}: gains are on the {shared} that both have."
            )
    yield from different_constants(columns)


def different_constants(columns):
    """Lines about constants that scripts share by name but not by value."""
    found = {}
    for label, column in columns.items():
        for name, value in column[0]["config"].items():
            items = value.items() if isinstance(value, dict) else [(None, value)]
            for key, item in items if name.isupper() and name not in FREE else ():
                title = name if key is None else f"{name} {key}"  # such as the weight of a task
                found.setdefault(title, {}).setdefault(json.dumps(item), []).append(label)
    for name, values in found.items():
        if len(values) > 1:
            each = "; ".join(f"{value} in {', '.join(labels)}" for value, labels in values.items())
            yield f"The networks are not the only difference: {name} is {each}."


def _range(numbers):
    numbers = sorted(set(numbers))
    return "-".join(map(str, dict.fromkeys([numbers[0], numbers[-1]])))
