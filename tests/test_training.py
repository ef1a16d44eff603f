"""Training as README and docstrings promise it, seen from within an experiment (recording.py)."""

import collections
import contextlib
import itertools
import math
import shutil
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from running import Process, load, run
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook

import engine.batches
import engine.evaluation
import engine.results
import engine.run
import engine.training
import MTL_main
import MTL_OEQ
import parts.precision
from dataload import Augment, H5Dataset, write_split
from engine.training import Trainer
from parts.optimiser import Optimiser

EPOCHS, STEPS, BATCH, SIDE = 4, 3, 4, 16
FLAGS = ["--epochs", str(EPOCHS), "--batch-size", str(BATCH)]
COLOUR = (180, 90, 40)  # of every training image, so that augmentation tells what it has drawn
TASKS = ("seg", "bbox", "bin")


@pytest.fixture(scope="module")
def striped(tmp_path_factory):
    """Splits of 12, 5 and 7 samples that are their own mirror images.

    Sample i of train has a box from row i on; that of sample 11 is unknown, as are three labels and
    some pixels.
    """
    folder, random = tmp_path_factory.mktemp("striped"), np.random.default_rng(0)
    for split, count in {"train": 12, "val": 5, "test": 7}.items():
        images = random.integers(0, 256, (count, SIDE, 1, 3), np.uint8).repeat(SIDE, axis=2)
        if split == "train":
            images[:] = COLOUR
        masks = (np.arange(SIDE)[:, None, None] < 4 + np.arange(count)[:, None, None, None]) * 1
        masks = masks.repeat(SIDE, axis=2).astype(np.uint8)
        masks[::3, -2:] = 255
        rows = np.arange(count)
        boxes = np.stack([rows * 0 + 4.0, rows, rows * 0 + 12, rows + 4], axis=1)
        boxes[11:] = np.nan
        labels = np.where(rows % 5 == 2, -1, rows % 2)
        write_split(folder / split, images, masks, boxes, labels, ("a", "b"), {})
    return folder


@contextlib.contextmanager
def without_files():
    """A block in which runs end without models and pictures, which take longer than training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.results, "tested", lambda *arguments: {})
        patch.setattr(engine.results, "write", lambda *arguments: None)
        yield


def train(script, data, out, *flags):
    """What a run leaves in its checkpoint."""
    with without_files():
        run(script, data, out, *flags)
    return load(out / f"{script.split('/')[-1].removeprefix('MTL_')}_last.pt")


def told(log):
    """[{"steps": [...], "ends": [means], "seen": [...]}] of a log, an entry for every epoch.

    A step and a batch that was evaluated ("seen") are what the network was told, with "targets"
    and "losses" of each task; a step also has what its weighting was told. What follows the last
    epoch is in its "seen" as well.
    """
    count = collections.Counter(id_of(e) for e in log if e["what"] == "forward" and e["training"])
    trained = count.most_common(1)[0][0]
    is_step = [e["what"] == "forward" and e["training"] and id_of(e) == trained for e in log]
    epochs, evaluated = [{"steps": [], "ends": [], "seen": []}], None
    for entry in log[is_step.index(True) :]:
        epoch = epochs[-1]
        if entry["what"] == "forward":
            batch = entry | {"targets": {}, "losses": {}}
            if not entry["training"]:
                evaluated = evaluated or id_of(entry)
            if entry["training"] and id_of(entry) == trained:
                if epoch["ends"]:
                    epochs.append(epoch := {"steps": [], "ends": [], "seen": []})
                epoch["steps"].append(batch)
            elif not entry["training"] and id_of(entry) == evaluated:
                epoch["seen"].append(batch)
        elif entry["what"] == "loss":
            batch["targets"][entry["task"]] = entry["target"]
            batch["losses"][entry["task"]] = entry["losses"]
        elif entry["what"] == "weighting":
            batch["weighting"] = entry
        else:
            epoch["ends"].append(entry["means"])
    return epochs


def id_of(entry):
    network = entry["network"]
    return network if isinstance(network, int) else id(network)


def record(data, out, *flags):
    """(epochs as `told`, checkpoint) of a run of recording.py here."""
    checkpoint = train("tests/recording", data, out, *FLAGS, *flags)
    return told(sys.modules["tests.recording"].log), checkpoint


@pytest.fixture(scope="module")
def recorded(striped, tmp_path_factory):
    return record(striped, tmp_path_factory.mktemp("recorded") / "out")


def samples(step):
    """The numbers of a batch's samples, by their boxes."""
    return torch.nan_to_num(step["targets"]["bbox"][:, 1] * SIDE, 11).round().int().tolist()


