"""A comparison: columns of runs, values pooled over test images, differences with two intervals.

A column is a list of summaries (histories.py): runs of one script that differ in seed and fold.
"""

from typing import NamedTuple

import numpy as np

from parts.errors import UserError
from tools.shared.common import EXPERIMENTS
from tools.shared.histories import rows, test_set, weights
from tools.shared.intervals import RESAMPLES, estimate, holm, limits, over_runs, p_value

FREE = ("SEED", "DEMO_EPOCHS", "WEIGHTS")  # constants that may differ within a column


class Metric(NamedTuple):
    """A metric of a task."""

    name: str  # TASK_METRIC, as in histories
    task: str
    reference: str | None  # NAME of the task's single-task script
    sign: int  # 1, or -1 if lower is better
    pooled: tuple  # the rows it is computed from; empty if only its value per run is known


class Difference(NamedTuple):
    """How much better a column is than another in one metric, on the same images and seeds."""

    metric: str
    label: str
    reference: str
    unit: str  # "%", "points" of 0.01, or "" for that of the metric
    value: float
    images: tuple  # 95 % limits over test images
    runs: tuple  # 95 % limits over runs
    pairs: int  # of runs
    p_value: float  # two-sided
    holds: bool = False  # whether Holm's method keeps it among all differences of a comparison

    @property
    def direction(self):
        """1 or -1 if both intervals lie on that side of 0, 0 if not, None if one is unknown."""
        low, high = zip(self.images, self.runs, strict=True)
        known = np.isfinite([*low, *high]).all()
        return int(min(low) > 0) - int(max(high) < 0) if known else None


def group(runs):
    """{column: [summary]} of [(place, summary)]; UserError if two are the same run."""
    order = [*EXPERIMENTS, *(run["name"] for _, run in runs)]
    runs = sorted(runs, key=lambda pair: order.index(pair[1]["name"]))
    labels = _tell_apart([run["name"] for _, run in runs], settings([run for _, run in runs]))
    sizes = [{k: run[k] for k in ("parameters", "gflop") if run[k]} for _, run in runs]
    columns, places = {}, {}
    for (place, run), label in zip(runs, _tell_apart(labels, sizes), strict=True):
        key = label, run["seed"], test_set(run)
        if key in places:
            raise UserError(
                f"{place}: expected one run of {label} with seed {run['seed']} on its data, found "
                f"another in {places[key]}; tell them apart with LABEL=FOLDER"
            )
        places[key] = place
        columns.setdefault(label, []).append(run)
    return columns


def settings(runs):
    """[{name: value}] for each run: its constants, its script, and the weights it started from.

    Files of weights count as one if each has the number of its run's own fold or seed in its path.
    """
    sources = [weights(run) for run in runs]
    shared = {checksum for checksum, path, general in sources if path == general}
    sources = [
        (checksum, path) if checksum in shared else (general, general)  # identity, path to show
        for checksum, path, general in sources
    ]
    paths = dict(sources)
    known = [*paths.values()]
    for identity, path in paths.items():
        paths[identity] = path if known.count(path) == 1 else f"{path} ({identity})"
    found = [
        {k: v for k, v in run["config"].items() if k.isupper() and k not in FREE}
        | {"script": run["script"], "weights": paths[identity]}
        for run, (identity, _) in zip(runs, sources, strict=True)
    ]
    every = {name: None for each in found for name in each}
    return [every | each for each in found]


def _tell_apart(labels, found):
    """The labels, each with the settings that differ among the runs with that label."""
    told = []
    for label, ours in zip(labels, found, strict=True):
        others = [other for name, other in zip(labels, found, strict=True) if name == label]
        differ = [k for k, v in ours.items() if any(other.get(k, v) != v for other in others)]
        words = ", ".join(f"{name} {ours[name]}" for name in differ if ours[name] is not None)
        told.append(f"{label} ({words})" if words else label)
    return told


def metrics(columns, split, everything=False):
    """The primary metrics of all tasks and then, with `everything`, the others."""
    runs = [run for column in columns.values() for run in column if not run["unfinished"]]
    first, others = {}, {}
    for task, entry in (item for column in columns.values() for item in column[0]["tasks"].items()):
        tables = [run["rows"] for run in runs if task in run["tasks"]]
        for metric in entry["metrics"]:
            names = [f"{task}_{n}" for n in entry["means"].get(metric, [metric])]
            known = split == "test" and all(name in table for table in tables for name in names)
            sign, pooled = _sign(entry, metric), tuple(names) if known else ()
            found = Metric(f"{task}_{metric}", task, entry["reference"], sign, pooled)
            (first if metric == entry["primary"] else others).setdefault(found.name, found)
    return [*first.values(), *(others.values() if everything else ())]


def _sign(entry, metric):
    """1, or -1 if lower is better, for a metric of a task as summaries describe it."""
    if metric == entry["primary"] or "lower_is_better" not in entry:  # of older runs
        return 1 if entry["higher_is_better"] else -1
    return -1 if metric in entry["lower_is_better"] else 1


def value(run, metric, split):
    """A run's value of a metric, or None."""
    return run["test" if split == "test" else "best"].get(metric.name)


