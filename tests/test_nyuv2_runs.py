"""examples/nyuv2.py on data: what it reads, and runs under its weightings, resumed and in pairs.

Runs train on synthetic rooms with unknown pixels of each kind, and with samples that lack a kind.
"""

import math

import pytest
import torch
from nyuv2_source import write_distributed
from running import ROOT, Pair, history, is_like, run, stopped
from test_nyuv2 import TARGETS, ratios

from benchmarks import dense_speed
from dataload import H5Dataset, write_split
from engine.processes import Processes
from engine.script import parse
from engine.setup import build, open_data
from examples import nyuv2
from parts.drawn_rooms import CLASS_NAMES, scenes
from parts.methods import WEIGHTINGS
from tools import prepare_nyuv2

SCRIPT, SIDE = "examples/nyuv2", (32, 64)


def test_the_network_answers_in_the_units_of_the_targets():
    torch.manual_seed(0)
    outputs = nyuv2.Network().eval()(torch.rand(2, 3, 64, 96) * 255)
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "seg": (2, 13, 64, 96),
        "depth": (2, 1, 64, 96),
        "normals": (2, 3, 64, 96),
    }
    lengths = torch.linalg.vector_norm(outputs["normals"], dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """12, 5 and 7 synthetic rooms of 32 x 64 pixels."""
    folder = tmp_path_factory.mktemp("rooms") / "data"
    for seed, (split, count) in enumerate({"train": 12, "val": 5, "test": 7}.items()):
        arrays = scenes(count, seed, SIDE)
        write_split(folder / split, arrays, {"source": "test"}, {"segments": CLASS_NAMES})
    return folder


def test_what_prepare_nyuv2_writes_is_what_the_example_reads(tmp_path):
    """The same scenes, written by the tool and by the demo, within 1 mm and 0.1 degrees."""
    write_distributed(tmp_path / "nyuv2", (6, 2), SIDE)
    flags = ["--root", str(tmp_path / "nyuv2"), "--out", str(tmp_path / "data"), "--val-is-test"]
    assert prepare_nyuv2.main(flags) == 0
    write_split(tmp_path / "drawn" / "train", scenes(6, 0, SIDE), {}, {"segments": CLASS_NAMES})
    one, other = (H5Dataset("train", tmp_path / f, TARGETS) for f in ("data", "drawn"))
    assert one.class_names["seg"] == CLASS_NAMES
    for name in TARGETS:
        assert torch.equal(one.known[name], other.known[name])
    images, targets = one[list(range(6))]
    drawn_images, drawn = other[list(range(6))]
    assert torch.equal(images, drawn_images) and torch.equal(targets["seg"], drawn["seg"])
    assert torch.equal(targets["depth"].isnan(), drawn["depth"].isnan())
    assert (targets["depth"] - drawn["depth"]).abs().nan_to_num().max() < 1e-3
    assert torch.equal(targets["normals"].isnan(), drawn["normals"].isnan())
    found = ratios("normals", targets["normals"].nan_to_num(), drawn["normals"])
    assert found["mean_angle"] < 0.01


def test_the_demo_has_something_of_each_kind_to_learn(tmp_path, monkeypatch):
    monkeypatch.setattr(nyuv2, "scenes", lambda count, seed: scenes(count // 8, seed, SIDE))
    nyuv2.demo(tmp_path)
    for split, count in (("train", 32), ("val", 6), ("test", 6)):
        dataset = H5Dataset(split, tmp_path, TARGETS)
        assert len(dataset) == count and all(dataset.known[name].any() for name in TARGETS)
        assert not dataset.complete


@pytest.mark.parametrize("method", WEIGHTINGS)
def test_every_weighting_learns_from_partly_known_batches(rooms, method):
    """Two steps, of which the second has nothing but depth."""
    flags = ["--h5-save-path", str(rooms), "--batch-size", "4", "--method", method]
    widths = ["--widths", "8", "8", "16", "16"]
    script, settings, options = parse(ROOT / f"{SCRIPT}.py", [*flags, *widths])
    data = open_data(rooms, script.module.TASKS)["train"]
    trainer = build(script, settings, options, data, Processes({}))
    trainer.training_step.train()
    images, targets = data[[0, 1, 2, 3]]
    row = trainer.learn(images, targets, torch.Generator().manual_seed(0))
    assert all(tensor.isfinite().all() for tensor in row.values())
    assert (row["loss"] > 0).all() and (row["known"] > 0).all()
    for name in ("seg", "normals"):
        kind = TARGETS[name]
        targets[name] = kind.batch(kind.unknown(4, SIDE))
    row = trainer.learn(images, targets, torch.Generator().manual_seed(1))
    assert row["norm"].isfinite()
    for values in (row["loss"], row["known"]):
        assert values[1] > 0 and values[[0, 2]].tolist() == [0, 0]
    assert all(p.isfinite().all() for p in trainer.network.parameters())


def test_a_run_resumes_bit_for_bit(rooms, tmp_path):
    flags = ["--method", "cagrad"]
    run(SCRIPT, rooms, tmp_path / "whole", *flags)
    assert all(map(math.isfinite, history(tmp_path / "whole", "nyuv2")["test"].values()))
    stopped(SCRIPT, rooms, tmp_path / "parts", *flags)
    run(SCRIPT, rooms, tmp_path / "parts", *flags, "--resume")
    assert is_like(tmp_path / "whole", tmp_path / "parts", "nyuv2")


def test_two_processes_train_together(rooms, tmp_path):
    codes, printed = Pair(SCRIPT, rooms, tmp_path / "out", "--method", "pcgrad").wait()
    assert codes == [0, 0] and "2 process(es)" in printed[0], printed
    record = history(tmp_path / "out", "nyuv2")
    for name in TARGETS:
        assert all(map(math.isfinite, record["train"][f"{name}_loss"]))
    assert len(record["test_rows"]["normals_mean_angle"]) == 7


def test_one_task_alone_needs_one_file(rooms, tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for name in ("images", "depth"):
            (tmp_path / "data" / split / f"{name}.h5").symlink_to(rooms / split / f"{name}.h5")
    run(SCRIPT, tmp_path / "data", tmp_path / "out", "--learn", "depth")
    record = history(tmp_path / "out", "nyuv2")
    assert list(record["tasks"]) == ["depth"]
    assert record["tasks"]["depth"]["reference"] == "only_depth"


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--method", "gradnorm"], "--method: expected one of fixed, uncertainty"),
        (["--learn", "seg", "dpeth"], "--learn: expected some of seg, depth, normals, found dpeth"),
        (["--learn", "dpeth"], "--learn: expected some of seg, depth, normals, found dpeth"),
        (
            ["--method", "uncertainty", "--loss-weights", "depth=0"],
            "--loss-weights: expected numbers above 0 with uncertainty weighting, found {",
        ),
    ],
)
def test_wrong_settings(rooms, tmp_path, flags, expected):
    printed = run(SCRIPT, rooms, tmp_path / "out", *flags, code=2)
    assert expected in printed and printed.count("\n") == 1


def constant_answers(train, targets):
    """{task: output}: the commonest class, the median depth and the mean normal of train."""
    _, known = train[list(range(len(train)))]
    count, (height, width) = len(targets["seg"]), train.side
    classes = torch.bincount(known["seg"].flatten().long(), minlength=256)[:13]
    seg = torch.zeros(count, 13, height, width)
    seg[:, classes.argmax()] = 1
    median = known["depth"].nanmedian().item()
    mean = known["normals"].nanmean((0, 2, 3)).view(1, 3, 1, 1).expand(count, 3, height, width)
    return {"seg": seg, "depth": torch.full((count, 1, height, width), median), "normals": mean}


def test_training_beats_constant_answers_in_every_metric(tmp_path):
    for seed, (split, count) in enumerate({"train": 48, "val": 8, "test": 12}.items()):
        arrays = scenes(count, seed, SIDE)
        write_split(tmp_path / "data" / split, arrays, {}, {"segments": CLASS_NAMES})
    flags = ["--widths", "16", "16", "32", "32", "--learning-rate", "0.02", "--ema-decay", "0.9"]
    run(SCRIPT, tmp_path / "data", tmp_path / "out", "--epochs", "16", *flags)
    found = history(tmp_path / "out", "nyuv2")["test"]
    train, test = (H5Dataset(split, tmp_path / "data", TARGETS) for split in ("train", "test"))
    _, targets = test[list(range(len(test)))]
    better_if_less = ("error", "angle")
    for name, output in constant_answers(train, targets).items():
        for metric, constant in ratios(name, output, targets[name]).items():
            if metric.startswith("iou_"):
                continue
            sign = -1 if metric.endswith(better_if_less) else 1
            assert sign * found[f"{name}_{metric}"] > sign * constant, metric


def test_the_table_of_the_benchmark(monkeypatch, capsys):
    monkeypatch.setattr(dense_speed, "alone", dense_speed.measure)
    flags = ["--side", "32", "32", "--batch-size", "2", "--steps", "1", "--methods", "cagrad"]
    assert dense_speed.main([*flags, "--device", "cpu"]) == 0
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines() if "| " in row][2:]
    assert [row[0] for row in rows] == ["| plain", "| cagrad"]
    assert all(float(row[1]) > 0 for row in rows)
