"""A comparison as text: a Markdown table of values, one of differences, and footnotes."""

import json

import numpy as np

from tools.shared.comparison import differences, metrics, pooled, reference, settings, statement
from tools.shared.histories import test_set
from tools.shared.intervals import RESAMPLES, limits

BLANK = "-"
COSTS = {  # key of a summary: title, format
    "minutes": ("minutes", ".1f"),
    "images_per_second": ("images/s", ".0f"),
    "parameters": ("parameters", ",.0f"),
    "gflop": ("GFLOP per image", ".2f"),
    "best_epoch": ("best epoch", ".0f"),
}
ABOUT = {
    "test": "Test split. Values are pooled over the test images of all folds; an image tested with "
    "several seeds counts once, with the mean of its numerators and denominators. [low, high] is a "
    f"95 % percentile bootstrap over the test images ({RESAMPLES} resamples, the same for all "
    "networks).",
    "val": "Validation split at the best epoch, which is chosen on the same images. Values are "
    "means over runs.",
}
ABOUT_DIFFERENCES = (
    "A difference is one between runs with the same test images and the same seed; above 0, the "
    "network is better. It has a 95 % interval over test images (the paired bootstrap) and one "
    "over runs (Student's t on the differences of the pairs; folds share training images, so it "
    "is somewhat too narrow). A difference is stated only if both intervals exclude 0. A point is "
    "0.01."
)


def markdown(columns, split, baseline=None, everything=False):
    """The tables of {label: [summary]}, with their footnotes; ASCII except for the labels."""
    found = differences(columns, split, baseline, everything)
    parts = [_table(values(columns, split, everything))]
    parts += [_table(gains(found))] if found else []
    notes = [*footnotes(columns, split, found, baseline), *different_constants(columns)]
    return "\n".join([*parts, "\n".join(notes) + "\n"])


def _table(lines):
    """Markdown of lists of cells, the first of which is the header."""
    header, *body = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def values(columns, split, everything=False):
    """Yield the cells of the table of values: a line for each network."""
    chosen = metrics(columns, split, everything)
    several = max(len(set(map(test_set, column))) for column in columns.values()) > 1
    titles = [m.name if m.sign > 0 else f"{m.name} (lower is better)" for m in chosen]
    costs = [title for title, _ in COSTS.values()]
    yield ["network", "seeds", *(["folds"] if several else []), "test images", *titles, *costs]
    for label, column in columns.items():
        seeds = ", ".join(map(str, sorted({run["seed"] for run in column})))
        folds = [len(set(map(test_set, column)))] if several else []
        found = [shown(pooled(column, metric, split)) for metric in chosen]
        finished = [run for run in column if not run["unfinished"]]
        known = {key: [run[key] for run in finished if run[key] is not None] for key in COSTS}
        costs = [format(np.mean(known[k]), f) if known[k] else BLANK for k, (_, f) in COSTS.items()]
        yield [label, seeds, *folds, sum(test_sizes(column).values()), *found, *costs]


def test_sizes(column):
    """{test set: number of images} of a column's finished runs."""
    return {test_set(run): run["data"]["test"] for run in column if not run["unfinished"]}


def shown(found):
    """'value [low, high]' of an estimate, 'value' without an interval, or BLANK."""
    if found is None or not np.isfinite(found[0]):
        return BLANK
    between = interval(limits(found), ".4f")
    return f"{found[0]:.4f}" + (f" {between}" if between != BLANK else "")


def interval(ends, form):
    """'[low, high]', or BLANK if they are not known."""
    return f"[{ends[0]:{form}}, {ends[1]:{form}}]" if np.isfinite(ends[0]) else BLANK


def gains(found):
    """Yield the cells of the table of differences: a line for each of [Difference]."""
    over = ("over test images", "over runs", "pairs of runs")
    yield ["metric", "network", "compared with", "difference", *over, "statement"]
    count = sum(each.direction is not None for each in found)
    for each in found:
        form, unit = ("+.2f", " %") if each.unit == "%" else ("+.4f", "")
        between = [interval(ends, form) for ends in (each.images, each.runs)]
        value = f"{each.value:{form}}{unit}"
        words = statement(each, count) or BLANK
        yield [each.metric, each.label, each.reference, value, *between, each.pairs, words]


def footnotes(columns, split, found, baseline):
    """Yield lines that explain the numbers, how many are compared, and what is missing."""
    runs = [run for column in columns.values() for run in column]
    epochs, batch = (_range(r["config"][key] for r in runs) for key in ("EPOCHS", "BATCH_SIZE"))
    data = ", ".join(f"{_range(r['data'][name] for r in runs)} {name}" for name in runs[0]["data"])
    yield ABOUT[split]
    if found:
        yield ABOUT_DIFFERENCES
    known = sum(each.direction is not None for each in found)
    if known > 1:
        yield (
            f"{known} differences are compared here. Brackets mark one that does not survive the "
            "correction for so many (Holm 1979, with the larger p-value of images and runs)."
        )
    if any(each.unit == "%" for each in found):
        chosen = [m for m in metrics(columns, split) if m.reference in columns]
        single = ", ".join(f"{m.task} {m.reference}" for m in chosen)
        yield (
            "Delta MTL (Maninis et al. 2019, arXiv:1904.08918) is the mean relative gain of a "
            "network's tasks, in the metrics that count for each (docs/extending.md), over "
            f"single-task networks: {single}."
        )
    yield (
        f"Budget of a run: {epochs} epochs, batches of {batch}, {data} images of "
        f"{' x '.join(map(str, runs[0]['side']))}. Minutes cover training and validation; images/s "
        "are training images in that time; GFLOP are those of a forward and backward pass."
    )
    for label, run in ((k, run) for k, column in columns.items() for run in column):
        if run["unfinished"]:
            yield f"{label}, seed {run['seed']}: {run['unfinished']}, validation values only."
    yield from unpaired(columns, split, baseline)


def unpaired(columns, split, baseline):
    """Yield lines about columns whose runs do not match those of their reference."""
    keys = {
        label: {(test_set(r), r["seed"]) for r in column if split == "val" or not r["unfinished"]}
        for label, column in columns.items()
    }
    told = set()
    for metric in metrics(columns, split):
        against = reference(columns, metric, baseline)
        told |= {(k, against) for k, column in columns.items() if metric.task in column[0]["tasks"]}
    for label, against in sorted(told):
        ours, theirs = keys[label], keys[against]
        if ours != theirs:
            yield (
                f"{label} has {len(ours)} runs, {against} has {len(theirs)}: differences are "
                f"between the {len(ours & theirs)} with the same test images and seed."
            )


def different_constants(columns):
    """Yield lines about constants and starting weights that differ between the columns."""
    found = {}
    for label, known in zip(columns, settings([c[0] for c in columns.values()]), strict=True):
        del known["script"]
        known["starting weights"] = known.pop("weights") or "none"
        for name, value in known.items():
            items = value.items() if isinstance(value, dict) else [(None, value)]
            for key, item in items if value is not None else ():  # None: the script lacks it
                title = name if key is None else f"{name} {key}"  # such as the weight of a task
                words = item if isinstance(item, str) else json.dumps(item)
                found.setdefault(title, {}).setdefault(words, []).append(label)
    for name, values in found.items():
        if len(values) > 1:
            each = "; ".join(f"{value} in {', '.join(labels)}" for value, labels in values.items())
            yield f"The networks are not the only difference: {name} = {each}."


def _range(numbers):
    numbers = sorted(set(numbers))
    return "-".join(map(str, dict.fromkeys([numbers[0], numbers[-1]])))
