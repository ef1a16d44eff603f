"""Runs as small summaries: read from NAME_history.pt, NAME_last.pt or NAME_seedK.json, and written.

A summary is a plain dict, small enough to be kept in a repository:

    name, script, seed, fold      fold: the number after "fold" in the name of the data folder
    config                        its constants but the two paths; demo, processes
    tasks                         {task: {"primary", "higher_is_better", "metrics", "reference"}},
                                  "means" {metric: [a, b]} where one is the mean of two
    data, data_fingerprint, side  samples by split, what identifies them, (H, W) of the images
    parameters, gflop             of the network; forward and backward pass of one image
    seconds                       of every epoch, validation included
    minutes, images_per_second    training and validation; training images by that time
    best_epoch, unfinished        unfinished: None, or "epoch E of EPOCHS" of a stopped run
    device, commit, versions, weights_from
    test                          every value of the test split, to 6 digits
    best                          {"train", "val"}: every value of the best epoch, to 6 digits
    curves                        {"train", "val"}: losses and primary metrics by epoch, to 4 digits
    test_lines                    the line of each test image in its source, or None
    rows                          {TASK_METRIC: [numerators, denominators]} of every test image, to
                                  5 digits; one number stands for all where they are the same

What a history lacks, and what is not a number, is None.
"""

import json
import math
import re
from pathlib import Path

import numpy as np

from engine import artefacts
from engine.settings import UserError

NEEDED = {  # of a history, and below of a summary, with their types
    "name": str,
    "config": dict,
    "tasks": dict,
    "train": dict,
    "val": dict,
    "best_epoch": int,
    "seconds": list,
    "data": dict,
    "data_fingerprint": dict,
    "side": tuple,
    "test": dict,
    "test_rows": dict,
}
KEPT = {
    **{key: kind for key, kind in NEEDED.items() if key not in ("train", "val", "test_rows")},
    **{"seed": int, "side": list, "best": dict, "curves": dict, "rows": dict},
}
BUDGET = ("EPOCHS", "BATCH_SIZE")  # settings without which runs cannot be compared
PATHS = ("H5_SAVE_PATH", "FILE_SAVE_PATH")
TOLD = ("device", "commit", "versions", "weights_from", "test_lines")  # kept as they are
LARGEST = 60_000  # characters of a summary; a larger one keeps the rows of primary metrics only


def summarise(history):
    """The summary of a history as the engine writes it."""
    config, seconds, tasks = history["config"], history["seconds"], history["tasks"]
    best = history["best_epoch"] - 1
    images = steps_per_epoch(history) * min(config["BATCH_SIZE"], history["data"]["train"])
    curves = {
        "train": {f"{task}_loss" for task in tasks},
        "val": {f"{task}_{entry['primary']}" for task, entry in tasks.items()},
    }
    fold = re.search(r"fold_?(\d+)", Path(config.get("H5_SAVE_PATH", "")).name)
    return {
        "name": history["name"],
        "script": history.get("script"),
        "seed": config["SEED"],
        "fold": int(fold[1]) if fold else None,
        "config": _plain({key: v for key, v in config.items() if key not in PATHS}),
        "tasks": _plain(tasks),
        "data": history["data"],
        "data_fingerprint": _plain(history["data_fingerprint"]),
        "side": list(history["side"]),
        "parameters": history.get("parameters"),
        "gflop": _plain(history.get("gflop"), 3),
        "seconds": _plain(seconds, 1),
        "minutes": round(sum(seconds) / 60, 2),
        "images_per_second": round(images * len(seconds) / sum(seconds), 1) if seconds else None,
        "best_epoch": history["best_epoch"],
        "unfinished": None,
        **{key: history.get(key) for key in TOLD},
        "test": _plain(history["test"], 6),
        "best": {
            part: _plain({k: v[best] for k, v in history[part].items()}, 6) if best >= 0 else {}
            for part in curves
        },
        "curves": {
            part: _plain({k: v for k, v in history[part].items() if k in kept}, 4)
            for part, kept in curves.items()
        },
        "rows": {k: _row(v) for k, v in history["test_rows"].items() if k not in curves["train"]},
    }


def steps_per_epoch(run):
    """Of a history or a summary; a last incomplete batch is left out in training."""
    images = run["data"]["train"]
    return images // min(run["config"]["BATCH_SIZE"], images)


def _row(table):
    """[numerators, denominators] of a (N, 2) tensor, as lists or one number."""
    columns = []
    for numbers in table.T.tolist():
        short = [int(n) if n == int(n) else round(n, 5) for n in numbers]
        columns.append(short[0] if len(set(short)) == 1 else short)
    return columns


