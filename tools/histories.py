"""Runs as small summaries: read from NAME_history.pt, NAME_last.pt or NAME_seedK.json, and written.

A summary is a plain dict, small enough to be kept in a repository. It has the keys of the history
that are in SAME, and

    seed, fold                  fold: the number behind "fold" in the data folder's name, or None
    config                      without the two paths
    minutes, images_per_second  training and validation; training images by that time
    unfinished                  None, or "unfinished, epoch E of EPOCHS" of a stopped run
    test, best                  values of the test split; of the best epoch in "train" and "val"
    curves                      {"train", "val"}: losses and primary metrics by epoch, to 4 digits
    rows                        {TASK_METRIC: [numerators, denominators]} of every test image, to 5
                                digits; one number stands for all where they are the same

What a history lacks is None, and so is NaN.
"""

import json
import math
import re
from pathlib import Path

import numpy as np

from engine import artefacts
from engine.settings import UserError
from tools.common import as_path

SAME = (
    *("name", "script", "tasks", "data", "data_fingerprint", "side", "parameters", "gflop"),
    *("seconds", "best_epoch", "device", "commit", "versions", "weights_from", "test_lines"),
)
MADE = (
    *("seed", "fold", "config", "minutes", "images_per_second", "unfinished", "test", "best"),
    *("curves", "rows"),
)
NEEDED = (
    *("name", "config", "tasks", "train", "val", "best_epoch", "seconds", "data", "side", "test"),
    *("data_fingerprint", "test_rows"),
)
BUDGET = ("EPOCHS", "BATCH_SIZE")  # settings without which runs cannot be compared
PATHS = ("H5_SAVE_PATH", "FILE_SAVE_PATH")


def summarise(history, unfinished=None):
    """The summary of a history as the engine writes it."""
    config, seconds, tasks = history["config"], history["seconds"], history["tasks"]
    best = history["best_epoch"] - 1
    images = steps_per_epoch(history) * min(config["BATCH_SIZE"], history["data"]["train"])
    kept = {
        "train": [f"{task}_loss" for task in tasks],
        "val": [f"{task}_{entry['primary']}" for task, entry in tasks.items()],
    }
    fold = re.search(r"fold_?(\d+)", Path(config.get("H5_SAVE_PATH", "")).name)
    return {key: _plain(history.get(key), 3) for key in SAME} | {
        "seed": config["SEED"],
        "fold": int(fold[1]) if fold else None,
        "config": _plain({key: value for key, value in config.items() if key not in PATHS}),
        "minutes": round(sum(seconds) / 60, 2),
        "images_per_second": round(images * len(seconds) / sum(seconds), 1) if seconds else None,
        "unfinished": unfinished,
        "test": _plain(history["test"], 6),
        "best": {
            part: _plain({k: v[best] for k, v in history[part].items() if best >= 0}, 6)
            for part in kept
        },
        "curves": {
            part: _plain({k: history[part][k] for k in names if k in history[part]}, 4)
            for part, names in kept.items()
        },
        "rows": {
            name: _row(table) for name, table in history["test_rows"].items()
            if name not in kept["train"]
        },
    }  # fmt: skip


def steps_per_epoch(run):
    """Of a history or a summary; a last incomplete batch is left out in training."""
    images = run["data"]["train"]
    return images // min(run["config"]["BATCH_SIZE"], images)


def test_set(run):
    """What identifies the test images of a run."""
    return run["data_fingerprint"]["test"]


def parts(task, entry, metric):
    """Names of the rows that a metric is pooled from: its own, or those it is the mean of."""
    return [f"{task}_{name}" for name in entry.get("means", {}).get(metric, [metric])]


def rows(run, names):
    """float64 (N, len(names), 2): numerators and denominators of every test image."""
    count = run["data"]["test"]
    columns = [[np.broadcast_to(np.array(c, float), count) for c in run["rows"][n]] for n in names]
    return np.array(columns).transpose(2, 0, 1)


def _row(table):
    """[numerators, denominators] of a (N, 2) tensor, as lists or one number."""
    columns = table.double().round(decimals=5).T.tolist()
    columns = [[int(n) if n == int(n) else n for n in numbers] for numbers in columns]
    return [numbers[0] if len(set(numbers)) == 1 else numbers for numbers in columns]


def _plain(value, digits=15):
    """What JSON gives back unchanged: lists for tuples, None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: _plain(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, digits) for item in value]
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    return value


def read(path):
    """The summary in one file of any of the three forms.

    Raises:
        UserError: the file is damaged or something else.
    """
    expected = f"{path}: expected a run's history"
    try:
        is_text = path.suffix == ".json"
        found = json.loads(path.read_text(encoding="utf-8")) if is_text else artefacts.load(path)
        unfinished = None
        if path.name.endswith("_last.pt"):
            found = {**found["about"], **found["history"], "test": {}, "test_rows": {}}
            reached = f"epoch {len(found['seconds'])} of {found['config']['EPOCHS']}"
            unfinished = f"unfinished, {reached}"
        missing = [key for key in ((*SAME, *MADE) if is_text else NEEDED) if key not in found]
        missing += [key for key in BUDGET if key not in found.get("config", BUDGET)]
        if not missing:
            run = found if is_text else summarise(found, unfinished)
            for name in run["rows"]:
                rows(run, [name])  # one number for each test image
            return run
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{expected}, found a damaged file ({reason})") from error
    raise UserError(f"{expected}, found no {', '.join(missing)} in it")


def find(arguments):
    """[(path, summary)] of all runs in files and folders, searched to any depth.

    A checkpoint counts where there is no history beside it.

    Args:
        arguments: PATH or LABEL=PATH; a label takes the place of the scripts' names there.

    Raises:
        UserError: no such path, or no run in it.
    """
    found = []
    for argument in arguments:
        words = argument.split("=")  # which may be in the label and in the path
        cuts = [("=".join(words[:n]), "=".join(words[n:])) for n in range(len(words))]
        cuts = [(label, as_path(place, "RUNS")) for label, place in cuts]
        label, place = next((cut for cut in cuts if cut[1].exists()), cuts[min(1, len(cuts) - 1)])
        paths = [place] if place.is_file() else _run_files(place)
        if not paths:
            raise UserError(
                f"{place}: expected a file or folder with *_history.pt, *_last.pt or *_seed*.json "
                f"of runs, found {'none' if place.exists() else 'no such path'}"
            )
        runs = [(path, read(path)) for path in paths]
        found += [(path, run | {"name": label or run["name"]}) for path, run in runs]
    return found


def _run_files(folder):
    finished = sorted([*folder.rglob("*_history.pt"), *folder.rglob("*_seed*.json")])
    beside = {path.with_name(path.name.replace("_history.pt", "_last.pt")) for path in finished}
    return [*finished, *sorted({*folder.rglob("*_last.pt")} - beside)]


def export(runs, folder):
    """Write each of [(path, summary)] as folder/NAME_seedK[_foldF].json; returns the paths.

    Raises:
        UserError: a run is unfinished, or a file of that name holds another.
    """
    written = []
    for source, run in runs:
        fold = "" if run["fold"] is None else f"_fold{run['fold']}"
        path, text = folder / f"{run['name']}_seed{run['seed']}{fold}.json", to_json(run)
        if run["unfinished"]:
            raise UserError(f"{source}: expected a finished run, found it {run['unfinished']}")
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{path}: holds another run than {source}; remove it, or write that one elsewhere "
                "or with LABEL=FOLDER"
            )
        written.append(path)
        with artefacts.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return written


def to_json(summary):
    """JSON with one line for each key, so that two files can be read side by side."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in summary.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
