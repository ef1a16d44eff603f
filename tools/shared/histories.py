"""Runs as small summaries, read from NAME_history.pt, NAME_last.pt or a series.

A series (results/*.jsonl) is a text file with one line of JSON for each run. A summary is a plain
dict, small enough for a repository. It has the keys COPIED of the history and

    script                      its path in the repository
    seconds                     of every epoch
    seed, fold                  fold: the number after "fold" in the data folder's name, or None
    config                      without the two paths
    minutes, images_per_second  training and validation; training images in that time
    unfinished                  None, or "unfinished, epoch E of EPOCHS" for a stopped run
    test, best                  values on the test split; on the validation split at the best epoch
    curves                      {"val": {TASK_METRIC: values by epoch}} of the metric that chose it
    rows                        {TASK_METRIC: [numerators, denominators]} of every test image: a
                                list, a text of digits, or one number if they are equal

Missing values, NaN and infinity are None. A series has the rows of the primary metrics and of the
metrics whose mean they are; of the other metrics it has only the values of each run.
"""

import json
import math
import re
from pathlib import Path

import numpy as np

from parts.errors import UserError, one_line
from parts.files import load
from tools.shared.common import as_path

COPIED = (
    *("name", "tasks", "data", "data_fingerprint", "side", "parameters", "gflop", "best_epoch"),
    *("device", "commit", "versions", "weights_from", "test_lines"),
)
COMPUTED = (
    *("script", "seed", "fold", "config", "seconds", "minutes", "images_per_second"),
    *("unfinished", "test", "best", "curves", "rows"),
)
BUDGET = ("EPOCHS", "BATCH_SIZE")  # settings without which runs cannot be compared
PATHS = ("H5_SAVE_PATH", "FILE_SAVE_PATH")


def summarise(history):
    """The summary of a history, or of the checkpoint of a stopped run, as the engine writes it."""
    unfinished = None
    if "about" in history:
        history = {**history["about"], **history["history"], "test": {}, "test_rows": {}}
        unfinished = f"unfinished, epoch {len(history['seconds'])} of {history['config']['EPOCHS']}"
    config, seconds, tasks = history["config"], history["seconds"], history["tasks"]
    images = steps_per_epoch(history) * min(config["BATCH_SIZE"], history["data"]["train"])
    fold = re.search(r"fold_?(\d+)", Path(config.get("H5_SAVE_PATH", "")).name)
    val, number = history["val"], history["best_epoch"] - 1
    best = {name: series[number] for name, series in val.items()} if number >= 0 else {}
    losses, first = [f"{task}_loss" for task in tasks], next(iter(tasks))
    chooses = f"{first}_{tasks[first]['primary']}"
    return {key: _plain(history.get(key), 3) for key in COPIED} | {
        "script": history["script"],
        "seed": config["SEED"],
        "fold": int(fold[1]) if fold else None,
        "config": _plain({key: value for key, value in config.items() if key not in PATHS}),
        "seconds": _plain(seconds, 2),
        "minutes": round(sum(seconds) / 60, 2),
        "images_per_second": round(images * len(seconds) / sum(seconds), 1) if seconds else None,
        "unfinished": unfinished,
        "test": _plain(history["test"], 6),
        "best": _plain(best or history.get("start") or {}, 6),
        "curves": {"val": {chooses: _plain(val.get(chooses, []), 4)}},
        "rows": {k: _row(v) for k, v in history["test_rows"].items() if k not in losses},
    }


def steps_per_epoch(run):
    """Steps per epoch of a history or a summary; training drops an incomplete last batch."""
    images = run["data"]["train"]
    return images // min(run["config"]["BATCH_SIZE"], images)


def refuse_earlier(place, run):
    """UserError for a run of version 1.0, with one checksum for all data files of a split."""
    if any(isinstance(found, str) for found in run["data_fingerprint"].values()):
        raise UserError(f"{place}: expected a run of this version, found one of an earlier version")


def test_set(run):
    """The fingerprint of a run's test images."""
    return run["data_fingerprint"]["test"]["images"]


