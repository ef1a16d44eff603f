"""Finished runs as small summaries: read from NAME_history.pt or NAME_seedK.json, and written.

A summary is a plain dict, small enough to be kept in a repository:

    name, seed                    of the script, without MTL_
    config                        its constants but the two paths; demo, processes
    data, data_fingerprint, side  samples by split, what identifies them, (H, W) of the images
    parameters, gflop             of the network; forward and backward pass of one image
    seconds                       of every epoch, validation included
    minutes, images_per_second    training and validation; training images by that time
    best_epoch, versions
    test                          every value of the test split, to 6 digits
    best                          {"train", "val"}: every value of the best epoch, to 6 digits
    curves                        {"train", "val"}: losses, IoU and accuracy by epoch, to 4 digits

What a history lacks, and what is not a number, is None.
"""

import json
import math
from pathlib import Path

from engine.cli import UserError

from engine import artefacts

NEEDED = {  # of a history, and below of a summary, with their types
    "name": str,
    "config": dict,
    "train": dict,
    "val": dict,
    "best_epoch": int,
    "seconds": list,
    "data": dict,
    "side": tuple,
    "test": dict,
}
KEPT = {
    **{key: kind for key, kind in NEEDED.items() if key not in ("train", "val")},
    **{"seed": int, "side": list, "best": dict, "curves": dict},
}
BUDGET = ("EPOCHS", "BATCH_SIZE")  # settings without which runs cannot be compared
PATHS = ("H5_SAVE_PATH", "FILE_SAVE_PATH")
CURVES = {"train": ("loss",), "val": ("iou", "accuracy")}  # what is kept of every epoch


def summarise(history):
    """The summary of a history as engine/run.py writes it."""
    config, seconds = history["config"], history["seconds"]
    best = history["best_epoch"] - 1
    batch = min(config["BATCH_SIZE"], history["data"]["train"])
    images = steps_per_epoch(history) * batch
    curves = {
        part: {k: v for k, v in history[part].items() if k.split("_", 1)[1] in kept}
        for part, kept in CURVES.items()
    }
    return {
        "name": history["name"],
        "seed": config["SEED"],
        "config": _plain({k: v for k, v in config.items() if k not in PATHS}),
        "data": history["data"],
        "data_fingerprint": _plain(history.get("data_fingerprint")),
        "side": list(history["side"]),
        "parameters": history.get("parameters"),
        "gflop": _plain(history.get("gflop"), 3),
        "seconds": _plain(seconds, 1),
        "minutes": round(sum(seconds) / 60, 2),
        "images_per_second": round(images * len(seconds) / sum(seconds), 1),
        "best_epoch": history["best_epoch"],
        "versions": history.get("versions"),
        "test": _plain(history["test"], 6),
        "best": {p: _plain({k: v[best] for k, v in history[p].items()}, 6) for p in CURVES},
        "curves": _plain(curves, 4),
    }


def steps_per_epoch(run):
    """Of a history or a summary; a last incomplete batch is left out in training."""
    images = run["data"]["train"]
    return images // min(run["config"]["BATCH_SIZE"], images)


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
    """The summary in one file of either form.

    Raises:
        UserError: the file is damaged or something else.
    """
    expected = f"{path}: expected the history of a finished run"
    try:
        if path.suffix == ".json":
            found, needed = json.loads(path.read_text(encoding="utf-8")), KEPT
        else:
            found, needed = artefacts.load(path), NEEDED
        wrong = [key for key, kind in needed.items() if not isinstance(found.get(key), kind)]
        wrong = wrong or [key for key in BUDGET if not isinstance(found["config"].get(key), int)]
        if not wrong:
            return found if needed is KEPT else summarise(found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{expected}, found a damaged file ({reason})") from error
    raise UserError(f"{expected}, found no {', '.join(wrong)} in it")


def find(arguments):
    """[(path, summary)] of all runs in files and folders, searched to any depth.

    Args:
        arguments: PATH or LABEL=PATH; a label takes the place of the scripts' names there.

    Raises:
        UserError: no such path, or no history in it.
    """
    found = []
    for argument in arguments:
        label, _, place = argument.rpartition("=")
        if Path(argument).exists():
            label, place = "", argument
        paths = _history_files(Path(place))
        if not paths:
            raise UserError(
                f"{place}: expected a file or folder with *_history.pt or *_seed*.json of "
                f"finished runs, found {'none' if Path(place).exists() else 'no such path'}"
            )
        for path in paths:
            summary = read(path)
            found.append((path, summary | {"name": label or summary["name"]}))
    return found


def _history_files(place):
    if place.is_file():
        return [place]
    return sorted([*place.rglob("*_history.pt"), *place.rglob("*_seed*.json")])


def export(runs, folder):
    """Write each of [(path, summary)] as folder/NAME_seedK.json; returns the paths.

    Raises:
        UserError: two runs want one name, or a file of that name holds another run.
    """
    written = {}
    for source, summary in runs:
        path = folder / f"{summary['name']}_seed{summary['seed']}.json"
        text = to_json(summary)
        if path in written:
            raise UserError(
                f"{source}: expected one run of {summary['name']} with seed {summary['seed']}, "
                f"found another in {written[path]}; name them apart with LABEL=FOLDER"
            )
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(f"{path}: holds another run than {source}; remove it first")
        written[path] = source
        with artefacts.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(written)


def to_json(summary):
    """JSON with one line for each key, so that two files can be read side by side."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in summary.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
