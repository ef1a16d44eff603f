"""What a training step is fed, alone or in several processes, seen from within (recording.py)."""

import itertools
import sys

import pytest
import torch
from recordings import BATCH, EPOCHS, FLAGS, STEPS, TASKS, record, samples, steps_of, told
from running import Pair, load
from torch import nn

import engine
import engine.evaluation
import parts.precision
from dataload import H5Dataset
from engine.batches import train_known
from engine.processes import Processes
from MTL_Utils import BIN
from parts.sampling import epoch_batches


@pytest.fixture(scope="module")
def reseeded(striped, tmp_path_factory):
    """The epochs of the same run from another seed."""
    return record(striped, tmp_path_factory.mktemp("reseeded") / "out", "--seed", "1")[0]


def order(epochs):
    return [[samples(step) for step in epoch["steps"]] for epoch in epochs]


# --------------------------------------------------------------------------- what a step is fed


def test_every_sample_is_seen_once_an_epoch(recorded):
    epochs, _ = recorded
    assert len(epochs) == EPOCHS
    for batches in order(epochs):
        assert [len(batch) for batch in batches] == [BATCH] * STEPS
        assert sorted(itertools.chain(*batches)) == list(range(12))


def test_order_and_batches_differ_between_epochs_and_seeds(recorded, reseeded):
    both = order(recorded[0]) + order(reseeded)
    assert len({frozenset(map(frozenset, batches)) for batches in both}) == 2 * EPOCHS


def test_random_numbers_differ_between_samples_steps_epochs_and_seeds(recorded, reseeded):
    """Those of the augmentation (images that were alike), of dropout, and the first weights."""
    steps = steps_of(recorded[0] + reseeded)
    for draws in ([s["image"][:, :, 0, 0] for s in steps], [s["dropped"] for s in steps]):
        assert len(torch.cat(draws).unique(dim=0)) == 2 * EPOCHS * STEPS * BATCH
    first, second = (epochs[0]["steps"][0]["state"] for epochs in (recorded[0], reseeded))
    assert not torch.equal(first["hidden.weight"], second["hidden.weight"])


def test_the_same_seed_tells_the_same(recorded, striped, tmp_path):
    again, _ = record(striped, tmp_path / "out")
    for mine, theirs in zip(steps_of(recorded[0]), steps_of(again), strict=True):
        assert torch.equal(mine["image"], theirs["image"])
        assert torch.equal(mine["dropped"], theirs["dropped"])
        assert all(map(torch.equal, mine["state"].values(), theirs["state"].values()))


def test_the_side_grows_and_a_last_incomplete_batch_is_left_out(striped, tmp_path):
    flags = ["--sides", "0.25", "0.5", "1", "--epochs", "7", "--batch-size", "5"]
    epochs, _ = record(striped, tmp_path / "out", *flags)
    assert all([len(batch) for batch in batches] == [5, 5] for batches in order(epochs))
    assert set(itertools.chain(*itertools.chain(*order(epochs)))) == set(range(12))
    sides = [{step["image"].shape[2:] for step in epoch["steps"]} for epoch in epochs]
    assert sides == [{(4, 4)}] * 3 + [{(8, 8)}] * 2 + [{(16, 16)}] * 2
    assert {step["targets"]["seg"].shape[2:] for step in epochs[0]["steps"]} == {(4, 4)}
    seen = {batch["image"].shape[2:] for epoch in epochs for batch in epoch["seen"]}
    assert seen == {(16, 16)}


def test_training_images_are_augmented_and_others_never(shared_data, tmp_path):
    geometry = ["--degrees", "20", "--scale", "0.8", "1.2", "--shift", "0.1"]
    epochs, _ = record(shared_data, tmp_path / "out", *geometry, "--sides", "1")
    raw = {split: H5Dataset(split, shared_data)[range(n)] for split, n in (("val", 5), ("test", 7))}
    for epoch in epochs:
        seen = epoch["seen"][:2]
        assert torch.equal(torch.cat([batch["image"] for batch in seen]), raw["val"][0])
        for task in TASKS:
            targets = torch.cat([batch["targets"][task] for batch in seen])
            assert torch.equal(targets, raw["val"][1][task])
    tested = torch.cat([batch["image"] for batch in epochs[-1]["seen"][2:]])
    assert torch.equal(tested, raw["test"][0])  # once
    images, targets = H5Dataset("train", shared_data)[range(12)]
    for what, originals in (("image", images), ("seg", targets["seg"])):
        known = {values.float().numpy().tobytes() for values in originals}
        given = [s[what] if what == "image" else s["targets"][what] for s in steps_of(epochs)]
        assert not known & {values.float().numpy().tobytes() for values in torch.cat(given)}


def test_a_sample_is_drawn_if_a_task_of_the_script_knows_it(striped):
    """Of 12 samples, the box of sample 11 and the labels of samples 2 and 7 are unknown."""
    train, everything = H5Dataset("train", striped), set(range(12))

    def drawn(*tasks):
        batches = epoch_batches(*train_known(dict.fromkeys(tasks), train), 1, 0, 1)
        return set(itertools.chain(*batches))

    assert drawn("bbox") == everything - {11}
    assert drawn("bin") == everything - {2, 7}
    assert drawn("bin", "bbox") == everything


# ------------------------------------------------------------------------------ modes and dtypes


def test_batch_norm_and_dropout_train_in_training_alone(recorded):
    epochs, _ = recorded
    steps = steps_of(epochs)
    means = [step["state"]["norm.running_mean"] for step in steps]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(means))
    assert all(step["grad"] for step in steps)
    assert all(0.3 < (step["dropped"] == 0).float().mean() < 0.7 for step in steps)
    for epoch in epochs:
        first, *others = epoch["seen"][:2]
        assert all(not batch["training"] and not batch["grad"] for batch in epoch["seen"])
        assert all(batch["dropped"].eq(1).all() for batch in epoch["seen"])
        state = first["state"]
        for batch in others:  # evaluating changes nothing
            assert all(torch.equal(batch["state"][name], value) for name, value in state.items())