def weights(run):
    """(checksum, path, general path) of the weights that a run started from, or three None.

    The checksum is the path in earlier histories. In the general path, the number of the run's own
    fold or seed is replaced by a letter.
    """
    given = run["weights_from"]
    if not given:
        return None, None, None
    given = {"path": given, "checksum": given} if isinstance(given, str) else given
    general = given["path"]
    for key, letter in (("fold", "F"), ("seed", "S")):
        general = re.sub(rf"({key}_?){run[key]}(?!\d)", rf"\g<1>{letter}", general)
    return given["checksum"], given["path"], general


def rows(run, names):
    """float64 (N, len(names), 2): numerators and denominators of every test image."""
    count = run["data"]["test"]
    columns = [[_decoded(column, count) for column in run["rows"][name]] for name in names]
    return np.array(columns).transpose(2, 0, 1)


def _decoded(column, count):
    numbers = [*column] if isinstance(column, str) else column
    return np.broadcast_to(np.array(numbers, float), count)


def _row(table):
    """[numerators, denominators] of a tensor (N, 2), as `rows` reads them, to five digits."""
    columns = [[int(n) if n == int(n) else float(f"{n:.5g}") for n in c] for c in table.T.tolist()]
    return [_encoded(column) for column in columns]


def _encoded(numbers):
    if len(set(numbers)) == 1:
        return numbers[0]
    digits = "".join(map(str, numbers))
    return digits if len(digits) == len(numbers) else numbers


def _plain(value, digits=15):
    """The value as JSON can hold it: lists for tuples, None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: _plain(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, digits) for item in value]
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    return value


def read(path):
    """[(place, summary)] of the runs in a history, a checkpoint or a series.

    Raises:
        UserError: the file is damaged; names the line of a series.
    """
    if path.suffix != ".jsonl":
        return [(path, _checked(path, lambda: summarise(load(path))))]
    places = ((f"{path}, line {i}", text) for i, text in enumerate(path.open("rb"), 1))
    return [(place, _checked(place, lambda t=text: json.loads(t))) for place, text in places]


def _checked(place, summary):
    """The result of `summary()`, checked; raises UserError."""
    expected = f"{place}: expected a run's history"
    try:
        run = summary()
        for holder, keys in ((run, (*COPIED, *COMPUTED)), (run["config"], BUDGET)):
            for key in keys:
                holder[key]
        refuse_earlier(place, run)
        test_set(run), weights(run)
        for name in run["rows"]:
            rows(run, [name])  # one number for each test image
        return run
    except KeyError as error:
        raise UserError(f"{expected}, found no {error.args[0]} in it") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{expected}, found a damaged file ({one_line(error)})") from error


def find(arguments):
    """[(place, summary)] of all runs in files and folders, searched to any depth; raises UserError.

    An argument is PATH or LABEL=PATH; the label replaces the script's name, or precedes the names
    of several scripts. A checkpoint is only read if there is no history beside it.
    """
    found = []
    for argument in arguments:
        words = argument.split("=")  # both label and path may hold "="
        cuts = [("=".join(words[:n]), "=".join(words[n:])) for n in range(len(words))]
        cuts = [(label, as_path(place, "RUNS")) for label, place in cuts]
        label, place = next((cut for cut in cuts if cut[1].exists()), cuts[min(1, len(cuts) - 1)])
        paths = [place] if place.is_file() else []
        if not paths:
            paths = sorted([*place.rglob("*_history.pt"), *place.rglob("*.jsonl")])
            finished = {p.with_name(p.name.replace("_history.pt", "_last.pt")) for p in paths}
            paths += sorted({*place.rglob("*_last.pt")} - finished)
        runs = [pair for path in paths for pair in read(path)]
        if not runs:
            raise UserError(
                f"{place}: expected a file or folder with runs, as *_history.pt, *_last.pt or "
                f"*.jsonl, found {'none' if place.exists() else 'no such path'}"
            )
        label, several = " ".join(label.split()), len({run["name"] for _, run in runs}) > 1
        for place, run in runs:
            name = f"{label} {run['name']}" if several else label
            found.append((place, run | {"name": name} if label else run))
    return found


def to_line(run):
    """A run as a line of a series."""
    kept = set()
    for task, entry in run["tasks"].items():
        parts = [part for means in entry["means"].values() for part in means]
        kept |= {f"{task}_{metric}" for metric in (entry["primary"], *parts)}
    table = {name: pairs for name, pairs in run["rows"].items() if name in kept}
    return json.dumps(run | {"rows": table}, separators=(",", ":"))