def order(epochs):
    return [[samples(step) for step in epoch["steps"]] for epoch in epochs]


# --------------------------------------------------------------------------- what a step is fed


def test_every_sample_is_seen_once_an_epoch(recorded):
    epochs, _ = recorded
    assert len(epochs) == EPOCHS
    for batches in order(epochs):
        assert [len(batch) for batch in batches] == [BATCH] * STEPS
        assert sorted(itertools.chain(*batches)) == list(range(12))


def test_order_and_batches_differ_between_epochs_and_seeds(recorded, striped, tmp_path):
    epochs = order(recorded[0])
    others = order(record(striped, tmp_path / "out", "--seed", "1")[0])
    mixed = {frozenset(map(frozenset, batches)) for batches in epochs + others}
    assert len(mixed) == 2 * EPOCHS


def test_a_last_incomplete_batch_is_left_out(striped, tmp_path):
    epochs, _ = record(striped, tmp_path / "out", "--batch-size", "5", "--epochs", "6")
    assert all([len(batch) for batch in batches] == [5, 5] for batches in order(epochs))
    assert set(itertools.chain(*itertools.chain(*order(epochs)))) == set(range(12))


def test_random_numbers_differ_between_samples_steps_epochs_and_seeds(recorded, striped, tmp_path):
    """Those of the augmentation (images that were alike), of dropout, and the first weights."""
    others, _ = record(striped, tmp_path / "out", "--seed", "1")
    steps = [step for epoch in recorded[0] + others for step in epoch["steps"]]
    colours = torch.cat([step["image"][:, :, 0, 0] for step in steps])
    assert len(colours.unique(dim=0)) == 2 * EPOCHS * STEPS * BATCH
    masks = torch.cat([step["dropped"] for step in steps])
    assert len(masks.unique(dim=0)) == 2 * EPOCHS * STEPS * BATCH
    first, second = (epochs[0]["steps"][0]["state"] for epochs in (recorded[0], others))
    assert not torch.equal(first["hidden.weight"], second["hidden.weight"])


def test_the_same_seed_tells_the_same(recorded, striped, tmp_path):
    epochs, _ = record(striped, tmp_path / "out")
    for one, other in zip(recorded[0], epochs, strict=True):
        for mine, theirs in zip(one["steps"], other["steps"], strict=True):
            assert torch.equal(mine["image"], theirs["image"])
            assert torch.equal(mine["dropped"], theirs["dropped"])
            assert all(map(torch.equal, mine["state"].values(), theirs["state"].values()))