class Mode(nn.Module):
    """Logit 1 for every image in training, else 0, which counts as class 0."""

    def forward(self, images):
        return {"bin": torch.full((len(images),), float(self.training))}


def test_a_network_that_trains_is_evaluated_in_eval_mode(shared_data):
    dataset = H5Dataset("val", shared_data)  # of classes 0, 1, 0, 1, 0
    table = engine.evaluation.evaluate(Mode().train(), dataset, {"bin": BIN}, 2, Processes({}))
    assert table["bin"]["accuracy"].tolist() == [[1, 1], [0, 1]] * 2 + [[1, 1]]


@pytest.mark.parametrize("script", ["MTL_main", "MTL_OEQ"])
def test_dropout_stands_before_the_class(script):
    torch.manual_seed(0)
    network = engine.load(script, WIDTHS=(8, 8), UNITS=1, DROPOUT=0.5).Network()
    images = torch.rand(4, 3, 16, 16) * 255
    first, second = network(images), network(images)
    assert not torch.equal(first["bin"], second["bin"])
    assert torch.equal(first["seg"], second["seg"]) and torch.equal(first["bbox"], second["bbox"])
    network.eval()
    assert torch.equal(network(images)["bin"], network(images)["bin"])


@pytest.mark.parametrize("native", [False, True])
def test_bf16_where_it_is_native_in_training_and_evaluation(striped, tmp_path, monkeypatch, native):
    monkeypatch.setattr(parts.precision, "native_bf16", lambda device: native)
    (epoch,), _ = record(striped, tmp_path / "out", "--epochs", "1")
    expected = torch.bfloat16 if native else torch.float32
    assert len(epoch["steps"]) == 3 and len(epoch["seen"]) == 4
    for batch in epoch["steps"] + epoch["seen"]:
        assert batch["dtype"] == expected
        assert all(losses.dtype == torch.float32 for losses in batch["losses"].values())
    network, images = epoch["steps"][0]["network"].eval(), epoch["seen"][0]["image"]
    (*_, outputs) = engine.evaluation.predict(network, images)
    assert sys.modules["tests.recording"].log[-1]["dtype"] == expected
    assert all(output.dtype == torch.float32 for output in outputs.values())


@pytest.mark.parametrize("native", [False, True])
def test_a_gpu_is_asked_whether_bf16_is_native(monkeypatch, native):
    def supported(including_emulation=True):
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert parts.precision.native_bf16(torch.device("cuda")) == native


# ------------------------------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def pair(striped, tmp_path_factory):
    """What two processes of a run were told, and its checkpoint.

    The network is blind, since the images of both are augmented by different random numbers, and
    has no batch norm, which is each process's own.
    """
    folder = tmp_path_factory.mktemp("pair")
    flags = [*FLAGS, "--look", "0", "--no-norm"]
    environment = {"RECORDING": str(folder)}
    both = Pair("tests/recording", striped, folder / "out", *flags, environment=environment)
    codes, printed = both.wait()
    assert codes == [0, 0], printed
    told_to = [told(load(folder / f"{rank}.pt")) for rank in range(2)]
    return told_to, load(folder / "out" / "recording_last.pt")


def test_two_processes_share_every_batch(pair, recorded):
    """Together they see what one process sees alone."""
    first, second = map(order, pair[0])
    for mine, theirs, alone in zip(first, second, order(recorded[0]), strict=True):
        for half, other, batch in zip(mine, theirs, alone, strict=True):
            assert len(half) == len(other) == BATCH // 2
            assert sorted(half + other) == sorted(batch)


def test_random_numbers_differ_between_processes(pair):
    steps = [step for epochs in pair[0] for step in steps_of(epochs)]
    for draws in ([s["image"][:, :, 0, 0] for s in steps], [s["dropped"] for s in steps]):
        assert len(torch.cat(draws).unique(dim=0)) == EPOCHS * STEPS * BATCH


def test_a_weighting_draws_the_same_in_all_processes_and_anew_for_each_step(pair):
    first, second = (
        [step["weighting"]["drawn"] for step in steps_of(epochs)] for epochs in pair[0]
    )
    assert first == second and len({*first}) == EPOCHS * STEPS


def test_two_processes_take_the_same_steps_as_one(pair, striped, tmp_path):
    """Though what is unknown is not spread evenly over them."""
    told_to, both = pair
    epochs, alone = record(striped, tmp_path / "out", "--look", "0", "--no-norm")
    for name in ("network", "average", "weighting"):
        for key, weight in alone[name].items():
            torch.testing.assert_close(both[name][key], weight, rtol=1e-3, atol=1e-4)  # in bf16
    for part in ("train", "val"):
        for name, values in alone["history"][part].items():
            assert both["history"][part][name] == pytest.approx(values, rel=1e-3, nan_ok=True)
    for one, other in zip(*told_to, strict=True):  # both weightings hear of the same epochs
        assert one["ends"] == other["ends"] and len(one["ends"]) == 1
    for mine, step in zip(steps_of(told_to[1]), steps_of(epochs), strict=True):  # and losses
        for task, loss in step["weighting"]["losses"].items():
            assert mine["weighting"]["losses"][task].item() == pytest.approx(loss.item(), rel=1e-3)
    assert epochs[0]["ends"][0] == pytest.approx(told_to[1][0]["ends"][0], rel=1e-4)
