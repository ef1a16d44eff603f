"""What a training step learns, what is kept and validated, seen from within (recording.py)."""

import contextlib
import math
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recordings import EPOCHS, STEPS, TASKS, record, steps_of, train, write_striped
from running import load, same
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import engine
import engine.run
import engine.training
import parts.precision
from engine.processes import Processes
from engine.settings import constants
from MTL_Utils import UncertaintyWeights
from parts.commandline import flag
from parts.optimiser import Optimiser


def is_known(task, target):
    if task == "bbox":
        return ~target.isnan().any(1)
    return target >= 0 if task == "bin" else (target != 255).flatten(1).any(1)


def mean_loss(batches, task):
    """Over the known samples of some batches."""
    losses = torch.cat([batch["losses"][task] for batch in batches]).double()
    known = torch.cat([is_known(task, batch["targets"][task]) for batch in batches])
    return losses[known].mean().item()


def test_losses_are_means_over_the_known_samples_of_an_epoch(recorded):
    """In the history and, once an epoch, for the loss weighting."""
    epochs, checkpoint = recorded
    history = checkpoint["history"]
    for number, epoch in enumerate(epochs):
        (means,) = epoch["ends"]
        for task in TASKS:
            expected = pytest.approx(mean_loss(epoch["steps"], task), rel=1e-5)
            assert means[task] == expected
            assert history["train"][f"{task}_loss"][number] == expected
            expected = pytest.approx(mean_loss(epoch["seen"][:2], task), rel=1e-5)
            assert history["val"][f"{task}_loss"][number] == expected
    known = [history["train"][f"{task}_known"] for task in TASKS]
    assert known == [[n] * EPOCHS for n in (12, 11, 10)]


def test_however_often_the_losses_are_looked_at(recorded, striped, tmp_path, monkeypatch):
    """Every second step, so that an epoch's last one is alone."""
    monkeypatch.setattr(engine.training, "CHECK_EVERY", 2)
    _, checkpoint = record(striped, tmp_path / "out")
    assert same(checkpoint["history"], recorded[1]["history"])


@contextlib.contextmanager
def watched():
    """Yield a list to which every step adds {"weights", "norm" of the gradient, "rate", "decays"}.

    "weights" are those before the step, "decays" the weight decays of AdamW, by whether the weights
    are matrices or kernels.
    """
    found = []

    class Watched(Optimiser):
        def __init__(self, parameters, *arguments):
            self.everything = [p for part in parameters.values() for p in part]
            super().__init__(parameters, *arguments)

        def step(self):
            gradients = [weight.grad for weight in self.everything if weight.grad is not None]
            square = sum(gradient.double().square().sum().item() for gradient in gradients)
            weights = [weight.detach().clone() for weight in self.everything]
            found.append({"weights": weights, "norm": math.sqrt(square)})
            super().step()

    def watch(optimiser, arguments, keywords):
        (rate,) = {group["lr"] for group in optimiser.param_groups}
        decays = {
            (weight.ndim > 1, group["weight_decay"])
            for group in optimiser.param_groups
            for weight in group["params"]
        }
        found[-1] |= {"rate": rate, "decays": decays}

    with contextlib.ExitStack() as stack:
        stack.callback(register_optimizer_step_pre_hook(watch).remove)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(engine.training, "Optimiser", Watched)
        yield found


def test_a_step_follows_the_gradient_of_the_weighted_means_over_known_samples(striped, tmp_path):
    """By hand, from the weights, images and targets of each step."""
    with watched() as found:
        epochs, _ = record(striped, tmp_path / "out")
    steps, expected, script = steps_of(epochs), [], sys.modules["tests.recording"]
    for step in steps:
        network, gain = script.Network(), torch.tensor(step["weighting"]["gain"])
        network.load_state_dict(step["state"])
        with parts.precision.autocast(step["image"].device):
            outputs = network(step["image"])
        total = 0
        for task, weight in {"seg": 1.0, "bbox": 0.3, "bin": 0.2}.items():
            losses = script.TASKS[task].loss(outputs[task], step["targets"][task])
            known = is_known(task, step["targets"][task])
            total = total + weight * (losses[known].mean() if known.any() else 0)
            mean = step["weighting"]["losses"][task].item()
            assert mean == pytest.approx(losses[known].mean().item(), rel=1e-4) or not known.any()
        (total * gain.requires_grad_()).backward()
        gradients = [*(weight.grad for weight in network.parameters()), gain.grad]
        expected.append(math.sqrt(sum(each.double().square().sum().item() for each in gradients)))
    assert [step["norm"] for step in found] == pytest.approx(expected, rel=1e-3)
    gains = [step["weighting"]["gain"] for step in steps]
    assert len(set(gains)) == len(steps)  # the weighting learns as well


