"""The benchmarks run and measure what they say; no assertion is about time."""

import re
import shutil

import h5py
import numpy as np
import pytest
import torch
from running import load

from benchmarks import data_speed, mirrored_view, train_speed
from dataload import H5Dataset
from engine.processes import Processes
from engine.script import ROOT


@pytest.fixture
def trainers(tmp_path):
    """Two equal trainers, and their data."""
    train_speed.write_random_data(tmp_path, 32)
    arguments = ROOT / "MTL_main.py", tmp_path, Processes({}), 4
    data, found = None, []
    for _ in range(2):
        flags = ("--widths", "8", "8", "16", "16", "--dropout", "0", "--clip-norm", "0.01")
        trainer, data = train_speed.make_trainer(*arguments, *flags)
        found.append(trainer)
    return *found, data


def test_a_timed_step_is_a_training_step(trainers):
    timed, plain, data = trainers
    for step in range(2):
        train_speed.timed_step(timed, data, step)
        images, targets = data[list(range(4 * step, 4 * step + 4))]
        plain.learn(images, targets, torch.Generator().manual_seed(step))
    for part in ("network", "average"):
        states = (getattr(trainer, part).state_dict() for trainer in (timed, plain))
        assert all(map(torch.equal, *(state.values() for state in states)))


def test_the_table_of_a_training_step(monkeypatch, capsys):
    monkeypatch.setattr(train_speed, "MATRIX", 64)
    flags = ["--sides", "32", "--steps", "1", "--batch-size", "2", "--device", "cpu"]
    assert train_speed.main(flags) == 0
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines() if "32 |" in row]
    assert [row[1] for row in rows] == ["as shipped", "with AdamW"]
    for row in rows:
        assert sum(float(share.strip("%")) for share in row[3:9]) == pytest.approx(100, abs=0.4)


def test_the_mirrored_view_of_finished_runs(finished, tmp_path, capsys):
    """A network's own answers are among them: MTL_OEQ's are those with the second view."""
    for script in ("MTL_baseline", "MTL_main", "MTL_OEQ"):
        shutil.copytree(finished[script], tmp_path / script)
    assert mirrored_view.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {row[0]: row[1:] for row in (line.strip("| ").split(" | ") for line in lines[2:5])}
    metrics = ("seg_iou", "bbox_iou", "bin_accuracy")
    for name, first in {"baseline": 0, "main": 0, "OEQ": 1}.items():
        test = load(finished[f"MTL_{name}"] / f"{name}_history.pt")["test"]
        expected = [f"{test[metric]:.3f}" if metric in test else "-" for metric in metrics]
        assert [cell for cell in rows[name][first::2]] == expected
    gain = float(rows["main"][0]) - float(rows["baseline"][0])
    (line,) = [line for line in lines if line.startswith("seg iou, main over baseline: ")]
    assert float(line.split()[5]) == pytest.approx(gain, abs=2e-3)


def test_the_mirrored_view_of_other_data_is_refused(finished, data_folder, tmp_path, capsys):
    out = shutil.copytree(finished["MTL_main"], tmp_path / "out")
    history = load(out / "main_history.pt")
    history["config"]["H5_SAVE_PATH"] = str(data_folder)
    torch.save(history, out / "main_history.pt")
    (data_folder / "test").rename(data_folder / "old")
    (data_folder / "val").rename(data_folder / "test")
    assert mirrored_view.main([str(out)]) == 2
    error = capsys.readouterr().err
    expected = f"{data_folder / 'test'}: expected the run's data, bboxes: 7 samples of checksum"
    assert expected in error and ", found bboxes: 5 samples" in error and error.count("\n") == 1
    history["data_fingerprint"]["test"] = "7 samples of checksum 0123abcd"
    torch.save(history, out / "main_history.pt")
    assert mirrored_view.main([str(out)]) == 2
    assert capsys.readouterr().err.endswith("found one of an earlier version\n")


def test_runs_that_have_no_place_in_the_table_are_refused(finished, tmp_path, capsys):
    for folder in ("one", "two"):
        shutil.copytree(finished["MTL_main"], tmp_path / folder)
    assert mirrored_view.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith(
        "two/main_model_lite.pt: expected one run of main per fold, found another\n"
    )
    with open(tmp_path / "one/MTL_main.py", "w") as copy:  # whose network has no decode
        copy.write((ROOT / "MTL_main.py").read_text().replace("decode", "answer"))
    history = load(tmp_path / "one/main_history.pt")
    torch.save(history | {"script": str(tmp_path / "one/MTL_main.py")}, tmp_path / "one/x")
    (tmp_path / "one/x").replace(tmp_path / "one/main_history.pt")
    assert mirrored_view.main([str(tmp_path / "one")]) == 2
    assert capsys.readouterr().err.endswith("with encoder and decode, found no decode\n")


@pytest.mark.parametrize(
    ("tool", "flags", "message"),
    [
        (data_speed, ["--count", "8"], "--batch-size: expected at most --count, found 32"),
        (train_speed, ["--steps", "0"], "expected a whole number from 1 to 1000000, found '0'"),
        (train_speed, ["--sides", "0"], "expected a whole number from 1 to 10000, found '0'"),
    ],
)
def test_numbers_that_cannot_be_measured_take_one_line(capsys, tool, flags, message):
    assert tool.main(flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_tables_of_reading(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(data_speed, "DTYPES", (np.float64,))
    small = ["--count", "8", "--side", "32", "--batch-size", "4"]
    assert data_speed.main([*small, "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    ways = "in memory", "from disk", "one read per index", "sorted fancy indexing"
    assert all(re.search(rf"\| .*{way} \| \d+ \|\n", printed) for way in ways)
    assert re.search(r"\| float64 \| \d+\.\d \| \d+ \| 0 \| \d+\.\d\d \|\n", printed)
    assert not list(tmp_path.iterdir())


def test_every_way_of_reading_reads_the_same(tmp_path):
    data_speed.write(tmp_path / "split", 8, 32, np.uint8)
    images, targets = H5Dataset("split", tmp_path)[[1, 4, 6]]
    for read in (data_speed.naive, data_speed.fancy):
        with (
            h5py.File(tmp_path / "split" / "images.h5") as one,
            h5py.File(tmp_path / "split" / "masks.h5") as other,
        ):
            pixels, masks = read({"images": one, "masks": other}, [1, 4, 6])
        assert torch.equal(pixels.permute(0, 3, 1, 2), images)
        assert torch.equal(masks.permute(0, 3, 1, 2), targets["seg"])
