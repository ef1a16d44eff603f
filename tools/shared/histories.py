"""Runs as small summaries, read from NAME_history.pt, NAME_last.pt or NAME_seedK.json.

A summary is a plain dict, small enough for a repository. It has the keys COPIED of the history and

    seed, fold                  fold: the number after "fold" in the data folder's name, or None
    config                      without the two paths
    minutes, images_per_second  training and validation; training images in that time
    unfinished                  None, or "unfinished, epoch E of EPOCHS" for a stopped run
    test, best                  values of the test split; of the best epoch, in "train" and "val"
    curves                      {"train", "val"}: losses and primary metrics by epoch, to 4 digits
    rows                        {TASK_METRIC: [numerators, denominators]} of every test image, to 5
                                digits; one number stands for all of them if they are equal

What a history lacks is None, and so are NaN and infinity.
"""

import json
import math
import re
from pathlib import Path

import numpy as np

from engine import artefacts
from parts.errors import UserError
from tools.shared.common import as_path

COPIED = (
    *("name", "script", "tasks", "data", "data_fingerprint", "side", "parameters", "gflop"),
    *("seconds", "best_epoch", "device", "commit", "versions", "weights_from", "test_lines"),
)
COMPUTED = (
    *("seed", "fold", "config", "minutes", "images_per_second", "unfinished", "test", "best"),
    *("curves", "rows"),
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
    losses = [f"{task}_loss" for task in tasks]
    best, curves = {}, {"train": losses, "val": [f"{t}_{e['primary']}" for t, e in tasks.items()]}
    for part, names in curves.items():
        series, number = history[part], history["best_epoch"] - 1
        best[part] = _plain({name: series[name][number] for name in series if number >= 0}, 6)
        curves[part] = _plain({name: series[name] for name in names if name in series}, 4)
    return {key: _plain(history.get(key), 3) for key in COPIED} | {
        "seed": config["SEED"],
        "fold": int(fold[1]) if fold else None,
        "config": _plain({key: value for key, value in config.items() if key not in PATHS}),
        "minutes": round(sum(seconds) / 60, 2),
        "images_per_second": round(images * len(seconds) / sum(seconds), 1) if seconds else None,
        "unfinished": unfinished,
        "test": _plain(history["test"], 6),
        "best": best,
        "curves": curves,
        "rows": {k: _row(v) for k, v in history["test_rows"].items() if k not in losses},
    }


def steps_per_epoch(run):
    """Of a history or a summary; training drops a last incomplete batch."""
    images = run["data"]["train"]
    return images // min(run["config"]["BATCH_SIZE"], images)


def test_set(run):
    """What identifies the test images of a run."""
    return run["data_fingerprint"]["test"]


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
    """The summary in one file of any of the three forms; raises UserError if it is damaged."""
    expected = f"{path}: expected a run's history"
    try:
        if path.suffix == ".json":
            run = json.loads(path.read_text(encoding="utf-8"))
        else:
            run = summarise(artefacts.load(path))
        for holder, keys in ((run, (*COPIED, *COMPUTED)), (run["config"], BUDGET)):
            for key in keys:
                holder[key]
        for name in run["rows"]:
            rows(run, [name])  # one number for each test image
        return run
    except KeyError as error:
        raise UserError(f"{expected}, found no {error.args[0]} in it") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{expected}, found a damaged file ({reason})") from error


def find(arguments):
    """[(path, summary)] of all runs in files and folders, searched to any depth; raises UserError.

    An argument is PATH or LABEL=PATH; the label replaces the scripts' names. A checkpoint counts
    only if there is no history beside it.
    """
    found = []
    for argument in arguments:
        words = argument.split("=")  # both label and path may hold "="
        cuts = [("=".join(words[:n]), "=".join(words[n:])) for n in range(len(words))]
        cuts = [(label, as_path(place, "RUNS")) for label, place in cuts]
        label, place = next((cut for cut in cuts if cut[1].exists()), cuts[min(1, len(cuts) - 1)])
        paths = [place] if place.is_file() else []
        if not paths:
            paths = sorted([*place.rglob("*_history.pt"), *place.rglob("*_seed*.json")])
            finished = {p.with_name(p.name.replace("_history.pt", "_last.pt")) for p in paths}
            paths += sorted({*place.rglob("*_last.pt")} - finished)
        if not paths:
            raise UserError(
                f"{place}: expected a file or folder with *_history.pt, *_last.pt or *_seed*.json "
                f"of runs, found {'none' if place.exists() else 'no such path'}"
            )
        runs = [(path, read(path)) for path in paths]
        found += [(path, run | {"name": label or run["name"]}) for path, run in runs]
    return found


def export(runs, folder):
    """Write [(path, summary)] as NAME_seedK[_foldF].json and return the paths; raises UserError."""
    written = []
    for source, run in runs:
        fold = "" if run["fold"] is None else f"_fold{run['fold']}"
        path, text = folder / f"{run['name']}_seed{run['seed']}{fold}.json", to_json(run)
        if run["unfinished"]:
            raise UserError(f"{source}: expected a finished run, found it {run['unfinished']}")
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{path}: holds another run than {source}; remove it, choose another folder, or "
                "use LABEL=FOLDER"
            )
        written.append(path)
        with artefacts.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return written


def to_json(summary):
    """JSON with one line for each key, so that two files can be compared line by line."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in summary.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
