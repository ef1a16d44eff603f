"""Every script end to end on tiny data: the artefacts, repetition, and a user's mistakes."""

import importlib
import subprocess
import sys
from contextlib import nullcontext
from itertools import chain

import h5py
import matplotlib.pyplot as plt
import pytest
import torch
from running import ROOT, SCRIPTS, history, run, without_times

from dataload import Augment, H5Dataset
from engine import training
from engine.evaluation import evaluate
from engine.processes import Processes
from engine.settings import arguments_from, constants, freeze
from engine.training import TrainingStep
from parts.sampling import epoch_batches


@pytest.mark.parametrize("script", SCRIPTS)
def test_artefacts(finished, shared_data, script):
    out, name = finished[script], script.removeprefix("MTL_")
    record = history(out, name)
    tasks = importlib.import_module(script).TASKS
    assert record["config"]["EPOCHS"] == 3
    assert record["data"] == {"train": 12, "val": 5, "test": 7}
    assert record["class_names"] == ("blue", "red")
    assert record["data_fingerprint"].keys() == record["data"].keys()
    assert 1 <= record["best_epoch"] <= 3
    assert record["gflop"] > 0
    for part in ("train", "val"):
        assert all(len(series) == 3 for series in record[part].values())
        assert {f"{task}_loss" for task in tasks} <= set(record[part])
    assert record["val"]["seg_iou"][record["best_epoch"] - 1] == max(record["val"]["seg_iou"])
    assert {"seg_iou", "seg_image_iou", "seg_miou", "seg_dice", "seg_pixel_accuracy"} <= set(
        record["test"]
    )
    for picture in ("seg_loss", "test"):
        assert plt.imread(out / f"{name}_{picture}.png").std() > 0.05
    left = {path.name for path in out.glob("*")}
    endings = "history.pt history.csv model_lite.pt model.pt last.pt seg_loss.png test.png"
    assert left == {f"{name}_{ending}" for ending in endings.split()}


OPEN_AND_PREDICT = """
import sys, torch
from dataload import Augment, H5Dataset
from parts.precision import autocast
images, _ = H5Dataset("test", sys.argv[1])[[*range(7)]]
for folder, name in zip(sys.argv[2::2], sys.argv[3::2]):
    network = torch.load(f"{folder}/{name}_model.pt", weights_only=False)
    with torch.inference_mode(), autocast(images.device):
        torch.save(network.eval()(images), f"{folder}/outputs.pt")
"""


@pytest.fixture(scope="module")
def predicted(finished, shared_data):
    """`finished`, each folder with outputs.pt: a fresh process's outputs for the test split."""
    pairs = [(str(out), script.removeprefix("MTL_")) for script, out in finished.items()]
    command = [sys.executable, "-c", OPEN_AND_PREDICT, str(shared_data), *chain(*pairs)]
    subprocess.run(command, cwd=ROOT, check=True)
    yield finished
    for out in finished.values():
        (out / "outputs.pt").unlink()


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_whole_network_predicts_the_same_in_a_fresh_process(predicted, shared_data, script):
    out, name = predicted[script], script.removeprefix("MTL_")
    outputs = torch.load(out / "outputs.pt", weights_only=True)
    metrics = importlib.import_module(script).TASKS
    _, targets = H5Dataset("test", shared_data)[[*range(7)]]
    for task, values in history(out, name)["test"].items():
        prefix, metric = task.split("_", 1)
        pairs = metrics[prefix].metrics(outputs[prefix], targets[prefix]).get(metric)
        if pairs is not None:
            numerator, denominator = pairs.sum(0).tolist()
            # fp32 rounds differently on some processors in another process or batch
            assert values == pytest.approx(numerator / denominator, abs=1e-6)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_state_dict_fits_the_scripts_network(finished, script):
    out, name = finished[script], script.removeprefix("MTL_")
    module = importlib.import_module(script)
    state = torch.load(out / f"{name}_model_lite.pt", weights_only=True)
    module.Network(widths=(8, 8, 16, 16), units=1).load_state_dict(state)


