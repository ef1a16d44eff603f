"""Training as README and docstrings promise it, seen from within an experiment (recording.py)."""

import collections
import contextlib
import itertools
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from running import Pair, load, name_of, run
from torch.optim.optimizer import register_optimizer_step_pre_hook

import engine
import engine.evaluation
import engine.results
import engine.run
import engine.training
import parts.precision
from dataload import H5Dataset, write_split
from engine.batches import loader, train_known
from engine.settings import constants
from parts.commandline import flag
from parts.optimiser import Optimiser
from parts.sampling import epoch_batches

EPOCHS, STEPS, BATCH, SIDE = 4, 3, 4, 16
FLAGS = ["--epochs", str(EPOCHS), "--batch-size", str(BATCH)]
COLOUR = (180, 90, 40)  # of every training image, so that augmentation tells what it has drawn
TASKS = ("seg", "bbox", "bin")


def write_striped(folder, split, count, **changes):
    """A split of samples that are their own mirror images; returns what was written.

    Sample i has a box from row i on; that of sample 11 is unknown, as are three labels and some
    pixels.
    """
    rows, random = np.arange(count), np.random.default_rng(count)
    images = random.integers(0, 256, (count, SIDE, 1, 3), np.uint8).repeat(SIDE, axis=2)
    if split == "train":
        images[:] = COLOUR
    masks = (np.arange(SIDE)[:, None, None] < 4 + rows[:, None, None, None]) * 1
    masks = masks.repeat(SIDE, axis=2).astype(np.uint8)
    masks[::3, -2:] = 255
    boxes = np.stack([rows * 0 + 4.0, rows, rows * 0 + 12, rows + 4], axis=1)
    boxes[11:] = np.nan
    labels = np.where(rows % 5 == 2, -1, rows % 2)
    arrays = {"images": images, "masks": masks, "bboxes": boxes, "binary": labels} | changes
    write_split(folder / split, arrays, {}, {})


@pytest.fixture(scope="module")
def striped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("striped")
    for split, count in {"train": 12, "val": 5, "test": 7}.items():
        write_striped(folder, split, count)
    return folder


def train(script, data, out, *flags):
    """What a run leaves in its checkpoint; it draws nothing, which takes longer than training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.results, "_gigaflop", lambda *arguments: 0.0)
        patch.setattr(engine.results, "write_others", lambda *arguments: None)
        run(script, data, out, *flags)
    return load(out / f"{name_of(script)}_last.pt")


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


@pytest.fixture(scope="module")
def reseeded(striped, tmp_path_factory):
    """The epochs of the same run from another seed."""
    return record(striped, tmp_path_factory.mktemp("reseeded") / "out", "--seed", "1")[0]


def steps_of(epochs):
    return [step for epoch in epochs for step in epoch["steps"]]


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


def test_batches_from_disk_are_those_from_memory(shared_data):
    batches = [[3, 1], [0, 11], [7, 7]]
    found = []
    for limit in (0, 2**30):
        dataset = H5Dataset("train", shared_data, memory_limit=limit)
        assert dataset.in_memory == bool(limit)
        found.append(list(loader(dataset, batches, torch.device("cpu"))))
    for (images, targets), (others, other_targets) in zip(*found, strict=True):
        assert torch.equal(images, others)
        assert all(torch.equal(targets[task], other_targets[task]) for task in TASKS)


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
    assert epochs[0]["ends"][0] == pytest.approx(told_to[1][0]["ends"][0], rel=1e-4)
