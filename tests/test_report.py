"""What a run tells: to a terminal, to a log, with --quiet; its CSV and TensorBoard twins."""

import csv
import io
import os
import pty
import re
import sys
import termios
import threading
import types

import h5py
import pytest
import torch
from running import ROOT, without_pictures

import engine
from engine.report import Report, summary_writer
from engine.report import test_table as table_of  # else pytest takes it for a test
from MTL_Utils import BBOX, SEG
from parts.errors import UserError
from parts.files import save_csv

FLAGS = ["--device=cpu", "--epochs=2", "--batch-size=4", "--units=1", "--widths", *"8888"]


class Writer:
    """As torch.utils.tensorboard.SummaryWriter, but keeps what it is given."""

    made = None

    def __init__(self, log_dir, purge_step=None):
        self.log_dir, self.purge_step = log_dir, purge_step
        self.scalars, self.pictures, self.is_closed = {}, {}, False
        Writer.made = self

    def add_scalar(self, name, value, step):
        self.scalars.setdefault(name, []).append((step, value))

    def add_image(self, name, picture, step, dataformats):
        self.pictures[name] = (picture.shape, step, dataformats)

    def flush(self):
        """Nothing waits."""

    def close(self):
        self.is_closed = True


@pytest.fixture
def fake_tensorboard(monkeypatch):
    module = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)


def run(data, out, *flags):
    """Run MTL_main in this process."""
    paths = ["--h5-save-path", str(data), "--file-save-path", str(out)]
    engine.main(ROOT / "MTL_main.py", [*paths, *FLAGS, *flags])


def test_a_log_has_one_line_per_epoch_and_tells_all(shared_data, tmp_path, capfd, fake_tensorboard):
    out = tmp_path / "out"
    run(shared_data, out, "--tensorboard")
    printed = capfd.readouterr()
    assert printed.out == ""
    assert not set(printed.err) & {"\r", "\x1b"}
    lines = printed.err.splitlines()
    assert (
        lines[0]
        == "main: 12 train, 5 val, 7 test images of 32 x 32 on cpu, 1 process(es), 2 epochs"
    )
    assert lines[1] == "for each task: training/validation loss, validation metric"
    history = torch.load(out / "main_history.pt", weights_only=True)
    for epoch in (1, 2):
        losses = [f"{history[part]['seg_loss'][epoch - 1]:.3f}" for part in ("train", "val")]
        line = lines[epoch + 1]
        assert line.startswith(f"epoch {epoch}/2: seg {'/'.join(losses)}, iou ")
        assert re.search(r"; \d+ images/s, \d+\.\d s, \d\d:\d\d left$", line) and len(line) < 160
    assert lines[4].startswith(f"test: 7 images, weights of epoch {history['best_epoch']}")
    rows = dict(line.split() for line in lines[5 : lines.index("files written:")])
    assert rows["seg_iou"] == f"{history['test']['seg_iou']:.4f}"
    assert set(rows) == {name for name in history["test"] if not name.endswith("loss")}
    files = [line.strip() for line in lines[lines.index("files written:") + 1 :]]
    assert set(files) == {str(p) for p in out.iterdir()} | {str(out / "main_tensorboard")}
    check_csv(out / "main_history.csv", history)
    check_scalars(Writer.made, history)


def check_csv(path, history):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [float(row["seconds"]) for row in rows] == history["seconds"]
    for part in ("train", "val"):
        for name, series in history[part].items():
            assert [float(row[f"{part}_{name}"]) for row in rows] == series


def check_scalars(writer, history):
    assert writer.is_closed and writer.purge_step == 1
    for part in ("train", "val"):
        for name, series in history[part].items():
            assert writer.scalars[f"{part}/{name}"] == list(enumerate(series, 1))
    best = history["best_epoch"]
    assert writer.scalars["test/seg_iou"] == [(best, history["test"]["seg_iou"])]
    assert {"main_test", "main_seg_loss"} == set(writer.pictures)
    shape, step, order = writer.pictures["main_test"]
    assert len(shape) == 3 and (step, order) == (best, "HWC")


def on_a_terminal(monkeypatch, action):
    """What a pseudo-terminal shows as stderr while `action` runs."""
    reader, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    received = []

    def read():
        try:
            while data := os.read(reader, 65536):
                received.append(data)
        except OSError:  # Linux's end of a terminal
            pass

    thread = threading.Thread(target=read)
    thread.start()
    with monkeypatch.context() as patch, open(slave, "w") as terminal:
        patch.setattr(sys, "stderr", terminal)
        action()
    thread.join()
    os.close(reader)
    return b"".join(received).decode()