def test_the_seed_decides_the_history(finished, shared_data, tmp_path):
    run("MTL_main", shared_data, tmp_path / "again")
    run("MTL_main", shared_data, tmp_path / "other", "--seed", "1")
    first = without_times(history(finished["MTL_main"]))
    assert without_times(history(tmp_path / "again")) == first
    assert history(tmp_path / "other")["train"] != first["train"]


MISTAKES = {
    "a typo": (["--epoch", "3"], "unrecognized arguments: --epoch 3 (did you mean --epochs?)"),
    "a word": (["--epochs", "many"], "argument --epochs: expected a number, found 'many'"),
    "no epochs": (["--epochs", "0"], "--epochs: expected a whole number above 0, found 0"),
    "no device": (["--device", "toaster"], "--device: expected a usable device, found toaster"),
    "no data": (
        ["--h5-save-path", "nowhere"],
        "no data: expected train/, val/ and test/ in nowhere",
    ),
}


SETTINGS = {  # that the network or the augmentation cannot have
    "--degrees -1": "0-180, found -1.0",
    "--scale 0.5 2 3": "two numbers, 0.1 <= smallest <= largest <= 10, found (0.5, 2.0, 3.0)",
    "--scale 2 1": "two numbers, 0.1 <= smallest <= largest <= 10, found (2.0, 1.0)",
    "--stretch 0.9": "1-10, found 0.9",
    "--shift 1.5": "at least 0 and below 1, found 1.5",
    "--colour nan": "at least 0 and below 1, found nan",
    "--erase 1.5": "0-1, found 1.5",
    "--widths 8": "two or more whole numbers above 1, found (8,)",
    "--widths 8 1": "two or more whole numbers above 1, found (8, 1)",
    "--widths 8.5 16": "two or more whole numbers above 1, found (8.5, 16)",
    "--units 0": "a whole number above 0, found 0",
    "--units 1.5": "a whole number above 0, found 1.5",
    "--loss-weights bin=-1": "numbers of at least 0, found -1.0 for 'bin'",
    "--loss-weights bbox=nan": "numbers of at least 0, found nan for 'bbox'",
    "--dropout 1": "a number of at least 0 and below 1, found 1.0",
}


@pytest.mark.parametrize("flags", SETTINGS)
def test_settings_that_make_no_sense_are_refused(shared_data, tmp_path, flags):
    printed = run("MTL_main", shared_data, tmp_path / "out", *flags.split(), code=2)
    name = flags.split()[0]
    assert printed == f"MTL_main.py: {name}: expected {SETTINGS[flags]}\n"


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_end_in_one_line(shared_data, tmp_path, case):
    flags, message = MISTAKES[case]
    printed = run("MTL_main", shared_data, tmp_path / "out", *flags, code=2)
    assert printed.startswith(f"MTL_main.py: {message}")
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_side_the_network_cannot_take_is_refused(tmp_path):
    from tools.make_demo import make_demo

    make_demo(tmp_path / "data", side=40, counts=(4, 2, 2))
    message = run("MTL_main", tmp_path / "data", tmp_path / "out", code=2)
    assert message == (
        "MTL_main.py: --h5-save-path: image side: expected a multiple of 32, found 40 x 40\n"
    )