def _plain(value, digits=15):
    """What JSON gives back unchanged: lists for tuples, None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: _plain(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, digits) for item in value]
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    return value


def parts(task, entry, metric):
    """Names of the rows that a metric is pooled from: its own, or those it is the mean of."""
    return [f"{task}_{name}" for name in entry.get("means", {}).get(metric, [metric])]


def rows(run, names):
    """float64 (N, len(names), 2): numerators and denominators of every test image."""
    count = run["data"]["test"]
    parts = [[np.broadcast_to(np.array(c, float), count) for c in run["rows"][n]] for n in names]
    return np.array(parts).transpose(2, 0, 1)  # (names, 2, N) before


def read(path):
    """The summary in one file of any of the three forms.

    Raises:
        UserError: the file is damaged or something else.
    """
    expected = f"{path}: expected a run's history"
    try:
        found, needed = _content(path)
        wrong = [key for key, kind in needed.items() if not isinstance(found.get(key), kind)]
        wrong = wrong or [key for key in BUDGET if not isinstance(found["config"].get(key), int)]
        if not wrong:
            run = found if needed is KEPT else summarise(found)
            if path.name.endswith("_last.pt"):
                run["unfinished"] = f"epoch {len(run['seconds'])} of {run['config']['EPOCHS']}"
            for name in run["rows"]:
                rows(run, [name])  # has one number for each test image
            return run
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{expected}, found a damaged file ({reason})") from error
    raise UserError(f"{expected}, found no {', '.join(wrong)} in it")


def _content(path):
    """What the file holds, and {key: type} of what it must hold."""
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8")), KEPT
    found = artefacts.load(path)
    if path.name.endswith("_last.pt"):
        best = found["history"].get("best_epoch") or 0
        found = {**found["about"], **found["history"], "best_epoch": best}
        found |= {"test": {}, "test_rows": {}}
    return found, NEEDED


def find(arguments):
    """[(path, summary)] of all runs in files and folders, searched to any depth.

    A checkpoint counts where the run has no history yet.

    Args:
        arguments: PATH or LABEL=PATH; a label takes the place of the scripts' names there.

    Raises:
        UserError: no such path, or no run in it.
    """
    found = []
    for argument in arguments:
        label, place = _label(argument)
        paths = _run_files(place)
        if not paths:
            raise UserError(
                f"{place}: expected a file or folder with *_history.pt, *_last.pt or *_seed*.json "
                f"of runs, found {'none' if place.exists() else 'no such path'}"
            )
        for path in paths:
            summary = read(path)
            found.append((path, summary | {"name": label or summary["name"]}))
    return found


def _label(argument):
    """(label or "", path) of PATH or LABEL=PATH, where both may contain "="."""
    words = argument.split("=")
    cuts = [("=".join(words[:n]), Path("=".join(words[n:])).expanduser()) for n in range(len(words))]
    whole, *labelled = cuts
    return next((cut for cut in cuts if cut[1].exists()), labelled[0] if labelled else whole)


def _run_files(place):
    if place.is_file():
        return [place]
    stopped = (
        path
        for path in place.rglob("*_last.pt")
        if not path.with_name(path.name.removesuffix("last.pt") + "history.pt").exists()
    )
    return sorted([*place.rglob("*_history.pt"), *place.rglob("*_seed*.json"), *stopped])


def export(runs, folder):
    """Write each of [(path, summary)] as folder/NAME_seedK[_foldF].json; returns the paths.

    Raises:
        UserError: a run is unfinished, two want one name, or a file of that name holds another.
    """
    written = {}
    for source, summary in runs:
        if summary["unfinished"]:
            raise UserError(f"{source}: expected a finished run, found {summary['unfinished']}")
        fold = "" if summary["fold"] is None else f"_fold{summary['fold']}"
        path = folder / f"{summary['name']}_seed{summary['seed']}{fold}.json"
        text = to_json(summary)
        if path in written:
            raise UserError(
                f"{source}: expected one run of {path.stem}, found another in {written[path]}; "
                "name them apart with LABEL=FOLDER"
            )
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(f"{path}: holds another run than {source}; remove it first")
        written[path] = source
        with artefacts.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(written)


def to_json(summary):
    """JSON with one line for each key, so that two files can be read side by side."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in summary.items()]
    if sum(map(len, lines)) > LARGEST:
        kept = [name for t, e in summary["tasks"].items() for name in parts(t, e, e["primary"])]
        kept = {name: row for name, row in summary["rows"].items() if name in kept}
        if kept != summary["rows"]:
            return to_json(summary | {"rows": kept})
    return "{\n" + ",\n".join(lines) + "\n}\n"