def test_a_terminal_shows_a_bar_with_losses_rate_and_time_left(shared_data, tmp_path, monkeypatch):
    with without_pictures():
        shown = on_a_terminal(monkeypatch, lambda: run(shared_data, tmp_path / "out"))
    assert re.search(r"\repoch 1/2 +0% ", shown)
    bar = r"epoch 2/2 100% .* images/s, seg \d\.\d+ bbox \d\.\d+ bin \d\.\d+, \d\d:\d\d left"
    assert re.search(bar, shown)
    assert len(re.findall(r"epoch \d/2: seg \d", shown)) == 2


def test_quiet_is_silent_unless_something_is_wrong(shared_data, tmp_path, monkeypatch, capfd):
    out, other = tmp_path / "out", tmp_path / "other"
    with without_pictures():
        shown = on_a_terminal(monkeypatch, lambda: run(shared_data, out, "--quiet"))
        assert shown == "" and (out / "main_history.pt").is_file()
        run(shared_data, other, "--quiet", "--resume", "--epochs", "1")
        assert (other / "main_history.pt").is_file()
    assert capfd.readouterr().err == (
        f"--resume: no checkpoint {other}/main_last.pt; starting a new run\n"
    )


def test_tensorboard_that_is_not_installed_is_refused_before_training(
    shared_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit) as stop:
        run(shared_data, tmp_path / "out", "--tensorboard")
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(
        "MTL_main.py: --tensorboard: expected the package tensorboard, found none ("
    )
    assert printed.endswith("; pip install tensorboard\n") and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError):
        summary_writer()


TASKS, NAN = {"seg": SEG, "bbox": BBOX}, float("nan")
HISTORY = {
    "best_epoch": 1,
    "tasks": {"seg": {}, "bbox": {}},
    "train": {"seg_loss": [0.5], "bbox_loss": [0.75], "seg_known": [8], "bbox_known": [4]},
    "val": {"seg_loss": [0.6], "bbox_loss": [NAN], "seg_iou": [0.25], "bbox_iou": [NAN]},
    "seconds": [30.0],
    "test": {"seg_loss": 0.1, "seg_iou": 0.123456, "bbox_iou": NAN},
    "data": {"test": 9},
}


def test_the_epoch_line_by_hand(capsys):
    Report(121, TASKS).epoch(HISTORY, rate=99.6)
    assert capsys.readouterr().err == (
        "epoch 1/121: seg 0.500/0.600, iou 0.250; bbox 0.750/nan, iou nan; best so far; "
        "100 images/s, 30.0 s, 1:00:00 left\n"
    )


def test_the_starting_weights_by_hand(capsys):
    found = {name: series[0] for name, series in HISTORY["val"].items()}
    Report(121, TASKS).start_values(found)
    assert capsys.readouterr().err == (
        "epoch 0, the starting weights: seg 0.600, iou 0.250; bbox nan, iou nan; they compete for "
        "the best epoch\n"
    )


def test_how_much_is_known_is_said_once(data_folder, tmp_path, capsys):
    with h5py.File(data_folder / "train" / "bboxes.h5", "r+") as file:
        file["bboxes"][:9] = float("nan")
    with without_pictures():
        run(data_folder, tmp_path / "out")
    assert capsys.readouterr().err.count("; known in train: 12 seg, 3 bbox, 12 bin\n") == 1


def test_the_table_by_hand():
    assert table_of(HISTORY) == (
        "test: 9 images, weights of epoch 1\n  seg_iou   0.1235\n  bbox_iou  unknown"
    )


def test_the_time_left_goes_by_the_typical_epoch():
    report = Report(10, TASKS)
    assert report._time_left(0.5, epoch_seconds=20) == "03:10"
    report.seconds = [100.0, 10.0, 10.0]  # the first one was slow, as compilation makes it
    assert report._time_left(3.5, epoch_seconds=99) == "01:05"


def test_only_one_process_speaks(capsys, fake_tensorboard, tmp_path):
    Writer.made = None
    report = Report(2, TASKS, prints=False, tensorboard=True)
    report.start(tmp_path, 0)
    report.epoch(HISTORY, rate=1.0)
    report.warn("unheard")
    assert report.bar(1, [[0, 1]], 0).disable
    assert capsys.readouterr().err == "" and Writer.made is None


def test_a_resumed_run_replaces_the_scalars_after_its_checkpoint(fake_tensorboard, tmp_path):
    Report(9, TASKS, tensorboard=True).start(tmp_path, done=4)
    assert Writer.made.purge_step == 5


def test_a_csv_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "main_history.csv"
    path.write_text("old")
    with pytest.raises(ValueError, match="zip"):
        save_csv(HISTORY | {"seconds": [1.0, 2.0]}, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match=r"absent/x\.csv: cannot be written \(No such file"):
        save_csv(HISTORY, tmp_path / "absent" / "x.csv")


def test_the_csv_of_a_history_without_an_epoch_is_its_heading(tmp_path):
    empty = HISTORY | {"train": {}, "val": {}, "seconds": []}
    save_csv(empty, tmp_path / "x.csv")
    assert io.StringIO((tmp_path / "x.csv").read_text()).readlines() == ["epoch,seconds\n"]
