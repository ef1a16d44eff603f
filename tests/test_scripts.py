"""Every script end to end on tiny data: the artefacts, repetition, resuming, and mistakes."""

import importlib
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import pytest
import torch

from dataload import H5Dataset
from engine.loop import epoch_batches, evaluate

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("MTL_*.py") if path.stem != "MTL_Utils")
TINY = ["--epochs", "3", "--batch-size", "4", "--widths", "8", "8", "8", "8", "--size", "1"]


def command(script, data, out, *flags):
    paths = ["--h5-save-path", str(data), "--file-save-path", str(out), "--device", "cpu"]
    return [sys.executable, str(ROOT / f"{script}.py"), *paths, *TINY, *flags]


def run(script, data, out, *flags, code=0):
    """What the script prints on stderr; from another folder, as a user might."""
    arguments = command(script, data, out, *flags)
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=data.parent, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def history(out, name="main"):
    return torch.load(out / f"{name}_history.pt", weights_only=True)


def without_times(record):
    return {key: value for key, value in record.items() if key not in ("seconds", "config")}


@pytest.fixture(scope="module")
def finished(shared_data, tmp_path_factory):
    """A finished run of every script, by name."""
    folders = {script: tmp_path_factory.mktemp(script) / "out" for script in SCRIPTS}
    for script, out in folders.items():
        run(script, shared_data, out)
    return folders


@pytest.mark.parametrize("script", SCRIPTS)
def test_artefacts(finished, shared_data, script):
    out, name = finished[script], script.removeprefix("MTL_")
    record = history(out, name)
    tasks = importlib.import_module(script).TASKS
    assert record["config"]["EPOCHS"] == 3
    assert record["data"] == {"train": 12, "val": 5, "test": 7}
    assert record["class_names"] == ("blue", "red")
    assert 1 <= record["best_epoch"] <= 3
    for part in ("train", "val"):
        assert all(len(series) == 3 for series in record[part].values())
        assert {f"{task}_loss" for task in tasks} <= set(record[part])
    assert record["val"]["seg_iou"][record["best_epoch"] - 1] == max(record["val"]["seg_iou"])
    assert {"seg_iou", "seg_image_iou", "seg_miou", "seg_dice", "seg_pixel_accuracy"} <= set(
        record["test"]
    )
    for picture in ("seg_loss", "test"):
        assert plt.imread(out / f"{name}_{picture}.png").std() > 0.05
    left = {path.name for path in out.iterdir()}
    endings = "history.pt history.csv model_lite.pt model.pt last.pt seg_loss.png test.png"
    assert left == {f"{name}_{ending}" for ending in endings.split()}