def test_the_side_grows_with_the_epochs_and_ends_whole(striped, tmp_path):
    flags = ["--sides", "0.25", "0.5", "1", "--epochs", "7"]
    epochs, _ = record(striped, tmp_path / "out", *flags)
    sides = [{step["image"].shape[2:] for step in epoch["steps"]} for epoch in epochs]
    assert sides == [{(4, 4)}] * 3 + [{(8, 8)}] * 2 + [{(16, 16)}] * 2
    masks = {step["targets"]["seg"].shape[2:] for step in epochs[0]["steps"]}
    assert masks == {(4, 4)}
    seen = {batch["image"].shape[2:] for epoch in epochs for batch in epoch["seen"]}
    assert seen == {(16, 16)}


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_last_epoch_has_the_last_side_however_few_there_are(epochs):
    sides = (0.25, 0.5, 1.0)
    assert engine.batches.training_side(sides, epochs, epochs, (64, 96), 8) == (64, 96)
    assert engine.batches.training_side(sides, 1, 3, (64, 96), 8) == (16, 24)


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
    trained = H5Dataset("train", shared_data)[range(12)]
    steps = [step for epoch in epochs for step in epoch["steps"]]
    for what, raw in (("image", trained[0]), ("seg", trained[1]["seg"])):
        known = {values.float().numpy().tobytes() for values in raw}
        given = [step[what] if what == "image" else step["targets"][what] for step in steps]
        assert not known & {values.float().numpy().tobytes() for values in torch.cat(given)}


def test_batches_from_disk_are_those_from_memory(shared_data):
    batches = [[3, 1], [0, 11], [7, 7]]
    found = []
    for limit in (0, 2**30):
        dataset = H5Dataset("train", shared_data, memory_limit=limit)
        assert dataset.in_memory == bool(limit)
        found.append(list(engine.batches.loader(dataset, batches, torch.device("cpu"))))
    for (images, targets), (others, other_targets) in zip(*found, strict=True):
        assert torch.equal(images, others)
        assert all(torch.equal(targets[task], other_targets[task]) for task in TASKS)


# ------------------------------------------------------------------------------ modes and dtypes


def test_batch_norm_and_dropout_train_in_training_alone(recorded):
    epochs, _ = recorded
    steps = [step for epoch in epochs for step in epoch["steps"]]
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


@pytest.mark.parametrize("script", [MTL_main, MTL_OEQ])
def test_dropout_stands_before_the_class(script):
    torch.manual_seed(0)
    network = script.Network(widths=(8, 8), units=1, dropout=0.5)
    images = torch.rand(4, 3, 16, 16) * 255
    first, second = network(images), network(images)
    assert not torch.equal(first["bin"], second["bin"])
    assert torch.equal(first["seg"], second["seg"]) and torch.equal(first["bbox"], second["bbox"])
    network.eval()
    assert torch.equal(network(images)["bin"], network(images)["bin"])


@pytest.mark.parametrize("native", [False, True])
def test_bf16_where_it_is_native_in_training_and_evaluation(striped, tmp_path, monkeypatch, native):
    monkeypatch.setattr(parts.precision, "native_bf16", lambda device: native)
    epochs, _ = record(striped, tmp_path / "out", "--epochs", "1")
    expected = torch.bfloat16 if native else torch.float32
    (epoch,) = epochs
    assert len(epoch["steps"]) == 3 and len(epoch["seen"]) == 4
    for batch in epoch["steps"] + epoch["seen"]:
        assert batch["dtype"] == expected
        assert all(losses.dtype == torch.float32 for losses in batch["losses"].values())
    network, images = epoch["steps"][0]["network"].eval(), epoch["seen"][0]["image"]
    log = sys.modules["tests.recording"].log
    (*_, outputs) = engine.evaluation.predict(network, images)
    assert log[-1]["dtype"] == expected
    assert all(output.dtype == torch.float32 for output in outputs.values())


@pytest.mark.parametrize("native", [False, True])
def test_a_gpu_is_asked_whether_bf16_is_native(monkeypatch, native):
    def supported(including_emulation=True):
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert parts.precision.native_bf16(torch.device("cuda")) == native


# --------------------------------------------------------------------------- what a step learns


def is_known(task, target):
    if task == "bbox":
        return ~target.isnan().any(1)
    return target >= 0 if task == "bin" else (target != 255).flatten(1).any(1)


