"""Every script end to end on tiny data: the artefacts, repetition, and a user's mistakes."""

import h5py
import matplotlib.pyplot as plt
import pytest
import torch
from forked import forget_us, in_a_new_process
from running import (
    ROOT,
    SCRIPTS,
    changed,
    history,
    name_of,
    run,
    without_pictures,
    without_times,
)

import engine
from dataload import H5Dataset
from engine.evaluation import evaluate
from engine.processes import Processes
from engine.training import TrainingStep
from parts.demo_data import make_demo
from parts.flops import gigaflop


@pytest.mark.parametrize("script", SCRIPTS)
def test_artefacts(finished, shared_data, script):
    out, name = finished[script], name_of(script)
    record, tasks = history(out, name), engine.load(script).TASKS
    assert (record["name"], record["script"]) == (name, f"{script}.py")
    assert (record["config"]["EPOCHS"], record["config"]["WIDTHS"]) == (3, (8, 8, 16, 16))
    assert record["data"] == {"train": 12, "val": 5, "test": 7}
    names = {"seg": ("background", "foreground"), "bbox": (), "bin": ("blue", "red")}
    assert record["class_names"] == {task: names[task] for task in tasks}
    files = {"images", *(task.target.file for task in tasks.values())}
    assert record["data_fingerprint"].keys() == record["data"].keys()
    assert all(found.keys() == files for found in record["data_fingerprint"].values())
    assert 1 <= record["best_epoch"] <= 3 and record["weights_from"] is None
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


def open_and_predict(data, files, to):
    """The outputs of whole networks for the test split, in a process that knows nothing of them."""
    forget_us(str(ROOT))
    from dataload import H5Dataset
    from parts.precision import autocast

    images, _ = H5Dataset("test", data)[[*range(7)]]
    networks = [torch.load(file, weights_only=False).eval() for file in files]
    with torch.inference_mode(), autocast(images.device):
        torch.save([network(images) for network in networks], to)


def test_whole_networks_predict_the_same_in_a_fresh_process(finished, shared_data, tmp_path):
    files = [finished[script] / f"{name_of(script)}_model.pt" for script in SCRIPTS]
    in_a_new_process(open_and_predict, shared_data, files, tmp_path / "outputs.pt")
    _, targets = H5Dataset("test", shared_data)[[*range(7)]]
    for script, outputs in zip(SCRIPTS, torch.load(tmp_path / "outputs.pt"), strict=True):
        record = history(finished[script], name_of(script))["test"]
        for name, task in engine.load(script).TASKS.items():
            for metric, pairs in task.metrics(outputs[name], targets[name]).items():
                numerator, denominator = pairs.sum(0).tolist()
                # fp32 rounds differently on some processors in another process or batch
                expected = pytest.approx(numerator / denominator, abs=1e-6)
                assert record[f"{name}_{metric}"] == expected


def test_the_seed_decides_the_history(finished, shared_data, tmp_path):
    with without_pictures():
        run("MTL_main", shared_data, tmp_path / "again")
        run("MTL_main", shared_data, tmp_path / "other", "--seed", "1")
    first = without_times(history(finished["MTL_main"]))
    assert without_times(history(tmp_path / "again")) | {"gflop": first["gflop"]} == first
    assert history(tmp_path / "other")["train"] != first["train"]


def test_numbers_are_written_though_the_work_cannot_be_counted(shared_data, tmp_path):
    """A network that keeps a feature cannot be copied, once it has trained."""
    kept = "        return {\n", "        self.kept = seg\n        return {\n"
    (script := tmp_path / "MTL_keeps.py").write_text(
        changed((ROOT / "MTL_main.py").read_text(), kept)
    )
    printed = run(script, shared_data, tmp_path / "out", "--epochs", "1")
    assert "warning: the work of a step could not be counted (RuntimeError: Only Tensors" in printed
    record = history(tmp_path / "out", "keeps")
    assert record["gflop"] is None and 0 <= record["test"]["seg_iou"] <= 1


