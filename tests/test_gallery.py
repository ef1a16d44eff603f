"""The sheet of best, median and worst samples."""

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from running import ROOT, history

from dataload import H5Dataset
from engine import pictures
from engine.evaluation import sample_scores
from engine.tasks import SEG
from tools import gallery

# One network that always answers the box 0, 0, x, 1, and tasks by which lower or higher is better.
SCRIPT = '''
import torch
from torch import nn

from MTL_Utils import Task
from engine.tasks import BBOX


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(0.5))

    def forward(self, image):
        box = torch.stack([self.x * 0, self.x * 0, self.x, self.x * 0 + 1])
        return {"bbox": box.expand(len(image), 4)}


def error(output, target):
    """The difference of xmax; unknown where that is NaN."""
    known = ~target.isnan().any(1)
    each = torch.where(known, (output - target)[:, 2].abs(), 0.0)
    return {"error": torch.stack([each.double(), known.double()], 1)}


LOWER = Task(BBOX.loss, error, BBOX.known, "error", False, draw=BBOX.draw)
TASKS = {"bbox": LOWER}
'''


@pytest.fixture
def run_folder(shared_data, tmp_path, monkeypatch):
    """A stopped run of MTL_boxes."""
    (tmp_path / "MTL_boxes.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    about = {"name": "boxes", "script": "MTL_boxes", "config": {"EPOCHS": 5}, "side": (32, 32)}
    splits = {split: H5Dataset(split, shared_data) for split in ("train", "val", "test")}
    about["data_fingerprint"] = {split: data.fingerprint() for split, data in splits.items()}
    series = {"train": {}, "val": {}, "best_epoch": 1, "seconds": [1.0, 1.0]}
    folder = tmp_path / "run"
    folder.mkdir()
    best = {"x": torch.tensor(0.75)}
    torch.save({"about": about, "history": series, "best": best}, folder / "boxes_last.pt")
    yield folder
    sys.modules.pop("MTL_boxes", None)


@pytest.fixture
def drawn(monkeypatch):
    """What the tool has put on its sheet."""
    seen, draw_sheet = {}, gallery.draw_sheet

    def spy(path, groups, heads, dataset, outputs, tasks):
        seen.update(groups=groups, heads=heads, outputs=outputs)
        draw_sheet(path, groups, heads, dataset, outputs, tasks)

    monkeypatch.setattr(gallery, "draw_sheet", spy)
    return seen


def test_choose_by_hand():
    scores = torch.tensor([0.5, 0.9, 0.1, 0.7, 0.3, 0.8, 0.2])
    assert gallery.choose(scores, 1) == {"best": [1], "median": [0], "worst": [2]}
    assert gallery.choose(scores, 2) == {"best": [1, 5], "median": [3, 0], "worst": [6, 2]}
    assert gallery.choose(scores, 1, False) == {"best": [2], "median": [0], "worst": [1]}
    assert gallery.choose(scores[:2], 3) == {"best": [1, 0], "median": [1, 0], "worst": [1, 0]}
    unknown = torch.tensor([torch.nan, 0.2, torch.nan, 0.6, 0.4])
    for higher, order in ((True, [3, 4, 1]), (False, [1, 4, 3])):
        found = gallery.choose(unknown, 1, higher)
        assert found == {"best": order[:1], "median": order[1:2], "worst": order[2:]}
    nothing = {"best": [], "median": [], "worst": []}
    assert gallery.choose(torch.full((4,), torch.nan), 2) == nothing


def test_scores_by_hand():
    """An empty mask that is found empty is all right; of an unknown one nothing can be said."""
    table = {
        "loss": torch.tensor([[0, 1], [0.1, 1], [0.9, 1], [0.8, 1], [0, 0]]),
        "iou": torch.tensor([[0, 0], [4, 4], [0, 3], [1, 4], [0, 0]]),
        "background_iou": torch.tensor([[9, 9], [5, 5], [3, 6], [4, 8], [0, 0]]),
    }
    table = {name: pairs.double() for name, pairs in table.items()}
    expected = torch.tensor([1.0, 1.0, 0.0, 0.25, torch.nan]).double()
    assert torch.allclose(sample_scores(table, SEG), expected, equal_nan=True)
    by_mean = SEG.__class__(None, None, None, "miou", means=SEG.means)
    expected = torch.tensor([1.0, 1.0, 0.25, 0.375, torch.nan]).double()
    assert torch.allclose(sample_scores(table, by_mean), expected, equal_nan=True)
    lower = SEG.__class__(None, None, None, "iou", higher_is_better=False)
    assert sample_scores(table, lower)[0] == 0


@pytest.mark.parametrize(("split", "count"), [("test", 2), ("val", 9)])
def test_a_sheet_of_a_finished_run(finished, shared_data, tmp_path, drawn, capsys, split, count):
    path, run = tmp_path / "sheet.png", finished["MTL_main"]
    flags = ["--split", split, "--count", str(count), "--out", str(path), "--device", "cpu"]
    assert gallery.main([str(run), str(shared_data), *flags]) == 0
    assert capsys.readouterr() == (f"{path}\n", "")
    record, shown = history(run), min(count, 5)
    width, height = Image.open(path).size
    assert width == pytest.approx(2 * shown * gallery.PANEL * gallery.DPI, abs=2)
    assert len(Image.open(path).convert("RGB").getcolors(width * height)) > 500
    best = record["best_epoch"] - 1
    expected = record["test"] if split == "test" else {k: v[best] for k, v in record["val"].items()}
    assert all(len(numbers) == shown for numbers in drawn["groups"].values())
    if count == 9:  # all samples are shown
        shares = [float(head.removeprefix("iou ")) for head in drawn["heads"].values()]
        assert sum(shares) / 5 == pytest.approx(expected["seg_image_iou"], abs=0.01)
    shapes = {task: tuple(v.shape) for task, v in next(iter(drawn["outputs"].values())).items()}
    assert shapes == {"seg": (1, 32, 32), "bbox": (4,), "bin": (1,)}


def test_a_stopped_run_by_a_metric_of_which_less_is_better(run_folder, shared_data, drawn, capsys):
    assert gallery.main([str(run_folder), str(shared_data), "--count", "7"]) == 0
    printed = capsys.readouterr()
    path = run_folder / "boxes_gallery.png"
    assert printed.out == f"{path}\n" and path.is_file()
    words = "the run is unfinished; these are the weights of epoch 1, the best of 2 out of 5"
    assert printed.err == f"{run_folder / 'boxes_last.pt'}: {words}\n"
    data = H5Dataset("test", shared_data)
    errors = [abs(0.75 - data[i][1]["bbox"][2].item()) for i in range(7)]
    assert drawn["groups"]["best"] == sorted(range(7), key=errors.__getitem__)
    assert drawn["heads"] == {i: f"error {errors[i]:.2f}" for i in range(7)}


def test_truth_on_the_left_and_prediction_on_the_right(run_folder, shared_data, monkeypatch):
    shown = []
    monkeypatch.setattr(
        pictures, "show", lambda axis, picture, title, fontsize: shown.append((picture, title))
    )
    assert gallery.main([str(run_folder), str(shared_data), "--count", "1"]) == 0
    (truth, head), (prediction, other) = shown[:2]  # of the best
    assert head.startswith("sample ") and head.endswith(": truth\n")
    assert other.startswith("error ")
    line = torch.tensor([230, 159, 0])[:, None]
    side = truth.shape[2]
    columns = [(p[:, side - 2] == line).all(0).nonzero() for p in (truth, prediction)]
    assert len(columns[0]) == 0 and columns[1].max() == 0.75 * side - 1  # the box 0, 0, 0.75, 1


def test_a_notebooks_backend_in_the_environment_does_no_harm():
    left = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [sys.executable, "-c", "import tools.gallery, engine.pictures"]
    subprocess.run(command, env=os.environ | left, cwd=ROOT, check=True)


def test_the_file_of_one_of_several_runs_in_a_folder(run_folder, shared_data, capsys):
    one = run_folder / "boxes_last.pt"
    (run_folder / "other_model_lite.pt").write_bytes(one.read_bytes())
    assert gallery.main([str(run_folder), str(shared_data)]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"gallery.py: {run_folder}: expected the folder of one run, with NAME_model_lite.pt or "
        "NAME_last.pt, found boxes_last.pt, other_model_lite.pt\n"
    )
    assert gallery.main([str(one), str(shared_data)]) == 0


def test_mistakes_end_in_one_line(run_folder, shared_data, data_folder, tmp_path, capsys):
    def message(*arguments):
        assert gallery.main([*map(str, arguments), "--out", str(tmp_path / "sheet.png")]) == 2
        printed = capsys.readouterr().err.splitlines()
        assert len([line for line in printed if "unfinished" not in line]) == 1
        assert not (tmp_path / "sheet.png").exists()
        return printed[-1]

    assert "NAME_model_lite.pt or NAME_last.pt, found none" in message(tmp_path, shared_data)
    assert "nowhere/test: no such folder" in message(run_folder, "nowhere")
    assert "RUN: expected a path, found an empty one" in message("", shared_data)
    assert "DATA: expected a path, found an empty one" in message(run_folder, "")
    fingerprints = [H5Dataset(split, shared_data).fingerprint() for split in ("test", "train")]
    (data_folder / "test").rename(data_folder / "old")
    (data_folder / "train").rename(data_folder / "test")  # as many as you like, but others
    assert message(run_folder, data_folder) == (
        f"gallery.py: {data_folder / 'test'}: expected the run's data, {fingerprints[0]}, found "
        f"{fingerprints[1]}"
    )
    for flags in (["--count", "0"], ["--count", "21"], ["--out", "sheet.pdf"], ["--split", "all"]):
        assert gallery.main([str(run_folder), str(shared_data), *flags]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_split_where_nothing_is_known(run_folder, shared_data, monkeypatch, capsys):
    monkeypatch.setattr(gallery, "sample_scores", lambda table, task: torch.full((7,), torch.nan))
    assert gallery.main([str(run_folder), str(shared_data)]) == 2
    error = f"{shared_data / 'test'}: expected a sample with known bbox, found none\n"
    assert capsys.readouterr().err.endswith(error)


def test_a_history_that_does_not_name_its_data(run_folder, shared_data, capsys):
    path = run_folder / "boxes_last.pt"
    content = torch.load(path)
    del content["about"]["data_fingerprint"]
    torch.save(content, path)
    assert gallery.main([str(path), str(shared_data)]) == 2
    assert "expected the run's data, which is not recorded, found" in (capsys.readouterr().err)