def pooled(runs, metric, split):
    """The estimate over the test images of all runs; None if no run has the metric.

    An image of several seeds counts once, with the mean of its numerators and denominators. Without
    rows the value is the mean over the runs, and the resamples are NaN.
    """
    if not metric.pooled:
        known = [number for run in runs if (number := value(run, metric, split)) is not None]
        return np.array([np.mean(known)] + [np.nan] * RESAMPLES) if known else None
    tables = {}
    for run in runs:
        if metric.pooled[0] in run["rows"]:
            tables.setdefault(test_set(run), []).append(rows(run, metric.pooled))
    tables = {images: np.mean(each, axis=0) for images, each in tables.items()}
    return estimate(tables) if tables else None


def gain(ours, theirs, metric, split, relative=False):
    """How much better a column is than another (in percent if `relative`), on the runs they share.

    They share a run if both know the metric for the same test images and seed. Returns an estimate
    over images and {(test set, seed): difference}; None if they share none.
    """
    columns = [{(test_set(r), r["seed"]): r for r in column} for column in (ours, theirs)]
    shared = [key for key in columns[0] if key in columns[1]]
    values = {key: [value(column[key], metric, split) for column in columns] for key in shared}
    values = {key: pair for key, pair in values.items() if None not in pair}
    if not values:
        return None

    def better(found, other):
        with np.errstate(invalid="ignore", divide="ignore"):
            return metric.sign * (found - other) * (100 / np.float64(other) if relative else 1)

    both = [pooled([column[key] for key in values], metric, split) for column in columns]
    return better(*both), {key: better(*pair) for key, pair in values.items()}


def delta_mtl(columns, label, split):
    """Mean relative gain of a column's tasks over their references in percent, as `gain`.

    A task's gain is the mean over its `counted` metrics. None if a reference is missing, or is the
    column itself.
    """
    gains, tasks = {}, columns[label][0]["tasks"]
    for metric in metrics(columns, split, everything=True):
        entry, own = tasks.get(metric.task, {}), metric.name.removeprefix(f"{metric.task}_")
        if own in entry.get("counted", [entry.get("primary")]):
            if metric.reference == label or metric.reference not in columns:
                return None
            theirs = columns[metric.reference]
            found = gain(columns[label], theirs, metric, split, relative=True)
            if found is None:
                return None
            gains.setdefault(metric.task, []).append(found)
    return _mean([_mean(each) for each in gains.values()])


def _mean(gains):
    """The mean of results of `gain`: of all estimates, and of the differences of shared runs."""
    found, runs = zip(*gains, strict=True)
    keys = [key for key in runs[0] if all(key in each for each in runs)]
    return np.mean(found, axis=0), {key: np.mean([each[key] for each in runs]) for key in keys}


def reference(columns, metric, wanted=None):
    """The column to compare a metric with: `wanted`, else a single-task network, else the first."""
    having = [label for label, column in columns.items() if metric.task in column[0]["tasks"]]
    return next(label for label in (wanted, metric.reference, *having) if label in having)


def differences(columns, split, baseline=None, everything=False):
    """[Difference] of the columns from each metric's reference, and of their delta MTL."""
    found = []
    for metric in metrics(columns, split, everything):
        against = reference(columns, metric, baseline)
        values = [value(run, metric, split) for column in columns.values() for run in column]
        share = metric.sign > 0 and all(0 <= v <= 1 for v in values if v is not None)
        for label, column in columns.items():
            if label != against:
                known = gain(column, columns[against], metric, split)
                unit = "points" if share else ""
                found.append(_difference(metric.name, label, against, unit, known))
    for label in columns:
        known = delta_mtl(columns, label, split)
        found.append(_difference("delta MTL", label, "single tasks", "%", known))
    found = [each for each in found if each]
    holds = holm([d.p_value if d.direction else 1.0 for d in found if d.direction is not None])
    holds = iter([True] if len(holds) == 1 else holds)
    return [d if d.direction is None else d._replace(holds=next(holds)) for d in found]


def _difference(metric, label, against, unit, known):
    """The Difference from the result of `gain`; None if that is undefined."""
    if known is None or not np.isfinite(known[0][0]):
        return None
    found, runs = known[0], [float(each) for each in known[1].values() if np.isfinite(each)]
    more = limits(found), over_runs(runs), len(runs), p_value(found, runs)
    return Difference(metric, label, against, unit, float(found[0]), *more)


def statement(difference, count):
    """A Difference, one of `count`, in words; "" if one of its intervals is unknown.

    It is stated if both intervals exclude 0. If Holm's method does not keep it, the words say so.
    """
    unit = f" {difference.unit}".rstrip()
    scale = 100 if difference.unit == "points" else 1
    if difference.direction is None:
        return ""
    if not difference.direction:
        most = scale * max(map(abs, (*difference.images, *difference.runs)))
        return f"no measurable difference (within about {_amount(most)}{unit})"
    text = f"{'+' if difference.direction > 0 else '-'}{_amount(scale * difference.value)}{unit}"
    return text if difference.holds else f"{text} (not after correction for {count})"


def _amount(number):
    """Its size with one decimal, or with its first digit that is not 0."""
    return f"{abs(number):.1f}" if abs(number) >= 0.05 else f"{abs(number):.1g}"