def test_rate_decay_and_clipping_reach_the_optimiser(shared_data, tmp_path):
    rate, decay, norm = ("--learning-rate", "0.03"), ("--weight-decay", "0.07"), "--clip-norm"
    with watched() as found:
        train("MTL_main", shared_data, tmp_path / "clipped", *rate, *decay, norm, "1e-3")
    oracle = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(oracle, 0.03, total_steps=9, pct_start=0.2)
    rates = []
    for _ in range(9):
        rates.append(schedule.get_last_lr()[0])
        oracle.step()
        schedule.step()
    assert [step["rate"] for step in found] == pytest.approx(rates)
    assert all(step["decays"] == {(True, 0.07), (False, 0.0)} for step in found)
    assert [step["norm"] for step in found] == pytest.approx([1e-3] * 9, rel=1e-3)


def test_what_a_weighting_learns_is_clipped_as_well(striped, tmp_path):
    with watched() as found:
        record(striped, tmp_path / "out", "--clip-norm", "1e-3")
    assert [step["norm"] for step in found] == pytest.approx([1e-3] * EPOCHS * STEPS, rel=1e-3)


class Parts(nn.Module):
    """A body at a quarter of the rate, something of nearly the same name, and a frozen head."""

    rate_factors = {"body": 0.25}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.body, self.body_two = nn.Conv2d(16, 16, 1), nn.Linear(1, 1)
        self.head = nn.Linear(1, 1).requires_grad_(False)


def test_the_parts_of_a_network_learn_at_their_rates_and_frozen_ones_not_at_all():
    network, weighting = Parts(), UncertaintyWeights({"a": 1.0, "b": 1.0})
    settings = SimpleNamespace(LEARNING_RATE=0.04, WEIGHT_DECAY=0.1, EMA_DECAY=0.9)
    trainer = engine.training.Trainer(
        network, {}, weighting, None, settings, total_steps=10, processes=Processes({})
    )
    groups, rates = trainer.optimiser.adamw.param_groups, {}
    for muon, first in zip(trainer.optimiser.muons, groups[::2], strict=True):
        rates |= dict.fromkeys(muon.kernels, first["max_lr"])
    for group in groups:
        rates |= dict.fromkeys(group["params"], group["max_lr"])
    expected = dict.fromkeys(network.body.parameters(), 0.01)
    expected |= dict.fromkeys((*network.body_two.parameters(), *weighting.parameters()), 0.04)
    assert rates == pytest.approx(expected)


def test_every_weight_learns(shared_data, tmp_path):
    with watched() as found:
        flags = ["--weight-decay", "0", "--clip-norm", "1e6"]
        train("MTL_main", shared_data, tmp_path / "out", *flags)
    assert not any(map(torch.equal, found[0]["weights"], found[-1]["weights"]))
    assert min(step["norm"] for step in found) > 0.1  # so there was something to clip above


CHANGES = {  # of every setting of MTL_main, which must each change what is learned
    "EPOCHS": "2",
    "BATCH_SIZE": "4",
    "LEARNING_RATE": "0.02",
    "SIDES": "1",
    "WEIGHT_DECAY": "0.1",
    "EMA_DECAY": "0.05",
    "CLIP_NORM": "0.01",
    "SEED": "1",
    "LOSS_WEIGHTS": "bin=0.4",
    "WIDTHS": "8 12",
    "UNITS": "2",
    "DROPOUT": "0.5",
    "DEGREES": "30",
    "SCALE": "0.75 1.4",
    "STRETCH": "1.4",
    "SHIFT": "0.05",
    "COLOUR": "0.2",
    "ERASE": "0.9",
}
OTHERS = {"H5_SAVE_PATH", "FILE_SAVE_PATH", "DEMO_EPOCHS"}
SMALL = ["--epochs", "1", "--batch-size", "6", "--widths", "8", "16", "--sides", "0.5"]


