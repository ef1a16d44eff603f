"""Histories as the engine leaves them, and the tables that tools/compare.py makes of them.

No task, metric or script has one of the repository's names, so none can be known by it.
"""

from statistics import fmean

import torch

from tools import compare

TASKS = {
    "outline": {
        "primary": "overlap", "higher_is_better": True, "reference": "alone",
        "metrics": ["overlap", "exact", "both"], "means": {"both": ["overlap", "exact"]},
    },
    "head_depth": {
        "primary": "mean_error", "higher_is_better": False, "reference": "deep",
        "metrics": ["mean_error"], "means": {},
    },
}  # fmt: skip
OVERLAP = [(5, 10), (20, 40), (30, 30), (0, 10), (45, 60), (0, 0)]  # together 100 of 150
EXACT = [(1, 1), (0, 1), (1, 1), (0, 1), (1, 1), (0, 0)]  # 3 of 5
DEPTH = [(4.0, 1), (2.0, 1), (3.0, 1), (3.0, 1), (0, 0), (3.0, 1)]  # 15 of 5


def make_history(name, seed=0, fold=0, overlap=OVERLAP, exact=EXACT, depth=DEPTH, **config):
    """What the engine leaves after 4 epochs; a task without rows is none of the network's."""
    given = {"outline_overlap": overlap, "outline_exact": exact, "head_depth_mean_error": depth}
    rows = {key: torch.tensor(v, dtype=torch.float64) for key, v in given.items() if v}
    tasks = {task: TASKS[task] for task in TASKS if any(key.startswith(task) for key in rows)}
    count = len(next(iter(rows.values())))
    test = {key: (table.sum(0)[0] / table.sum(0)[1]).item() for key, table in rows.items()}
    for task in tasks:
        for mean, parts in TASKS[task]["means"].items():
            test[f"{task}_{mean}"] = fmean(test[f"{task}_{part}"] for part in parts)
    rows |= {f"{task}_loss": torch.ones(count, 2).double() for task in tasks}
    return {
        "name": name,
        "script": f"MTL_{name}.py",
        "config": {
            "H5_SAVE_PATH": f"secret/set_fold{fold}", "FILE_SAVE_PATH": "secret/out", "EPOCHS": 4,
            "BATCH_SIZE": 32, "SEED": seed, "WIDTHS": (8, 16), "demo": False, "processes": 1,
        } | config,
        "tasks": tasks,
        "train": {f"{task}_loss": [4.0, 3.0, 2.0, 1.0] for task in tasks},
        "val": {key: [0.1, 0.2, value - 0.1, 0.3] for key, value in test.items()},
        "best_epoch": 3,
        "seconds": [20.0, 20.0, 10.0, 50.0],
        "data": {"train": 330, "val": 5, "test": count},
        "data_fingerprint": {
            split: {"images": f"{split} {fold}"} for split in ("train", "val", "test")
        },
        "side": (64, 96),
        "parameters": 1234567,
        "gflop": 0.5,
        "weights_from": None,
        "test": test,
        "test_rows": rows,
        "test_lines": list(range(100 * fold, 100 * fold + count)),
    }  # fmt: skip


def single(name, overlap=OVERLAP, seed=0, fold=0, **config):
    """The history of a network with one task."""
    return make_history(name, seed, fold, overlap, overlap, None, **config)


def shifted(rows, by):
    return [(n + by * d, d) for n, d in rows]


def save(history, folder):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{history['name']}_history.pt"
    torch.save(history, path)
    return path


def save_stopped(history, folder):
    """Save what a run leaves that was stopped after three epochs."""
    about = {key: value for key, value in history.items() if not key.startswith("test")}
    so_far = {key: about.pop(key) for key in ("train", "val", "best_epoch")}
    folder.mkdir(parents=True)
    content = {"about": about, "history": so_far | {"seconds": about.pop("seconds")[:3]}}
    torch.save(content, folder / f"{history['name']}_last.pt")


def saved(folder):
    """Save two single-task networks and a joint one, of two seeds each."""
    for seed in range(2):
        overlap, depth = shifted(OVERLAP, 0.1 + 0.024 * seed), shifted(DEPTH, -0.6)
        save(make_history("alone", seed, depth=None), folder / f"alone{seed}")
        save(make_history("deep", seed, overlap=None, exact=None), folder / f"deep{seed}")
        save(make_history("joint", seed, overlap=overlap, depth=depth), folder / f"joint{seed}")
    return folder


def printed(capsys, *arguments, code=0):
    """What the tool prints, on stderr in one line if it fails."""
    assert compare.main([str(argument) for argument in arguments]) == code
    out = capsys.readouterr()
    assert code == 0 or out.err.count("\n") == 1
    return out.out if code == 0 else out.err


def tables(text):
    """{network: {title: cell}} of the values, {(metric, network): {title: cell}} of differences."""
    found = [{}, {}]
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    for part, block in zip(found, blocks, strict=False):
        titles, _, *lines = [line.strip("| ").split(" | ") for line in block.splitlines()]
        for cells in lines:
            key = cells[0] if titles[0] == "network" else tuple(cells[:2])
            part[key] = dict(zip(titles, cells, strict=True))
    return found


def compared(capsys, *arguments):
    return tables(printed(capsys, *arguments))
