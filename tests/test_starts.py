"""Numbers before pictures and pickles; runs that go on at another rate or from other weights."""

import re
from dataclasses import replace

import matplotlib
import pytest
import torch
from running import ROOT, history, load, run, without_pictures

import engine
import engine.results
import engine.run
import MTL_Utils
from engine import pictures


@pytest.fixture
def no_pictures():
    with without_pictures():
        yield


# ------------------------------------------------------------ results before pictures and pickles


def test_a_picture_that_cannot_be_drawn_costs_itself_alone(shared_data, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("no such font")

    monkeypatch.setattr(engine.results, "_draw_losses", refuse)
    printed = run("MTL_main", shared_data, tmp_path, "--epochs", "1")
    path = tmp_path / "main_seg_loss.png"
    assert f"\nwarning: {path}: cannot be made (RuntimeError: no such font)\n" in printed
    assert (
        history(tmp_path)["test"]["seg_iou"] >= 0 and str(path) not in printed.split("written:")[1]
    )
    assert (tmp_path / "main_test.png").is_file()


def test_a_users_matplotlibrc_and_class_names_with_dollars(tmp_path):
    with matplotlib.rc_context({"text.usetex": True, "font.family": "No Such Font"}):
        record = {"best_epoch": 1, "train": {"seg_loss": [1.0]}}
        record["val"] = {"seg_loss": [1.0], "seg_iou": [0.5]}
        pictures.save_loss_picture(tmp_path / "x.png", record, "seg", MTL_Utils.SEG)
        image = torch.zeros(3, 32, 32, dtype=torch.uint8)
        targets, names = {"bin": torch.tensor(1.0)}, {"bin": ("a$", "b$_{")}
        tasks = {"bin": MTL_Utils.BIN}
        pictures.save_test_picture(tmp_path / "y.png", image, targets, {}, {}, tasks, names)
    assert matplotlib.image.imread(tmp_path / "x.png").std() > 0.05


def own(tmp_path, *pairs):
    """MTL_baseline with some text replaced, as MTL_own.py."""
    text = (ROOT / "MTL_baseline.py").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "MTL_own.py").write_text(text)
    return tmp_path / "MTL_own.py"


def test_a_network_that_no_file_can_hold_costs_itself_alone(no_pictures, shared_data, tmp_path):
    script = own(
        tmp_path, ("super().__init__()", "super().__init__()\n        self.f = lambda x: x")
    )
    out = tmp_path / "out"
    printed = run(script, shared_data, out, "--epochs", "1")
    assert f"\nwarning: {out}/own_model.pt: cannot be made (" in printed
    assert not (out / "own_model.pt").exists() and history(out, "own")["test"]["seg_iou"] >= 0
    assert "own is finished" in run(script, shared_data, out, "--epochs", "1", "--resume")
    assert engine.open_network(out / "own_model_lite.pt").history["name"] == "own"


def test_a_network_that_needs_more_than_its_attributes_is_noticed(
    no_pictures, shared_data, tmp_path
):
    script = own(
        tmp_path,
        ("class Network", "gain = [1.0]\n\n\nclass Network"),
        ("super().__init__()", "super().__init__()\n        gain[0] = 2.0"),
        ("self.seg(features)", "self.seg(features) * gain[0]"),
    )
    printed = run(script, shared_data, tmp_path / "out", "--epochs", "1")
    assert printed.count("warning") == 1
    assert (
        f"warning: {tmp_path}/out/own_model.pt: the opened network gives other outputs than the "
        "trained one; what it needs must be in its own attributes\n"
    ) in printed


# ------------------------------------------------------- a lower learning rate, and other weights


