"""What the tools read of runs: histories, checkpoints, series; which of them are one column."""

import json
import math

import pytest
import torch
from comparing import EXACT, compared, make_history, printed, save, saved, tables
from matplotlib.image import imread
from running import run

from benchmarks import time_to_quality
from tools.shared import histories


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("runs"))


def test_a_series_gives_the_same_tables(runs, tmp_path, capsys):
    path = tmp_path / "new" / "all.jsonl"
    assert printed(capsys, "--export", path, runs) == f"{path}: 6 runs\n"
    for flags in (["--split", "test"], ["--split", "val"]):
        assert printed(capsys, path.parent, *flags) == printed(capsys, runs, *flags)
    text = path.read_text()
    joint = json.loads(text.splitlines()[-1])
    assert "secret" not in text and (joint["name"], joint["seed"]) == ("joint", 1)
    names = {"outline_overlap", "outline_exact", "head_depth_mean_error"}  # a part of a mean
    assert joint["rows"].keys() == names and joint["rows"]["outline_exact"] == ["101010", "111110"]
    assert joint["curves"] == {"val": {"outline_overlap": [0.1, 0.2, 0.6907, 0.3]}}


def test_a_series_may_grow_but_loses_nothing(runs, tmp_path, capsys):
    path = tmp_path / "all.jsonl"
    printed(capsys, "--export", path, runs / "joint0")
    before = path.read_bytes()
    message = printed(capsys, "--export", path, f"new={runs / 'joint1'}", code=2)
    assert f"{path}: holds other content than these runs" in message
    other = make_history("joint", overlap=EXACT)
    other["val"]["outline_exact"][2] = math.nan
    other = save(other, tmp_path / "other")
    message = printed(capsys, "--export", path, path, other, code=2)
    assert "expected one run of joint with seed 0" in message and path.read_bytes() == before
    printed(capsys, "--export", path, path, runs / "joint0", f"new={other}")
    assert [*compared(capsys, path)[0]] == ["joint", "new"]
    assert path.read_bytes().startswith(before) and "NaN" not in path.read_text()
    message = printed(capsys, "--export", path, path, "--only", "joint", code=2)
    assert "--only: cannot be combined with --export" in message
    message = printed(capsys, "--export", tmp_path, other, code=2)
    assert "--export: expected a file that ends in .jsonl, found" in message


def weights(path, checksum=None):
    return {"weights_from": {"path": path, "checksum": checksum} if checksum else path}


@pytest.mark.parametrize(
    ("first", "second", "labels"),
    [
        ({"config": {"WIDTHS": (1, 2)}}, {}, ["WIDTHS [1, 2]", "WIDTHS [8, 16]"]),
        ({"config": {"STEM": 2}}, {}, ["STEM 2", ""]),
        (
            {"config": {"LEARNING_RATE": 0.1}}, {"config": {"LEARNING_RATE": 0.2}},
            ["LEARNING_RATE 0.1", "LEARNING_RATE 0.2"],
        ),
        ({"config": {"DEMO_EPOCHS": 1}}, {"config": {"DEMO_EPOCHS": 2}}, [""]),
        ({"script": "own/joint.py"}, {}, ["script own/joint.py", "script MTL_joint.py"]),
        (weights("x.pt"), {}, ["weights x.pt", ""]),
        (weights("x.pt"), weights("y.pt"), ["weights x.pt", "weights y.pt"]),
        (weights("seed0.pt"), weights("seed1.pt"), [""]),  # each of its own seed
        (weights("seed1.pt"), weights("seed0.pt"), ["weights seed1.pt", "weights seed0.pt"]),
        (weights("seed05.pt"), weights("seed15.pt"), ["weights seed05.pt", "weights seed15.pt"]),
        (weights("seed1.pt", "1a"), weights("seed1.pt", "1a"), [""]),  # of one seed for all
        (weights("x.pt", "1a"), weights("/y.pt", "1a"), [""]),
        (weights("x.pt", "1a"), weights("x.pt", "2b"), ["weights x.pt (1a)", "weights x.pt (2b)"]),
        (weights("seed_0/a.pt", "1a"), weights("seed_1/a.pt", "2b"), [""]),
        ({"config": {"WEIGHTS": "x.pt"}}, {"config": {"WEIGHTS": "y.pt"}}, [""]),  # not the name
        ({"parameters": 1}, {"parameters": 2}, ["parameters 1", "parameters 2"]),
        ({"gflop": 0.6}, {}, ["gflop 0.6", "gflop 0.5"]),
    ],
)  # fmt: skip
def test_what_is_not_the_same_becomes_another_column(tmp_path, capsys, first, second, labels):
    for seed, change in enumerate((first, second)):
        history = make_history("joint", seed)
        change = change | {"config": history["config"] | change.get("config", {})}
        save(history | change, tmp_path / str(seed))
    expected = [f"joint ({words})" if words else "joint" for words in labels]
    assert [*compared(capsys, tmp_path)[0]] == expected