def test_damaged_data_is_refused_before_anything_is_written(data_folder, tmp_path):
    with h5py.File(data_folder / "val" / "masks.h5", "r+") as file:
        file["masks"][0] = 7
    message = run("MTL_main", data_folder, tmp_path / "out", code=2)
    assert "val/masks.h5: expected 0, 1 or 255, found 7 in sample 0" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_training_step_runs_on_the_meta_device(monkeypatch, script):
    """No tensor of another device hides in augmentation, network, losses or weighting."""
    monkeypatch.setattr(
        training, "autocast", lambda device: nullcontext()
    )  # which knows no meta device
    module = importlib.import_module(script)
    with torch.device("meta"):
        step = TrainingStep(module.Network(), module.TASKS, module.weighting())
        images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        targets = {
            "seg": torch.zeros(2, 1, 64, 64, dtype=torch.uint8),
            "bbox": torch.zeros(2, 4),
            "bin": torch.zeros(2),
        }
    augment = Augment(**arguments_from(freeze(constants(module)), Augment))
    counts = torch.full((len(module.TASKS),), 2.0, device="meta")
    total, losses, _ = step(*augment(images, targets, torch.Generator(), (32, 32)), counts)
    total.backward()
    assert losses.device.type == "meta" and losses.shape == (len(module.TASKS),)
    assert all(parameter.grad.device.type == "meta" for parameter in step.parameters())


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_evaluation_does_not_depend_on_the_batch_size(shared_data, batch_size):
    module = importlib.import_module("MTL_main")
    torch.manual_seed(0)
    network = module.Network().eval()
    tables = [
        evaluate(network, H5Dataset("train", shared_data), module.TASKS, size, Processes())
        for size in (batch_size, 12)
    ]
    for task, metrics in tables[0].items():
        for name, pairs in metrics.items():
            other = tables[1][task][name].sum(0)
            torch.testing.assert_close(pairs.sum(0), other, rtol=1e-2, atol=1e-2)
            assert pairs.shape == (12, 2)


def test_every_sample_is_drawn_once_an_epoch():
    known = torch.ones(12, dtype=torch.bool)
    batches = epoch_batches(known, known, 4, seed=0, epoch=1)
    assert sorted(chain.from_iterable(batches)) == list(range(12))
    assert batches == epoch_batches(known, known, 4, seed=0, epoch=1)
    assert batches != epoch_batches(known, known, 4, seed=0, epoch=2)
    assert [len(batch) for batch in epoch_batches(known[:10], known[:10], 4, 0, 1)] == [4, 4]
    assert [len(batch) for batch in epoch_batches(known[:3], known[:3], 4, 0, 1)] == [3]


def test_operations_are_counted_as_by_hand():
    """A 1 x 1 convolution of 3 to 2 channels on 8 x 8 pixels: 2 * 3 * 2 * 64 operations forward,
    as many for the gradient of its weights; the image needs none."""

    class Network(torch.nn.Conv2d):
        def forward(self, image):
            return {"seg": super().forward(image).sum(1, keepdim=True)}

    tasks = {"seg": importlib.import_module("MTL_baseline").TASKS["seg"]}
    weighting = importlib.import_module("MTL_baseline").weighting()
    step = TrainingStep(Network(3, 2, 1), tasks, weighting)
    images, targets = torch.zeros(5, 3, 8, 8), {"seg": torch.zeros(5, 1, 8, 8)}
    assert training.gigaflop(step, images, targets) == 2 * (2 * 3 * 2 * 64) / 1e9


def test_the_training_step_is_compiled_on_request(shared_data, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(TrainingStep, "compile", lambda step, **_: compiled.append(step))
    run("MTL_baseline", shared_data, tmp_path / "plain", "--epochs", "1")
    assert not compiled
    run("MTL_baseline", shared_data, tmp_path / "compiled", "--epochs", "1", "--compile")
    assert len(compiled) == 1


def test_batches_of_one_that_batch_norm_cannot_take_are_refused(shared_data, tmp_path):
    flags = ["--epochs", "2", "--batch-size", "1"]  # 32 x 32 pixels leave one position at stride 32
    message = run("MTL_baseline", shared_data, tmp_path, *flags, code=2)
    assert (
        "--batch-size: expected 2 or more images for each process, found 1; at (32, 32)" in message
    )
    assert not any(tmp_path.iterdir())