def mean_loss(batches, task):
    """Over the known samples of some batches."""
    losses = torch.cat([batch["losses"][task] for batch in batches]).double()
    known = torch.cat([is_known(task, batch["targets"][task]) for batch in batches])
    return losses[known].mean().item()


def test_each_epoch_is_told_once_with_the_means_over_its_known_samples(recorded):
    epochs, checkpoint = recorded
    history = checkpoint["history"]["train"]
    for number, epoch in enumerate(epochs):
        (means,) = epoch["ends"]
        for task in TASKS:
            expected = pytest.approx(mean_loss(epoch["steps"], task), rel=1e-5)
            assert means[task] == expected and history[f"{task}_loss"][number] == expected
    assert [history[f"{task}_known"] for task in TASKS] == [[n] * EPOCHS for n in (12, 11, 10)]


def test_validation_losses_are_means_over_known_samples(recorded):
    epochs, checkpoint = recorded
    for number, epoch in enumerate(epochs):
        for task in TASKS:
            expected = pytest.approx(mean_loss(epoch["seen"][:2], task), rel=1e-5)
            assert checkpoint["history"]["val"][f"{task}_loss"][number] == expected


@contextlib.contextmanager
def watched():
    """Yield a list to which every step adds {"weights", "norm" of the gradient, "rate", "decays"}.

    "weights" are those before the step, "decays" the weight decays of AdamW, by whether the weights
    are matrices or kernels.
    """
    found = []

    class Watched(Optimiser):
        def __init__(self, parameters, *arguments):
            self.everything = list(parameters)
            super().__init__(self.everything, *arguments)

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

    hook = register_optimizer_step_pre_hook(watch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.training, "Optimiser", Watched)
        yield found
    hook.remove()


def test_a_step_follows_the_gradient_of_the_weighted_means_over_known_samples(striped, tmp_path):
    """By hand, from the weights, images and targets of each step."""
    with watched() as found:
        epochs, _ = record(striped, tmp_path / "out")
    steps, expected = [step for epoch in epochs for step in epoch["steps"]], []
    script = sys.modules["tests.recording"]
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


def test_a_sample_is_of_use_if_any_of_the_scripts_tasks_knows_it(striped):
    """Of 12 samples, the box of sample 11 and the labels of samples 2 and 7 are unknown."""
    train, everything = H5Dataset("train", striped), set(range(12))

    def drawn(*tasks):
        known, useful = engine.batches.train_known(dict.fromkeys(tasks), train)
        return [set(which.nonzero()[:, 0].tolist()) for which in (known, useful)]

    assert drawn("bbox") == [everything - {11}] * 2
    assert drawn("bin", "bbox") == [everything - {2, 7}, everything]
    assert drawn("a task of the user's own") == [everything] * 2


def test_the_gradient_is_clipped(shared_data, tmp_path):
    lengths = {}
    for largest in (1e-3, 1e6):
        with watched() as found:
            train("MTL_main", shared_data, tmp_path / str(largest), "--clip-norm", str(largest))
        lengths[largest] = [step["norm"] for step in found]
    assert len(lengths[1e-3]) == 9
    assert lengths[1e-3] == pytest.approx([1e-3] * 9, rel=1e-3)
    assert min(lengths[1e6]) > 0.1  # so there was something to clip


def test_every_weight_learns(shared_data, tmp_path):
    with watched() as found:
        train("MTL_main", shared_data, tmp_path / "out", "--weight-decay", "0")
    assert not any(map(torch.equal, found[0]["weights"], found[-1]["weights"]))