OPEN_AND_PREDICT = """
import sys, torch
from dataload import H5Dataset
from engine.loop import autocast
model, data, out = sys.argv[1:]
network = torch.load(model, weights_only=False)
images, _ = H5Dataset("test", data).batch(range(7))
with torch.inference_mode(), autocast(images.device):
    torch.save(network.eval()(images), out)
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_whole_network_predicts_the_same_in_a_fresh_process(
    finished, shared_data, tmp_path, script
):
    out, name = finished[script], script.removeprefix("MTL_")
    arguments = [str(out / f"{name}_model.pt"), str(shared_data), str(tmp_path / "outputs.pt")]
    subprocess.run([sys.executable, "-c", OPEN_AND_PREDICT, *arguments], cwd=ROOT, check=True)
    outputs = torch.load(tmp_path / "outputs.pt", weights_only=True)
    metrics = importlib.import_module(script).TASKS
    _, targets = H5Dataset("test", shared_data).batch(range(7))
    for task, values in history(out, name)["test"].items():
        prefix, metric = task.split("_", 1)
        pairs = metrics[prefix].metrics(outputs[prefix], targets[prefix]).get(metric)
        if pairs is not None:
            numerator, denominator = pairs.sum(0).tolist()
            assert values == pytest.approx(numerator / denominator, abs=1e-12)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_state_dict_fits_the_scripts_network(finished, monkeypatch, script):
    out, name = finished[script], script.removeprefix("MTL_")
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "WIDTHS", (8, 8, 8, 8))
    monkeypatch.setattr(module, "SIZE", 1)
    state = torch.load(out / f"{name}_model_lite.pt", weights_only=True)
    module.Network().load_state_dict(state)


def test_the_seed_decides_the_history(finished, shared_data, tmp_path):
    run("MTL_main", shared_data, tmp_path / "again")
    run("MTL_main", shared_data, tmp_path / "other", "--seed", "1")
    first = without_times(history(finished["MTL_main"]))
    assert without_times(history(tmp_path / "again")) == first
    assert history(tmp_path / "other")["train"] != first["train"]


def test_a_stopped_run_resumes_to_the_same_end(finished, shared_data, tmp_path):
    """SIGTERM somewhere in the run; the rest is done by --resume."""
    out = tmp_path / "out"
    arguments = command("MTL_main", shared_data, out, "--epochs", "40")
    reference = tmp_path / "reference"
    run("MTL_main", shared_data, reference, "--epochs", "40")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("epoch 5/"):
                process.send_signal(signal.SIGTERM)
            last = line
    assert process.returncode == 128 + signal.SIGTERM
    assert last == "stopped by signal 15; go on with --resume\n"
    assert not (out / "main_history.pt").exists()
    run("MTL_main", shared_data, out, "--epochs", "40", "--resume")
    assert without_times(history(out)) == without_times(history(reference))
    ours, theirs = (torch.load(f / "main_last.pt", weights_only=True) for f in (out, reference))
    for part in ("network", "average", "best"):
        assert all(torch.equal(ours[part][key], theirs[part][key]) for key in theirs[part])


def test_resuming_with_other_settings_is_refused(finished, shared_data):
    out = finished["MTL_main"]
    before = (out / "main_last.pt").read_bytes()
    message = run("MTL_main", shared_data, out, "--resume", "--learning-rate", "1", code=2)
    assert "main_last.pt was made with LEARNING_RATE = 0.003, not 1.0" in message
    assert (out / "main_last.pt").read_bytes() == before


def test_resuming_without_a_checkpoint_starts_anew(shared_data, tmp_path):
    message = run("MTL_main", shared_data, tmp_path / "out", "--resume", "--epochs", "1")
    assert "no checkpoint" in message and "starting anew" in message
    assert len(history(tmp_path / "out")["train"]["seg_loss"]) == 1


def test_resuming_from_a_damaged_checkpoint_is_refused(shared_data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "main_last.pt").write_bytes(b"not a checkpoint")
    message = run("MTL_main", shared_data, tmp_path / "out", "--resume", code=2)
    assert "main_last.pt: expected a checkpoint, found a damaged file" in message


def test_two_processes_share_a_read_only_folder(finished, data_folder, tmp_path):
    for path in sorted(data_folder.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    outs = [tmp_path / "a", tmp_path / "b"]
    pipes = {"stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command("MTL_main", data_folder, out), **pipes) for out in outs]
    errors = [process.communicate()[1] for process in runs]
    assert [process.returncode for process in runs] == [0, 0], errors
    expected = without_times(history(finished["MTL_main"]))
    assert [without_times(history(out)) for out in outs] == [expected, expected]


MISTAKES = {
    "a typo": (["--epoch", "3"], "unrecognized arguments: --epoch 3 (did you mean --epochs?)"),
    "a word": (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
    "no epochs": (["--epochs", "0"], "--epochs: expected a number above 0, found 0"),
    "no device": (["--device", "toaster"], "--device: expected a usable device, found toaster"),
    "no data": (
        ["--h5-save-path", "nowhere"],
        "no data: expected train/, val/ and test/ in nowhere",
    ),
}


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
    assert "val/masks.h5: expected values 0-1, found 7 in sample 0" in message
    assert message.count("\n") == 1


def test_an_unwritable_folder_is_named(shared_data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = run("MTL_main", shared_data, tmp_path / "file" / "out", code=2)
    assert message.startswith("MTL_main.py: --file-save-path: cannot make")


def test_a_loss_that_is_not_finite_stops_the_run(shared_data, tmp_path):
    message = run(
        "MTL_main", shared_data, tmp_path / "out", "--learning-rate", "1e30", "--clip-norm", "1e30",
        "--epochs", "9", code=2,
    )  # fmt: skip
    assert "is not finite in epoch" in message and "samples [" in message


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_training_step_runs_on_the_meta_device(monkeypatch, script):
    """No tensor of another device hides in network, losses or weighting."""
    # torchvision's box loss indexes with a mask, whose result has no shape without data
    monkeypatch.setattr(torch.fx.experimental._config, "meta_nonzero_assume_all_nonzero", True)
    module = importlib.import_module(script)
    with torch.device("meta"):
        network, weighting = module.Network(), module.weighting()
        targets = {
            "seg": torch.zeros(2, 1, 64, 64),
            "bbox": torch.zeros(2, 4),
            "bin": torch.zeros(2),
        }
        outputs = network(torch.zeros(2, 3, 64, 64))
    tasks = module.TASKS.items()
    weighting({name: task.loss(outputs[name], targets[name]) for name, task in tasks}).backward()
    assert all(parameter.grad.device.type == "meta" for parameter in network.parameters())


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_evaluation_does_not_depend_on_the_batch_size(shared_data, batch_size):
    class Processes:
        rank, size, device = 0, 1, torch.device("cpu")

        def sum(self, tensor):
            return tensor

    module = importlib.import_module("MTL_main")
    torch.manual_seed(0)
    network = module.Network().eval()
    tables = [
        evaluate(network, H5Dataset("train", shared_data), module.TASKS, size, Processes())
        for size in (batch_size, 12)
    ]
    for name, pairs in tables[0].items():
        torch.testing.assert_close(pairs.sum(0), tables[1][name].sum(0), rtol=1e-2, atol=1e-2)
        assert pairs.shape == (12, 2)


def test_every_sample_is_drawn_once_an_epoch():
    batches = epoch_batches(12, 4, seed=0, epoch=1)
    assert sorted(chain.from_iterable(batches)) == list(range(12))
    assert batches == epoch_batches(12, 4, seed=0, epoch=1)
    assert batches != epoch_batches(12, 4, seed=0, epoch=2)
    assert [len(batch) for batch in epoch_batches(10, 4, 0, 1)] == [4, 4]
    assert [len(batch) for batch in epoch_batches(3, 4, 0, 1)] == [3]
