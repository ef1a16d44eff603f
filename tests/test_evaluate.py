"""All metrics of a trained network on any data, with intervals."""

import re
import shutil

import h5py
import numpy as np
import pytest
from boxes import errors, stopped_run
from running import ROOT, history

from dataload import write_split
from tools import evaluate


@pytest.fixture
def call(capsys):
    """A function that runs the tool: ({metric: the rest of its line}, stderr)."""

    def run(*arguments, code=0):
        assert evaluate.main([*map(str, arguments), "--device", "cpu"]) == code
        printed = capsys.readouterr()
        lines = printed.out.splitlines()
        return dict(re.split(r" +", line, maxsplit=1) for line in lines), printed.err

    return run


def value(text):
    return float(text.split()[0])


def test_the_metrics_of_a_run_on_its_own_data_are_those_of_its_history(call, finished, shared_data):
    run = finished["MTL_main"]
    found, error = call(run / "main_model_lite.pt", shared_data)
    assert error == "" and found.pop("7") == f"images of 32 x 32 in {shared_data / 'test'}"
    record = history(run)
    test = {name: v for name, v in record["test"].items() if not name.endswith("_loss")}
    assert {name: value(text) for name, text in found.items()} == pytest.approx(test, abs=1e-4)
    found, _ = call(run / "main_last.pt", shared_data, "--split", "val")
    best = record["best_epoch"] - 1
    expected = pytest.approx(record["val"]["bin_balanced_accuracy"][best], abs=1e-4)
    assert value(found["bin_balanced_accuracy"]) == expected


def test_values_and_intervals_by_hand(call, shared_data, data_folder, tmp_path):
    run, each = stopped_run(tmp_path / "run", shared_data), errors(shared_data)
    found, error = call(run, shared_data)
    assert "the run is unfinished; these are the weights of epoch 1" in error
    shown, low, high, known = re.fullmatch(
        r"(0\.\d{4}) \[(0\.\d{4}), (0\.\d{4})\]  \((\d) known\)", found["bbox_error"]
    ).groups()
    assert found["bin_accuracy"].startswith(f"{4 / 7:.4f} [")
    assert float(shown) == pytest.approx(np.mean(each), abs=1e-4) and known == "7"
    drawn = np.random.default_rng(1).choice(each, (20000, 7)).mean(1)  # another bootstrap
    assert [float(low), float(high)] == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.01)
    with h5py.File(data_folder / "test" / "bboxes.h5", "r+") as file:
        file["bboxes"][2:] = np.nan
    found, _ = call(run, data_folder)
    assert found["bbox_error"].startswith(f"{np.mean(each[:2]):.4f} [")
    assert found["bbox_error"].endswith("  (2 known)")
    (data_folder / "test" / "bboxes.h5").unlink()
    found, _ = call(run, data_folder)
    assert found["bbox_error"] == "unknown  (0 known)"


def test_too_few_images_have_no_interval(call, shared_data, data_folder, tmp_path):
    run = stopped_run(tmp_path / "run", shared_data)
    images = {
        "images": np.zeros((3, 32, 32, 3), np.uint8),
        "bboxes": np.tile([8.0, 8, 16, 16], (3, 1)),
    }
    shutil.rmtree(data_folder / "test")
    write_split(data_folder / "test", images, {}, {})
    found, _ = call(run, data_folder)
    assert found["bbox_error"] == "0.2500  (3 known)"


def test_a_mean_is_taken_over_the_classes_that_occur(call, finished, data_folder):
    with h5py.File(data_folder / "test" / "binary.h5", "r+") as file:
        file["binary"][:] = 1
    found, _ = call(finished["MTL_main"] / "main_model.pt", data_folder)
    assert found["bin_recall_0"] == "unknown  (7 known)"
    assert value(found["bin_balanced_accuracy"]) == value(found["bin_recall_1"])


def test_what_is_probably_a_mistake_is_said(call, finished, data_folder):
    """The shipped network and any run take any data whose sides fit."""
    found, error = call(ROOT / "weights" / "OEQ_model_lite.pt", data_folder)
    assert 0 <= value(found["seg_iou"]) <= 1
    path = data_folder / "test" / "binary.h5"
    assert error == f"warning: {path}: expected ('cat', 'dog'), found ('blue', 'red')\n"
    shutil.rmtree(data_folder / "test")
    shutil.copytree(data_folder / "train", data_folder / "test")
    _, error = call(finished["MTL_main"] / "main_model_lite.pt", data_folder)
    words = "the network was trained on these images"
    assert error == f"warning: {data_folder / 'test'}: {words}\n"
    _, error = call(finished["MTL_main"] / "main_model_lite.pt", data_folder, "--split", "train")
    assert error == ""


def test_mistakes_end_in_one_line(call, finished, shared_data, tmp_path):
    model = finished["MTL_main"] / "main_model_lite.pt"

    def message(*arguments):
        found, error = call(*arguments, code=2)
        assert found == {} and error.count("\n") == 1 and error.startswith("evaluate.py: ")
        return error

    assert "expected a file NAME_model.pt, NAME_model_lite.pt or NAME_last.pt" in message("x", "y")
    assert "MODEL: expected a path, found an empty one" in message("", shared_data)
    assert "DATA: expected a path, found an empty one" in message(model, "")
    assert "nowhere/test: no such folder; expected the split 'test' there" in message(
        model, "nowhere"
    )
    assert "--split" in message(model, shared_data, "--split", "all")
    images = {"images": np.zeros((2, 48, 32, 3), np.uint8)}
    write_split(tmp_path / "data" / "test", images, {}, {})
    expected = "expected sides that are multiples of 32, found 48 x 32"
    assert expected in message(model, tmp_path / "data")
    (tmp_path / "data" / "test" / "images.h5").write_bytes(b"damaged")
    assert "images.h5: not a readable HDF5 file" in message(model, tmp_path / "data")