def test_learning_rate_and_weight_decay_reach_the_optimiser(shared_data, tmp_path):
    with watched() as found:
        flags = ["--learning-rate", "0.03", "--weight-decay", "0.07", "--epochs", "4"]
        train("MTL_main", shared_data, tmp_path / "out", *flags)
    oracle = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(oracle, 0.03, total_steps=12, pct_start=0.2)
    rates = []
    for _ in range(12):
        rates.append(schedule.get_last_lr()[0])
        oracle.step()
        schedule.step()
    assert [step["rate"] for step in found] == pytest.approx(rates)
    assert all(step["decays"] == {(True, 0.07), (False, 0.0)} for step in found)


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
    settings = {name for name in vars(MTL_main) if name.isupper()} - {"TASKS", "BBOX", "BIN", "SEG"}
    assert settings == CHANGES.keys() | OTHERS
    for name, value in CHANGES.items():
        flag = "--" + name.lower().replace("_", "-")
        assert learned(name, flag, *value.split()) != first, name


def test_what_is_unknown_teaches_nothing(striped, tmp_path):
    """Heads without a known target keep their weights, and nothing becomes NaN."""
    data = tmp_path / "data"
    shutil.copytree(striped, data)
    shutil.rmtree(data / "train")
    images, targets = H5Dataset("train", striped)[range(12)]
    masks, boxes = targets["seg"].permute(0, 2, 3, 1).numpy(), np.full((12, 4), np.nan)
    images = images.permute(0, 2, 3, 1).numpy()
    write_split(data / "train", images, masks, boxes, np.full(12, -1), ("a", "b"), {})
    epochs, checkpoint = record(data, tmp_path / "out", "--weight-decay", "0")
    before, after = epochs[0]["steps"][0]["state"], checkpoint["network"]
    for name, weight in after.items():
        head = name.startswith(("bbox", "bin"))
        assert torch.equal(weight, before[name]) == head, name
    for task in ("bbox", "bin"):
        assert np.isnan(checkpoint["history"]["train"][f"{task}_loss"]).all()
        assert checkpoint["history"]["train"][f"{task}_known"] == [0] * EPOCHS
    assert np.isfinite(checkpoint["history"]["train"]["seg_loss"]).all()


# -------------------------------------------------------------------------------- weight average


def test_the_average_of_the_weights_is_what_is_validated(recorded):
    """By hand, from the weights with which every step began."""
    epochs, checkpoint = recorded
    states = [step["state"] for epoch in epochs for step in epoch["steps"]]
    states.append(checkpoint["network"])
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
        assert not torch.allclose(
            found["hidden.weight"], states[STEPS * (number + 1)]["hidden.weight"]
        )


NAN = math.nan
BEST = {  # IoU and loss of the first task in each epoch; the second epoch is the best
    "IoU": ((0.2, 0.9, 0.5, 0.4), (1.0, 2.0, 3.0, 4.0)),
    "loss where the IoU is the same": ((0.5, 0.5, 0.5, 0.5), (3.0, 1.0, 2.0, 1.0)),
    "loss where the IoU is unknown": ((NAN, NAN, NAN, NAN), (3.0, 1.0, 2.0, 4.0)),
}


@pytest.mark.parametrize("case", BEST)
def test_the_best_epoch_is_what_is_saved_and_tested(striped, tmp_path, monkeypatch, case):
    values, scores = engine.run.values, zip(*BEST[case], strict=True)

    def scripted(tasks, table):
        return values(tasks, table) | dict(zip(("seg_iou", "seg_loss"), next(scores), strict=True))

    monkeypatch.setattr(engine.run, "values", scripted)
    epochs, checkpoint = record(striped, tmp_path / "out")
    assert checkpoint["history"]["best_epoch"] == 2
    best, tested = epochs[1]["seen"][0]["state"], epochs[-1]["seen"][-1]["state"]
    for state in (checkpoint["best"], tested):
        assert all(torch.equal(state[name], value) for name, value in best.items())