def test_every_setting_changes_what_is_learned(shared_data, tmp_path):
    def learned(name, *flags):
        history = train("MTL_main", shared_data, tmp_path / name, *SMALL, *flags)["history"]
        return history["val"]["seg_loss"] + history["val"]["bin_loss"]

    first = learned("first")
    assert learned("again") == first
    assert constants(engine.load("MTL_main")).keys() == CHANGES.keys() | OTHERS
    for name, value in CHANGES.items():
        assert learned(name, flag(name), *value.split()) != first, name


def test_what_is_unknown_teaches_nothing(striped, tmp_path):
    """Heads without a known target keep their weights, and nothing becomes NaN."""
    data = tmp_path / "data"
    shutil.copytree(striped, data)
    shutil.rmtree(data / "train")
    nothing = {"bboxes": np.full((12, 4), np.nan), "binary": np.full(12, -1)}
    write_striped(data, "train", 12, **nothing)
    epochs, checkpoint = record(data, tmp_path / "out", "--weight-decay", "0")
    before, after = epochs[0]["steps"][0]["state"], checkpoint["network"]
    for name, weight in after.items():
        head = name.startswith(("bbox", "bin"))
        assert torch.equal(weight, before[name]) == head, name
    history = checkpoint["history"]["train"]
    for task in ("bbox", "bin"):
        assert np.isnan(history[f"{task}_loss"]).all() and history[f"{task}_known"] == [0] * EPOCHS
    assert np.isfinite(history["seg_loss"]).all()


# ----------------------------------------------------------------- weight average and best epoch


def test_the_average_of_the_weights_is_what_is_validated(recorded):
    """By hand, from the weights with which every step began."""
    epochs, checkpoint = recorded
    states = [*(step["state"] for step in steps_of(epochs)), checkpoint["network"]]
    names = [name for name, value in states[0].items() if value.is_floating_point()]
    average = {name: states[1][name].double() for name in names}  # after the first step
    averages = [average]
    for count, state in enumerate(states[2:], start=1):
        kept = min(0.9, (1 + count) / (10 + count))
        average = {n: kept * average[n] + (1 - kept) * state[n].double() for n in names}
        averages.append(average)
    for number, epoch in enumerate(epochs):
        expected, found = averages[STEPS * (number + 1) - 1], epoch["seen"][0]["state"]
        for name in names:
            torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-4, atol=1e-6)
        last = states[STEPS * (number + 1)]
        assert not torch.allclose(found["hidden.weight"], last["hidden.weight"])


NAN = math.nan
BEST = {  # IoU and loss of the first task in each epoch; the second epoch is the best
    "IoU": ((0.2, 0.9, 0.5, 0.4), (1.0, 2.0, 3.0, 4.0)),
    "loss where the IoU is the same": ((0.5, 0.5, 0.5, 0.5), (3.0, 1.0, 2.0, 1.0)),
    "loss where the IoU is unknown": ((NAN, NAN, NAN, NAN), (3.0, 1.0, 2.0, 4.0)),
}


@pytest.mark.parametrize("case", BEST)
def test_the_best_epoch_is_what_is_saved_and_tested(striped, tmp_path, monkeypatch, case):
    values, scores = engine.run.values, zip(*BEST[case], strict=True)

    def scripted(tasks, table):  # validation alone asks here
        return values(tasks, table) | dict(zip(("seg_iou", "seg_loss"), next(scores), strict=True))

    monkeypatch.setattr(engine.run, "values", scripted)
    epochs, checkpoint = record(striped, tmp_path / "out")
    assert checkpoint["history"]["best_epoch"] == 2
    best, tested = epochs[1]["seen"][0]["state"], epochs[-1]["seen"][-1]["state"]
    for state in (checkpoint["best"], tested, load(tmp_path / "out" / "recording_model_lite.pt")):
        assert all(torch.equal(state[name], value) for name, value in best.items())