def test_a_lower_learning_rate_is_accepted_on_resume(
    no_pictures, shared_data, tmp_path, monkeypatch
):
    out, original = tmp_path / "out", MTL_Utils.SEG
    calls = []

    def loss(output, target):
        calls.append(torch.is_grad_enabled())
        return original.loss(output, target) * (torch.nan if sum(calls) == 5 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(MTL_Utils, "SEG", replace(original, loss=loss))
        patch.setattr(engine.run, "CHECKPOINT_SECONDS", 0)
        printed = run("MTL_main", shared_data, out, code=2)
    assert "go on with --resume and a lower --learning-rate" in printed
    run("MTL_main", shared_data, out, "--resume", "--learning-rate", "1e-3")
    record = history(out)
    assert record["learning_rate_changes"] == [[2, 1e-2, 1e-3]]
    assert record["config"]["LEARNING_RATE"] == 1e-3


@pytest.mark.parametrize("ending", ["model_lite.pt", "model.pt", "last.pt"])
def test_weights_of_any_file_are_a_start(finished, no_pictures, shared_data, tmp_path, ending):
    path = finished["MTL_main"] / f"main_{ending}"
    flags = ["--weights", str(path), "--epochs", "1", "--learning-rate", "1e-9"]
    printed = run("MTL_main", shared_data, tmp_path, *flags)
    found = re.search(r"--weights: took (\d+) of (\d+) tensors from (.*)\n", printed)
    assert found[1] == found[2] and found[3] == str(path)
    record = history(tmp_path)
    assert record["weights_from"]["path"] == str(path) and record["weights_from"]["checksum"]
    before = load(finished["MTL_main"] / "main_model_lite.pt")
    after = load(tmp_path / "main_model_lite.pt")
    trained = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in trained)


@pytest.mark.parametrize(("scores", "best"), [((0.5, 0.4, 0.5), 0), ((0.5, 0.4, 0.6), 2)])
def test_starting_weights_compete_as_epoch_0(
    finished, no_pictures, shared_data, tmp_path, monkeypatch, scores, best
):
    """With IoUs by hand; the loss, which decides between equal ones, grows from epoch to epoch."""
    scripted = iter(zip(scores, (1.0, 2.0, 3.0), strict=True))

    def values(tasks, table):  # validation alone asks here
        found = engine.results.values(tasks, table)
        real.append(found)
        return found | dict(zip(("seg_iou", "seg_loss"), next(scripted), strict=True))

    real = []
    monkeypatch.setattr(engine.run, "values", values)
    path = finished["MTL_main"] / "main_model_lite.pt"
    printed = run("MTL_main", shared_data, tmp_path, "--weights", str(path), "--epochs", "2")
    record, earlier = history(tmp_path), history(finished["MTL_main"])
    series = {name: each[earlier["best_epoch"] - 1] for name, each in earlier["val"].items()}
    assert real[0] == pytest.approx(series, nan_ok=True)  # as in their own run
    assert (record["start"]["seg_iou"], record["best_epoch"]) == (0.5, best)
    assert "epoch 0, the starting weights: seg iou 0.500 bbox iou" in printed
    assert f"test: 7 images, weights of epoch {best}\n" in printed
    kept, state = load(path), load(tmp_path / "main_model_lite.pt")
    assert all(torch.equal(value, state[name]) for name, value in kept.items()) == (best == 0)
    assert (record["test"] == pytest.approx(earlier["test"], nan_ok=True)) == (best == 0)


def test_weights_of_another_script_are_taken_where_they_fit(
    finished, no_pictures, shared_data, tmp_path
):
    path = finished["MTL_baseline"] / "baseline_model_lite.pt"
    printed = run("MTL_main", shared_data, tmp_path, "--weights", str(path), "--epochs", "1")
    count, of = map(int, re.search(r"took (\d+) of (\d+) tensors", printed).groups())
    assert count == len(load(path)) < of


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--weights: expected a file of weights, found no such file"),
        ({"x": torch.zeros(2)}, "--weights: expected weights that fit this network, found none in"),
        ([1], "expected weights, found something else"),
    ],
)
def test_weights_that_cannot_be_taken_are_refused(shared_data, tmp_path, content, message):
    path = tmp_path / "x.pt"
    if content is not None:
        torch.save(content, path)
    printed = run("MTL_main", shared_data, tmp_path / "out", "--weights", str(path), code=2)
    assert message in printed and printed.count("\n") == 1
    assert not (tmp_path / "out" / "main_last.pt").exists()