# ------------------------------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def pair(striped, tmp_path_factory):
    """What two processes of a run were told, and its checkpoint.

    The network is blind, since the images of both are augmented by different random numbers, and
    has no batch norm, which is each process's own.
    """
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    flags = [*FLAGS, "--look", "0", "--no-norm"]
    processes = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        keywords = {"environment": address | place | {"RECORDING": str(folder)}}
        out = folder / "out"
        processes.append(Process("tests/recording", striped, out, *flags, **keywords))
    ends = [process.wait() for process in processes]
    assert [code for code, _ in ends] == [0, 0], ends
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
    steps = [step for epochs in pair[0] for epoch in epochs for step in epoch["steps"]]
    for draws in ([s["image"][:, :, 0, 0] for s in steps], [s["dropped"] for s in steps]):
        assert len(torch.cat(draws).unique(dim=0)) == EPOCHS * STEPS * BATCH


def test_a_weighting_draws_the_same_in_all_processes_and_anew_for_each_step(pair):
    first, second = (
        [step["weighting"]["drawn"] for epoch in epochs for step in epoch["steps"]]
        for epochs in pair[0]
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
    assert epochs[0]["ends"][0] == pytest.approx(told_to[1][0]["ends"][0], rel=1e-4)


# --------------------------------------------------------------------------------------- compile


LEAST = """
from torch import nn
from engine.tasks import BIN
from MTL_Utils import FixedWeights

H5_SAVE_PATH, FILE_SAVE_PATH = "data", "runs/least"
EPOCHS, BATCH_SIZE, LEARNING_RATE, SIDES, WIDTHS, UNITS = 2, 4, 1e-2, (1.0,), (), 1
WEIGHT_DECAY, EMA_DECAY, CLIP_NORM, SEED = 0.2, 0.9, 5.0, 0
DEGREES, SCALE, STRETCH, SHIFT, COLOUR, ERASE = 0.0, (1.0, 1.0), 1.0, 0.0, 0.4, 0.0
TASKS = {"bin": BIN}

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stride, self.logit = 4, nn.Linear(3, 1)

    def forward(self, image):
        return {"bin": self.logit(image.float().mean((2, 3)) / 64)[:, 0]}

def weighting():
    return FixedWeights({"bin": 1.0})
"""


def like(history, other):
    """Whether the losses and metrics of two runs agree but for rounding."""
    return all(
        other[part][name] == pytest.approx(values, rel=1e-3, abs=1e-3, nan_ok=True)
        for part in ("train", "val")
        for name, values in history[part].items()
    )


@pytest.fixture
def graphs():
    """How often and why torch compiles during a test."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_run_learns_the_same(striped, tmp_path, graphs):
    script = tmp_path / "MTL_least"
    script.with_suffix(".py").write_text(LEAST)
    plain = train(str(script), striped, tmp_path / "plain")
    assert not graphs["stats"]
    compiled = train(str(script), striped, tmp_path / "compiled", "--compile")
    assert graphs["inductor"] and graphs["stats"]["unique_graphs"] == 1
    assert like(plain["history"], compiled["history"])


@pytest.mark.parametrize(("script", "sides"), [("MTL_main", ("0.5", "1")), ("MTL_OEQ", ("1",))])
def test_a_step_is_one_graph_for_each_side(
    script, sides, shared_data, tmp_path, graphs, monkeypatch
):
    """As torch captures it; that a captured graph is also compiled is tested above."""
    flags = [*SMALL, "--sides", *sides, "--epochs", str(len(sides))]
    plain = train(script, shared_data, tmp_path / "plain", *flags)
    compile_with = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda step, **how: compile_with(step, backend="eager", **how)
    )
    captured = train(script, shared_data, tmp_path / "captured", *flags, "--compile")
    assert not graphs["graph_break"]
    assert graphs["stats"]["unique_graphs"] == len(sides)
    assert like(plain["history"], captured["history"])


# ------------------------------------------------------------------------------------ fake CUDA


@pytest.fixture
def fake_gpu(monkeypatch):
    """Tensors that are only said to be on a GPU: reading a value of one raises."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    monkeypatch.setattr(torch.nn.Module, "to", move)  # torch's own cannot move fake ones
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    with FakeTensorMode():
        yield torch.device("cuda:0")


def move(module, device, **options):
    """Module.to for fake weights."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            part._parameters[name] = (
                None if weight is None else torch.nn.Parameter(weight.to(device))
            )
        for name, buffer in part._buffers.items():
            part._buffers[name] = buffer.to(device)
    return module


def fake_batch(device):
    """Images uint8 (4, 3, 64, 64) and targets."""
    targets = {
        "seg": torch.zeros(4, 1, 64, 64, dtype=torch.uint8, device=device),
        "bbox": torch.zeros(4, 4, device=device),
        "bin": torch.zeros(4, device=device),
    }
    return torch.zeros(4, 3, 64, 64, dtype=torch.uint8, device=device), targets


def fake_processes(device):
    return SimpleNamespace(device=device, rank=0, size=1, sum=lambda tensor: tensor)


def fake_trainer(script, device):
    augment = Augment(15.0, (0.75, 1.6), 1.2, 0.15, 0.4, 0.2)
    settings = SimpleNamespace(LEARNING_RATE=1.0, WEIGHT_DECAY=0.1, EMA_DECAY=0.9, CLIP_NORM=1.0)
    network, processes = script.Network(widths=(16, 16, 32)).to(device), fake_processes(device)
    return Trainer(network, script.TASKS, script.weighting(), augment, settings, 10, processes)


@pytest.mark.parametrize("script", [MTL_main, MTL_OEQ])
def test_a_training_step_stays_on_the_gpu_and_never_waits_for_it(script, fake_gpu, monkeypatch):
    trainer = fake_trainer(script, fake_gpu)

    def backward(total):  # the one part that a real GPU alone can do
        assert total.shape == () and total.device == fake_gpu and total.requires_grad
        for weight in trainer.step.parameters():
            weight.grad = torch.empty_like(weight)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    trainer.step.train()
    for side in (None, (32, 32)):
        row = trainer.learn(*fake_batch(fake_gpu), torch.Generator(), side)
        assert row.device == fake_gpu and row.shape == (7,)


@pytest.mark.parametrize("script", [MTL_main, MTL_OEQ])
def test_an_evaluation_waits_for_the_gpu_once_at_its_end(script, fake_gpu, monkeypatch):
    batches = [fake_batch(fake_gpu)] * 3
    monkeypatch.setattr(engine.evaluation, "loader", lambda *arguments: batches)
    processes, sums = fake_processes(fake_gpu), []
    processes.sum = lambda tensor: sums.append(tensor) or tensor
    network = script.Network(widths=(16, 16, 32)).to(fake_gpu)
    with pytest.raises(DataDependentOutputException):
        engine.evaluation.evaluate(network, range(12), script.TASKS, 4, processes)
    assert len(sums) == 1  # it asks whether every sample was seen, after all batches
    yes = SimpleNamespace(eq=lambda one: SimpleNamespace(all=lambda: True))
    answers = iter([yes])
    processes.sum = lambda tensor: next(answers, tensor)
    table = engine.evaluation.evaluate(network, range(12), script.TASKS, 4, processes)
    pairs = [pair for metrics in table.values() for pair in metrics.values()]
    assert all(pair.device == fake_gpu and pair.shape == (12, 2) for pair in pairs)


WAITS = {
    "item": lambda values: values.sum().item(),
    "bool": lambda values: bool(values.any()),
    "nonzero": lambda values: values.nonzero(),
    "mask": lambda values: values[values > 0],
}


@pytest.mark.parametrize("kind", WAITS)
def test_the_fake_gpu_notices_a_wait(fake_gpu, kind):
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        WAITS[kind](torch.zeros(3, device=fake_gpu))


def test_the_fake_gpu_notices_another_device(fake_gpu):
    with pytest.raises(RuntimeError, match="found at least two devices"):
        torch.zeros(3, device=fake_gpu) + torch.zeros(3)