MISTAKES = {
    "--demo": "--demo: expected no --h5-save-path beside it, found /",
    "--epoch 3": "unrecognized arguments: --epoch 3 (did you mean --epochs?)",
    "--device toaster": "--device: expected a usable device, found toaster",
    "--h5-save-path nowhere": "no data: expected train/, val/ and test/ in nowhere",
    # what the network or the augmentation cannot have
    "--degrees -1": "--degrees: expected 0-180, found -1.0",
    "--degrees 181": "--degrees: expected 0-180, found 181.0",
    "--scale 0.05 1": "--scale: expected two numbers, 0.1 <= smallest <= largest <= 10, found "
    "(0.05, 1.0)",
    "--scale 0.5 2 3": "--scale: expected two numbers, 0.1 <= smallest <= largest <= 10, found "
    "(0.5, 2.0, 3.0)",
    "--scale 2 1": "--scale: expected two numbers, 0.1 <= smallest <= largest <= 10, found "
    "(2.0, 1.0)",
    "--stretch 0.9": "--stretch: expected 1-10, found 0.9",
    "--shift 1.5": "--shift: expected at least 0 and below 1, found 1.5",
    "--shift 1": "--shift: expected at least 0 and below 1, found 1.0",
    "--colour -0.1": "--colour: expected at least 0 and below 1, found -0.1",
    "--colour nan": "--colour: expected at least 0 and below 1, found nan",
    "--erase 1.5": "--erase: expected 0-1, found 1.5",
    "--widths 8": "--widths: expected two or more whole numbers above 1, found (8,)",
    "--widths 8 1": "--widths: expected two or more whole numbers above 1, found (8, 1)",
    "--widths 8.5 16": "--widths: expected two or more whole numbers above 1, found (8.5, 16)",
    "--units 0": "--units: expected a whole number above 0, found 0",
    "--units 1.5": "--units: expected a whole number above 0, found 1.5",
    "--loss-weights seg=0": "--loss-weights: expected a number above 0, as it chooses the best "
    "epoch, found 0.0 for 'seg'",
    "--loss-weights bin=-1": "--loss-weights: expected a number of at least 0, found -1.0 for "
    "'bin'",
    "--loss-weights bbox=nan": "--loss-weights: expected a number of at least 0, found nan for "
    "'bbox'",
    "--dropout 1": "--dropout: expected a number of at least 0 and below 1, found 1.0",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_mistakes_end_in_one_line(shared_data, tmp_path, flags):
    printed = run("MTL_main", shared_data, tmp_path / "out", *flags.split(), code=2)
    assert printed.startswith(f"MTL_main.py: {MISTAKES[flags]}")
    assert printed.count("\n") == 1 and printed.endswith("\n")
    assert not (tmp_path / "out").exists()


def test_a_side_the_network_cannot_take_is_refused(tmp_path):
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
    assert message.count("\n") == 1 and not (tmp_path / "out").exists()


def test_batches_of_one_that_batch_norm_cannot_take_are_refused(shared_data, tmp_path):
    flags = ["--epochs", "2", "--batch-size", "1"]  # 32 x 32 pixels leave one position at stride 32
    message = run("MTL_baseline", shared_data, tmp_path, *flags, code=2)
    assert (
        "--batch-size: expected 2 or more images for each process, found 1; at (32, 32)" in message
    )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_evaluation_does_not_depend_on_the_batch_size(shared_data, batch_size):
    module = engine.load("MTL_main")
    torch.manual_seed(0)
    network = module.Network().eval()
    tables = [
        evaluate(network, H5Dataset("train", shared_data), module.TASKS, size, Processes({}))
        for size in (batch_size, 12)
    ]
    for task, metrics in tables[0].items():
        for name, pairs in metrics.items():
            other = tables[1][task][name].sum(0)
            torch.testing.assert_close(pairs.sum(0), other, rtol=1e-2, atol=1e-2)
            assert pairs.shape == (12, 2)


@pytest.mark.parametrize(("channels", "groups", "operations"), [(2, 1, 6), (3, 3, 3)])
def test_operations_are_counted_as_by_hand(channels, groups, operations):
    """1 x 1 convolutions of 8 x 8 pixels: 2 * operations * 64 forward, as many for the gradient of
    the weights; the image needs none."""

    class Network(torch.nn.Conv2d):
        def forward(self, image):
            return {"seg": super().forward(image).sum(1, keepdim=True)}

    module = engine.load("MTL_baseline")
    network = Network(3, channels, 1, groups=groups)
    step = TrainingStep(network, module.TASKS, module.weighting())
    images, targets = torch.zeros(5, 3, 8, 8), {"seg": torch.zeros(5, 1, 8, 8)}
    assert gigaflop(step, images, targets) == 2 * (2 * operations * 64) / 1e9