def test_a_fold_is_the_whole_number_in_the_name_of_its_data():
    assert histories.summarise(make_history("joint", fold=12))["fold"] == 12
    other = make_history("joint", H5_SAVE_PATH="folds/fold_3/data")  # of the folder, not above it
    assert histories.summarise(other)["fold"] is None


def test_the_same_run_twice_is_refused_without_a_label(runs, tmp_path, capsys):
    same = save(make_history("joint"), tmp_path)
    message = printed(capsys, runs / "joint0", same, code=2)
    assert "expected one run of joint with seed 0 on its data, found another in" in message
    values, _ = compared(capsys, runs / "joint0", f"new={same}")
    assert [*values] == ["joint", "new"]
    values, _ = compared(capsys, f"new={runs}")  # several scripts keep their names
    assert [*values] == ["new alone", "new deep", "new joint"]
    table = printed(capsys, f"a|b\n c={same}").splitlines()
    assert table[2].startswith("| a\\|b c | 0 | 6 |")


def test_labels_and_paths_may_hold_an_equals_sign(tmp_path, capsys):
    for folder in ("lr=0.01", "plain"):
        save(make_history("joint"), tmp_path / folder)
    for argument, label in (
        ("a={}/lr=0.01", "a"),
        ("l=0={}/plain", "l=0"),
        ("{}/lr=0.01", "joint"),
    ):
        assert [*compared(capsys, argument.format(tmp_path))[0]] == [label]


def test_mistakes_end_in_one_line(tmp_path, capsys):
    message = printed(capsys, tmp_path / "nowhere", code=2)
    assert "nowhere: expected a file or folder" in message and "found no such path" in message
    assert "found none" in printed(capsys, tmp_path, code=2)
    summary = histories.summarise(make_history("joint"))
    for name, content, place, found in (
        ("a_last.pt", "x", "", "expected a checkpoint, found a damaged file ("),
        ("a.jsonl", histories.to_line(summary) + "\n{", ", line 2", "found a damaged file ("),
        ("b.jsonl", "[]", ", line 1", "found a damaged file ("),
        ("c.jsonl", "", "", "found none"),
    ):
        (tmp_path / name).write_text(content)
        message = printed(capsys, tmp_path / name, code=2)
        assert f"{name}{place}: expected" in message and found in message
    (tmp_path / "file").write_text("in the way")
    path = save(make_history("joint"), tmp_path / "good")
    for flag in ("--out", "--export"):
        message = printed(capsys, path, flag, tmp_path / "file" / "out" / "a.jsonl", code=2)
        assert f"{flag}: cannot create the folder" in message


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"config": {"BATCH_SIZE": 8, "SEED": 0}}, "found no EPOCHS in it\n"),
        ({"tasks": None}, "found a damaged file ("),
        ({"test_rows": {"outline_overlap": torch.eye(2)}}, "found a damaged file ("),
        ({"data_fingerprint": {"test": {"masks": "m"}}}, "found no images in it\n"),
        ({"data_fingerprint": {"test": "7 samples of"}}, "found one of an earlier version\n"),
        ({"config": {"EPOCHS": 1, "BATCH_SIZE": 0}}, "found a damaged file ("),
    ],
)
def test_damaged_histories_end_in_one_line(tmp_path, capsys, change, found):
    path = save(make_history("joint") | change, tmp_path)
    assert found in printed(capsys, path, code=2)


def test_what_the_engine_writes_is_read(shared_data, tmp_path, capsys):
    run("MTL_main", shared_data, tmp_path / "out")
    path, stopped = (tmp_path / "out" / f"main_{kind}.pt" for kind in ("history", "last"))
    text = printed(capsys, tmp_path / "out", "--all")
    assert "unfinished" not in text  # the checkpoint beside the history says no more
    record = torch.load(path, weights_only=True)
    for task, entry in record["tasks"].items():
        for metric in entry["metrics"]:
            cell = tables(text)[0]["main"][f"{task}_{metric}"]
            assert cell.split(" ")[0] == f"{record['test'][f'{task}_{metric}']:.4f}"
    path.unlink()
    line = "main, seed 0: unfinished, epoch 3 of 3, validation values only."
    text = printed(capsys, tmp_path / "out")
    assert line in text and tables(text)[0]["main"]["seg_iou"] == "-"
    text = printed(capsys, tmp_path / "out", "--split", "val")
    best = record["val"]["seg_iou"][record["best_epoch"] - 1]
    assert line in text and tables(text)[0]["main"]["seg_iou"] == f"{best:.4f}"
    assert "expected a finished run" in printed(
        capsys, stopped, "--export", tmp_path / "x.jsonl", code=2
    )
    state = torch.load(stopped, weights_only=True)
    nothing = {"train": {}, "val": {}, "seconds": [], "best_epoch": 0}
    torch.save(state | {"history": nothing}, stopped)  # before the end of the first epoch
    assert compared(capsys, stopped, "--split", "val")[0]["main"]["seg_iou"] == "-"


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
