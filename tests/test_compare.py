"""The comparison of runs: numbers by hand, three forms of a history, refusals, the picture.

No task, metric or script has one of the repository's names, so none can be known by it.
"""

import io
import json
import math
import os
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from benchmarks import time_to_quality
from tools import compare
from tools.shared import curves, histories
from tools.shared.comparison import FEWEST, draws, estimate, limits

TASKS = {
    "outline": {
        "primary": "overlap", "higher_is_better": True, "metrics": ["overlap", "exact", "both"],
        "reference": "alone", "means": {"both": ["overlap", "exact"]},
    },
    "head_depth": {
        "primary": "mean_error", "higher_is_better": False, "metrics": ["mean_error"],
        "reference": "deep",
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
    rows |= {f"{task}_loss": torch.ones(count, 2).double() for task in tasks}
    test = {key: (table.sum(0)[0] / table.sum(0)[1]).item() for key, table in rows.items()}
    return {
        "name": name,
        "script": f"MTL_{name}",
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
        "data_fingerprint": {split: f"{split} {fold}" for split in ("train", "val", "test")},
        "side": (64, 96),
        "parameters": 1234567,
        "gflop": 0.5,
        "weights_from": None,
        "test": test,
        "test_rows": rows,
        "test_lines": list(range(100 * fold, 100 * fold + count)),
    }  # fmt: skip


def save(history, folder):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{history['name']}_history.pt"
    torch.save(history, path)
    return path


def stop(history, folder, epochs):
    """The checkpoint of a run that was stopped after so many epochs."""
    about = {k: v for k, v in history.items() if not k.startswith("test")}
    done = {part: {k: v[:epochs] for k, v in about.pop(part).items()} for part in ("train", "val")}
    seconds, best = about.pop("seconds")[:epochs], min(about.pop("best_epoch"), epochs)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{history['name']}_last.pt"
    torch.save({"about": about, "history": done | {"seconds": seconds, "best_epoch": best}}, path)
    return path


def shifted(rows, by):
    return [(n + by * d, d) for n, d in rows]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of two single-task networks and a joint one, of two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        for history in (
            make_history("alone", seed, depth=None),
            make_history("deep", seed, overlap=None, exact=None),
            make_history("joint", seed, overlap=shifted(OVERLAP, 0.1), depth=shifted(DEPTH, -0.6)),
        ):
            save(history, folder / f"{history['name']}{seed}")
    return folder


def rows(table):
    """{first cell: the others} of a Markdown table; gains by the metric above them."""
    found, last = {}, ""
    for line in table.splitlines():
        if line.startswith("|"):
            first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            last = last if first.startswith("gain") else first
            found[last if first == last else f"{last} gain"] = cells
    return found


def printed(capsys, *arguments, code=0):
    assert compare.main([str(argument) for argument in arguments]) == code
    out = capsys.readouterr()
    assert code == 0 or out.err.count("\n") == 1
    return out.out if code == 0 else out.err


# ---- numbers ----


def test_the_table_by_hand(runs, capsys):
    text = printed(capsys, runs)
    table = rows(text)
    assert table[""] == ["alone", "deep", "joint"]
    assert table["seeds"] == ["0, 1"] * 3
    assert table["test images"] == ["6"] * 3 and "folds" not in table
    overlap = table["outline_overlap"]  # 100 / 150, and 115 / 150
    assert overlap[0].startswith("0.6667 [") and overlap[1] == "-"
    assert overlap[2].startswith("0.7667 [")
    # the same images are drawn for both, so that the difference is .1 in every resample
    assert table["outline_overlap gain"] == ["-", "-", "+0.1000 [+0.1000, +0.1000]"]
    depth = table["head_depth_mean_error (lower is better)"]
    assert depth[0] == "-" and depth[1].startswith("3.0000 [") and depth[2].startswith("2.4000 [")
    assert "head_depth_mean_error (lower is better) gain" not in table  # alone has no depth
    # (.1 / .6667 + .6 / 3) / 2 = 17.5 %, the lower depth counts as better
    assert [cell.split(" ")[0] for cell in table["delta MTL, %"]] == ["-", "-", "+17.50"]
    assert table["minutes"] == ["1.7"] * 3
    assert table["images/s"] == ["13"] * 3  # 4 epochs of 10 batches of 32 in 100 s
    assert table["parameters"] == ["1,234,567"] * 3 and table["GFLOP per image"] == ["0.50"] * 3
    assert table["best epoch"] == ["3"] * 3
    assert "outline_exact" not in table and "outline_loss" not in table
    assert "covers the choice of the test images only" in text
    assert "over their references: outline alone, head_depth deep" in text
    assert "beyond doubt" not in text and text.isascii()


def test_all_metrics(runs, capsys):
    table = rows(printed(capsys, runs, "--all"))
    first = [name for name in table if name.startswith(("outline", "head")) and "gain" not in name]
    assert first[:3] == [
        "outline_overlap",
        "head_depth_mean_error (lower is better)",
        "outline_exact",
    ]
    assert "outline_loss" not in table
    assert table["outline_exact"][0].startswith("0.6000 [")  # 3 of 5
    assert table["outline_both"][0].startswith("0.6333 [")  # the mean of .6667 and .6
    assert table["outline_both gain"][2].startswith("+0.0500 [+0.0500")


def test_a_mean_whose_parts_are_not_told_is_averaged_over_runs(tmp_path, capsys):
    for seed, value in ((0, 0.5), (1, 0.7)):
        history = make_history("alone", seed, depth=None)
        history["tasks"] = {"outline": {**TASKS["outline"], "means": {}}}
        history["test"]["outline_both"] = value
        save(history, tmp_path / str(seed))
    assert rows(printed(capsys, tmp_path, "--all"))["outline_both"] == ["0.6000"]


def test_the_interval_is_that_of_the_binomial(tmp_path, capsys):
    """Of 16 images 8 are right: a resample has 0-16 right, with the chances of a fair coin.

    P(X <= 3) = 697 / 65536 < 2.5 % < P(X <= 4) = 2517 / 65536 < 5 %: the limits are 4 and 12 of 16.
    """
    right = [(i % 2, 1) for i in range(16)]
    save(make_history("alone", overlap=right, exact=right, depth=None), tmp_path)
    table = rows(printed(capsys, tmp_path))
    assert table["outline_overlap"] == ["0.5000 [0.2500, 0.7500]"]
    found = estimate({"a": np.array(right, float)[:, None]})
    assert found[0] == 0.5 and limits(found) == (0.25, 0.75)


def test_a_table_repeats():
    first = draws(9)
    draws.cache_clear()
    assert np.array_equal(draws(9), first)


def test_few_images_have_no_interval():
    few = {"a": np.ones((FEWEST - 1, 1, 2))}
    assert estimate(few)[0] == 1 and all(map(math.isnan, limits(estimate(few))))
    assert limits(estimate({"a": np.ones((FEWEST, 1, 2))})) == (1, 1)


def test_folds_are_pooled_by_their_sums(tmp_path, capsys):
    for fold, overlap in enumerate(([(1, 2), (3, 4), (0, 1), (2, 2), (0, 4)], [(10, 90)])):
        save(make_history("alone", 0, fold, overlap, overlap, None), tmp_path / str(fold))
    table = rows(printed(capsys, tmp_path))
    assert table["folds"] == ["2"] and table["test images"] == ["6"]
    assert table["outline_overlap"][0].startswith("0.1553 [")  # 16 / 103, not (6 / 13 + 1 / 9) / 2
    assert table["seeds"] == ["0"]


def test_an_image_of_several_seeds_counts_once(tmp_path, capsys):
    """Fold 0 was run with two seeds, .8 and .6; fold 1 with one, .1: (7 + 1) / 20."""
    for seed, fold, right in ((0, 0, 8), (1, 0, 6), (0, 1, 1)):
        overlap = [(int(i < right), 1) for i in range(10)]
        save(make_history("alone", seed, fold, overlap, overlap, None), tmp_path / f"{seed}{fold}")
    assert rows(printed(capsys, tmp_path))["outline_overlap"][0].startswith("0.4000 [")


def test_only_common_images_are_paired(tmp_path, capsys):
    """alone has folds 0 and 1, joint fold 1 alone, where it is .1 better."""
    for fold in (0, 1):
        overlap = shifted([(i, 10) for i in range(6)], 0.5 * fold)  # fold 0 is harder by .5
        save(make_history("alone", 0, fold, overlap, overlap, None), tmp_path / f"a{fold}")
    better = shifted(overlap, 0.1)
    save(make_history("joint", 0, 1, better, better, None), tmp_path / "j1")
    text = printed(capsys, tmp_path)
    assert rows(text)["outline_overlap"][0].startswith("0.5000 [")
    assert rows(text)["outline_overlap gain"] == ["-", "+0.1000 [+0.1000, +0.1000]"]
    assert "joint has 6 test images, alone has 12: gains are on the 6 that both have." in text
    text = printed(capsys, tmp_path, "--baseline", "joint")
    assert rows(text)["outline_overlap gain"] == ["-0.1000 [-0.1000, -0.1000]", "-"]
    assert "alone has 12 test images, joint has 6: gains are on the 6 that both have." in text


def test_another_baseline(runs, capsys):
    table = rows(printed(capsys, runs, "--baseline", "joint"))
    assert table["outline_overlap gain"] == ["-0.1000 [-0.1000, -0.1000]", "-", "-"]
    # 3.0 is worse than 2.4
    assert table["head_depth_mean_error (lower is better) gain"][1].startswith("-0.6000 [-0.6000")
    message = printed(capsys, runs, "--baseline", "jiont", code=2)
    assert "--baseline: expected one of alone, deep, joint, found jiont" in message


def test_delta_needs_every_reference(runs, capsys):
    assert "delta MTL, %" not in rows(printed(capsys, runs / "alone0", runs / "joint0"))


def test_nothing_is_relative_to_zero(tmp_path, capsys):
    nothing = [(0, 10)] * 6
    save(make_history("alone", overlap=nothing, depth=None), tmp_path / "a")
    save(make_history("joint", depth=None), tmp_path / "j")
    assert "delta MTL, %" not in rows(printed(capsys, tmp_path))


def test_the_validation_split_is_that_of_the_best_epoch(runs, capsys):
    text = printed(capsys, runs, "--split", "val")
    # .6667 - .1 in two runs, too few for an interval
    assert rows(text)["outline_overlap"] == ["0.5667", "-", "0.6667"]
    assert rows(text)["outline_overlap gain"] == ["-", "-", "+0.1000"]
    assert text.count("Validation split at the best epoch") == 1 and "Test split" not in text


# ---- what is said of the runs ----


def test_constants_that_differ_are_told(tmp_path, capsys):
    for name, decay, more in (("alone", 0.2, {}), ("joint", 0.05, {"DROPOUT": 0.3})):
        weights = {"a": 1.0} | ({"b": decay} if more else {})
        config = {"WEIGHT_DECAY": decay, "LOSS_WEIGHTS": weights, **more}
        save(make_history(name, **config), tmp_path / name)
    text = printed(capsys, tmp_path)
    assert (
        "The networks are not the only difference: WEIGHT_DECAY is 0.2 in alone; 0.05 in joint."
        in text
    )
    assert "DROPOUT" not in text and "LOSS_WEIGHTS" not in text  # not shared
    assert "WIDTHS" not in text  # the same
    weights = {"a": 2.0, "b": 1.0}
    save(make_history("joint", 1, WEIGHT_DECAY=0.2, LOSS_WEIGHTS=weights), tmp_path / "other")
    text = printed(capsys, tmp_path / "alone", tmp_path / "other")
    assert "LOSS_WEIGHTS a is 1.0 in alone; 2.0 in joint." in text
    assert "LOSS_WEIGHTS b" not in text


def test_a_stopped_run_tells_what_it_has_reached(runs, tmp_path, capsys):
    path = stop(make_history("joint"), tmp_path, 2)
    line = "joint, seed 0: unfinished, epoch 2 of 4, validation values only."
    text = printed(capsys, runs / "alone0", path)
    assert line in text and rows(text)["outline_overlap"][1] == "-"
    text = printed(capsys, runs / "alone0", tmp_path, "--split", "val", "--out", tmp_path / "o")
    assert line in text and rows(text)["outline_overlap"] == ["0.5667", "0.2000"]
    assert "expected a finished run" in printed(capsys, path, "--export", tmp_path / "x", code=2)
    stop(make_history("joint"), tmp_path, 0)  # before the end of the first epoch
    assert rows(printed(capsys, tmp_path, "--split", "val"))["outline_overlap"] == ["-"]
    save(make_history("joint"), tmp_path)  # finished: the checkpoint beside it says no more
    assert "unfinished" not in printed(capsys, tmp_path)


def test_variants_of_a_script_are_told_apart(runs, tmp_path, capsys):
    save(make_history("joint", WIDTHS=(1, 2)), tmp_path / "a")
    table = rows(printed(capsys, runs / "joint0", tmp_path / "a"))
    assert table[""] == ["joint (WIDTHS [8, 16])", "joint (WIDTHS [1, 2])"]
    same = save(make_history("joint"), tmp_path / "b")
    message = printed(capsys, runs / "joint0", same, code=2)
    assert "expected one run of joint with seed 0 on its data, found another in" in message
    table = rows(printed(capsys, runs / "joint0", f"new={same}", "--baseline", "new"))
    assert table[""] == ["joint", "new"]
    taught = save(make_history("joint") | {"weights_from": "x.pt"}, tmp_path / "c")
    table = rows(printed(capsys, runs / "joint0", taught))
    assert table[""] == ["joint", "joint (weights given)"]


@pytest.mark.parametrize("argument", ["a={}/lr=0.01", "lr=0.01={}/plain", "{}/lr=0.01"])
def test_labels_and_paths_may_hold_an_equals_sign(tmp_path, capsys, argument):
    for folder in ("lr=0.01", "plain"):
        save(make_history("joint"), tmp_path / folder)
    label = argument.split("={}")[0] if "={}" in argument else "joint"
    assert rows(printed(capsys, argument.format(tmp_path)))[""] == [label]


def test_a_reader_that_goes_away_does_no_harm(runs, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as out:  # closing it flushes once more
        monkeypatch.setattr(sys, "stdout", out)
        assert compare.main([str(runs)]) == 0


def test_a_narrow_encoding_is_no_riddle(runs, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    assert compare.main([f"Δ={runs / 'joint0'}"]) == 0
    assert r"|  | \u0394 |" in out.buffer.getvalue().decode("cp1252")


# ---- the text form ----


def test_the_text_form_gives_the_same_table(runs, tmp_path, capsys):
    written = printed(capsys, "--export", tmp_path / "results", runs).split()
    assert len(written) == 6 and written[-1].endswith("/joint_seed1_fold0.json")
    for flags in (["--split", "test"], ["--split", "val"], ["--all"]):
        assert printed(capsys, tmp_path / "results", *flags) == printed(capsys, runs, *flags)
    text = (tmp_path / "results/joint_seed0_fold0.json").read_text()
    assert "secret" not in text and "outline_loss" not in json.loads(text)["rows"]
    assert json.loads(text) == histories.read(runs / "joint0/joint_history.pt")
    assert printed(capsys, "--export", tmp_path / "results", runs).split() == written


def test_data_without_folds_have_none_in_the_name(tmp_path, capsys):
    path = save(make_history("joint", H5_SAVE_PATH="data/pets"), tmp_path)
    assert printed(capsys, "--export", tmp_path, path).split() == [
        str(tmp_path / "joint_seed0.json")
    ]


def test_a_long_run_stays_small():
    """500 test images, ten metrics with scattered numerators, 250 epochs."""
    history, random = make_history("joint"), torch.Generator().manual_seed(0)
    names = [f"m{i}" for i in range(10)]
    history["tasks"] = {"outline": TASKS["outline"] | {"metrics": names, "primary": "m0"}}
    history["data"]["test"], history["test_lines"] = 500, list(range(500))
    scores = torch.rand(10, 500, 1, generator=random, dtype=torch.float64)
    history["test_rows"] = {
        f"outline_{n}": torch.cat([score, torch.ones(500, 1)], 1)
        for n, score in zip(names, scores, strict=True)
    }
    history["seconds"] = [1.23456] * 250
    history["train"] = {"outline_loss": [0.123456] * 250, "outline_weight": [1.0] * 250}
    history["val"] = {f"outline_{n}": [0.123456] * 250 for n in names}
    history["test"]["outline_m0"] = math.nan
    summary = histories.summarise(history)
    text = histories.to_json(summary)
    assert len(text) < 60_000
    assert json.loads(text, parse_constant=pytest.fail)["test"]["outline_m0"] is None
    kept = histories.rows(summary, ["outline_m3"])
    assert kept.shape == (500, 1, 2)
    assert np.allclose(kept[:, 0], history["test_rows"]["outline_m3"], atol=5.1e-6)


def test_export_overwrites_no_other_run(runs, tmp_path, capsys):
    printed(capsys, "--export", tmp_path, runs / "joint0")
    file = tmp_path / "joint_seed0_fold0.json"
    before = file.read_bytes()
    other = save(make_history("joint", WIDTHS=(1, 2)), tmp_path / "other")
    message = printed(capsys, "--export", tmp_path, other, code=2)
    assert f"{file.name}: holds another run than" in message
    message = printed(capsys, "--export", tmp_path / "new", other, runs, code=2)
    assert f"{file.name}: holds another run than" in message
    assert file.read_bytes() == before


# ---- the picture ----


def test_out_writes_table_and_picture(runs, tmp_path, capsys):
    with matplotlib.rc_context({"text.usetex": True}):  # a user's matplotlibrc
        table = printed(capsys, runs, f"$\\frac$={runs / 'joint0'}", "--out", tmp_path / "new")
    assert (tmp_path / "new/compare.md").read_text() == table
    picture = imread(tmp_path / "new/compare.png")
    assert picture.shape[1] > 800 and picture.std() > 0.05


def test_the_forest_shows_the_gains_on_their_own_axis():
    axis = Figure().subplots()
    found = {"b": (0.01, -0.002, 0.03), "c": (-0.005, -0.02, 0.01)}
    curves.draw_forest(axis, "outline_overlap", found, "abc", dict.fromkeys("abc", "black"))
    zero, *lines = [list(map(float, line.get_xdata())) for line in axis.lines]
    assert zero == [0, 0]
    assert lines == [[-0.002, 0.03], [0.01], [-0.02, 0.01], [-0.005]]
    low, high = axis.get_xlim()
    assert -0.04 < low < -0.02 and 0.03 < high < 0.05
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]


def test_the_curves_are_means_over_runs():
    def column(*series):
        return [
            {"curves": {"val": {"outline_overlap": list(each)} if each else {}}} for each in series
        ]

    columns = {"two": column((0.1, 0.3, 0.5), (0.3, None)), "other": column(())}
    axis = Figure().subplots()
    curves.draw_curves(axis, columns, "outline_overlap")
    assert axis.get_legend_handles_labels()[1] == ["two"]  # the other one lacks the task
    assert axis.lines[0].get_ydata().tolist() == pytest.approx([0.2, 0.3, 0.5])


# ---- refusals ----

DIFFERENCES = {
    "epochs": (lambda h: h["config"].update(EPOCHS=5), "EPOCHS = 5, not 4"),
    "batch": (lambda h: h["config"].update(BATCH_SIZE=8), "BATCH_SIZE = 8, not 32"),
    "demo": (lambda h: h["config"].update(demo=True), "demo = True, not False"),
    "processes": (lambda h: h["config"].update(processes=2), "processes = 2, not 1"),
    "side": (lambda h: h.update(side=(96, 64)), "side = [96, 64], not [64, 96]"),
    "train": (lambda h: h["data"].update(train=331), "train samples = 331, not 330"),
    "labels": (lambda h: h["data_fingerprint"].update(train="x"), "train data = x, not train 0"),
    "test": (
        lambda h: h["data_fingerprint"].update(test="x"),
        ", ".join(f"data with source line {line} = x, not test 0" for line in range(3)),
    ),
    "task": (
        lambda h: h.update(tasks={"outline": TASKS["outline"] | {"primary": "exact"}}),
        "task outline = ['exact', True, 'alone'], not ['overlap', True, 'alone']",
    ),
}


def three_runs(folder, change):
    """Paths of three runs, the last of which is changed."""
    paths = []
    for place, (name, seed) in enumerate([("alone", 0), ("joint", 0), ("joint", 1)]):
        history = make_history(name, seed)
        if place == 2:
            change(history)
        paths.append(save(history, folder / str(place)))
    return paths


@pytest.mark.parametrize("case", DIFFERENCES)
def test_other_data_or_budgets_are_refused(tmp_path, capsys, case):
    change, how = DIFFERENCES[case]
    paths = three_runs(tmp_path, change)
    assert printed(capsys, *paths[:2])
    message = printed(capsys, *paths, code=2)
    assert message == f"compare.py: {paths[2]}: cannot be compared with {paths[0]}: it has {how}\n"
    if case not in ("train", "labels", "epochs", "batch"):  # the last two say it of the steps
        assert printed(capsys, *paths, "--train-may-differ", code=2) == message


def test_other_test_images_are_refused_where_no_source_lines_are_known(tmp_path, capsys):
    for name, fold in (("alone", 0), ("joint", 1)):
        save(make_history(name, 0, fold) | {"test_lines": None}, tmp_path / name)
    message = printed(capsys, tmp_path, code=2)
    expected = "joint: cannot be compared with alone: it has test data = test 1, not test 0\n"
    assert message == f"compare.py: {expected}"


def test_training_data_may_be_compared(tmp_path, capsys):
    def change(history):
        history["data"]["train"], history["data_fingerprint"]["train"] = 170, "b"
        history["config"]["EPOCHS"] = 8  # of 5 steps, the others have 4 of 10

    table = printed(capsys, *three_runs(tmp_path, change), "--train-may-differ")
    assert "4-8 epochs, batches of 32, 170-330 train, 5 val, 6 test" in table


def test_training_data_may_differ_but_not_the_steps(tmp_path, capsys):
    paths = three_runs(tmp_path, lambda history: history["config"].update(EPOCHS=5))
    message = printed(capsys, *paths, "--train-may-differ", code=2)
    assert message.endswith("it has training steps = 50, not 40\n")


def test_mistakes_end_in_one_line(tmp_path, capsys):
    message = printed(capsys, tmp_path / "nowhere", code=2)
    assert "nowhere: expected a file or folder with *_history.pt" in message
    assert "found no such path" in message
    assert "found no such path" in printed(capsys, f"a={tmp_path / 'nowhere'}", code=2)
    assert "found none" in printed(capsys, tmp_path, code=2)
    for name, content in (
        ("a_history.pt", b"x"),
        ("a_last.pt", b"x"),
        ("a_seed0.json", b"{"),
        ("b_seed0.json", b"[]"),
    ):
        (tmp_path / name).write_bytes(content)
        message = printed(capsys, tmp_path / name, code=2)
        assert f"{name}: expected" in message and "found" in message
    (tmp_path / "file").write_text("in the way")
    path = save(make_history("joint"), tmp_path / "good")
    for flag in ("--out", "--export"):
        message = printed(capsys, path, flag, tmp_path / "file" / "out", code=2)
        assert f"{flag}: cannot make the folder" in message


def test_damaged_histories_end_in_one_line(tmp_path, capsys):
    summary = histories.summarise(make_history("joint"))
    for place, (change, found) in enumerate((
        ({"config": {"BATCH_SIZE": 8}}, "found no EPOCHS in it\n"),
        ({"rows": {"outline_overlap": [[1, 2], 3]}}, "found a damaged file ("),
    )):  # fmt: skip
        (tmp_path / f"{place}_seed0.json").write_text(histories.to_json(summary | change))
        assert found in printed(capsys, tmp_path / f"{place}_seed0.json", code=2)
    old = {key: value for key, value in summary.items() if key not in ("tasks", "rows")}
    (tmp_path / "old_seed0.json").write_text(histories.to_json(old))
    message = printed(capsys, tmp_path / "old_seed0.json", code=2)
    assert message.endswith("found no tasks in it\n")
    for change in ({"best_epoch": 9}, {"config": {"EPOCHS": 1, "BATCH_SIZE": 0}}):
        path = save(make_history("joint") | change, tmp_path / "part")
        assert "found a damaged file (" in printed(capsys, path, code=2)


# ---- with real runs ----


def test_histories_of_real_runs(finished, tmp_path, capsys):
    """What the engine writes is what the tool reads, in all forms."""
    folders = list(finished.values())
    table = printed(capsys, *folders, "--all")
    assert sorted(rows(table)[""]) == sorted(name.removeprefix("MTL_") for name in finished)
    assert printed(capsys, "--export", tmp_path, *folders)
    assert printed(capsys, tmp_path, "--all") == table
    record = torch.load(finished["MTL_main"] / "main_history.pt", weights_only=True)
    column = rows(table)[""].index("main")
    for task, entry in record["tasks"].items():
        for metric in entry["metrics"]:
            cell = rows(table)[f"{task}_{metric}"][column]
            assert cell.split(" ")[0] == f"{record['test'][f'{task}_{metric}']:.4f}"
    last = torch.load(finished["MTL_main"] / "main_last.pt", weights_only=True)
    (tmp_path / "stopped").mkdir()
    torch.save(last, tmp_path / "stopped/main_last.pt")
    text = printed(capsys, tmp_path / "stopped", "--split", "val")
    assert "main, seed 0: unfinished, epoch 3 of 3, validation values only." in text


def test_minutes_to_a_quality(runs, tmp_path, capsys):
    path = save(make_history("joint") | {"commit": "0123456789abcdef"}, tmp_path)
    picture = str(tmp_path / "curve.png")
    time_to_quality.main([str(path), str(runs / "deep0"), "--level", "0.3", "--out", picture])
    lines = capsys.readouterr().out.splitlines()
    # .1 and .2 in the first 40 s, .57 after 10 s more
    assert lines[0] == "joint, seed 0, 64 x 96, commit 012345678: outline_overlap 0.8 min"
    assert lines[1] == "deep, seed 0, 64 x 96: head_depth_mean_error 0.3 min"  # 0.1 at once
    assert imread(picture).std() > 0
    time_to_quality.main([str(path), "--level", "0.99"])
    assert capsys.readouterr().out.endswith("outline_overlap not reached\n")
