"""The sheet of best, median and worst samples."""

import matplotlib.pyplot as plt
import pytest
import torch
from engine.cli import constants
from engine.loop import sample_scores
from running import history

import MTL_main
from tools import gallery
from tools.make_demo import make_demo


@pytest.fixture(autouse=True)
def same_constants(monkeypatch):
    """The tool gives the script the settings of the run; they are put back."""
    for name, value in constants(MTL_main).items():
        monkeypatch.setattr(MTL_main, name, value)


def test_choose_by_hand():
    scores = torch.tensor([0.5, 0.9, 0.1, 0.7, 0.3, 0.8, 0.2])
    assert gallery.choose(scores, 1) == {"best": [1], "median": [0], "worst": [2]}
    assert gallery.choose(scores, 2) == {"best": [1, 5], "median": [3, 0], "worst": [6, 2]}
    assert gallery.choose(scores[:2], 3) == {"best": [1, 0], "median": [1, 0], "worst": [1, 0]}


def test_an_empty_mask_that_is_found_empty_is_all_right():
    pairs = torch.tensor([[0, 0], [4, 4], [0, 3], [1, 4]], dtype=torch.float64)
    assert sample_scores(pairs).tolist() == [1.0, 1.0, 0.0, 0.25]


@pytest.mark.parametrize(("split", "count"), [("test", 2), ("val", 9)])
def test_a_sheet_of_a_run(finished, shared_data, tmp_path, monkeypatch, capsys, split, count):
    seen, draw_sheet, path = {}, gallery.draw_sheet, tmp_path / "sheet.png"

    def spy(path, groups, scores, dataset, outputs, tasks):
        seen.update(groups=groups, scores=scores, outputs=outputs)
        draw_sheet(path, groups, scores, dataset, outputs, tasks)

    monkeypatch.setattr(gallery, "draw_sheet", spy)
    run = finished["MTL_main"]
    flags = ["--split", split, "--count", str(count), "--out", str(path), "--device", "cpu"]
    assert gallery.main([str(run), str(shared_data), *flags]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert plt.imread(path).std() > 0.05
    record = history(run)
    best = record["best_epoch"] - 1
    expected = record["test"] if split == "test" else {k: v[best] for k, v in record["val"].items()}
    assert seen["scores"].mean().item() == pytest.approx(expected["seg_image_iou"], abs=1e-3)
    assert all(len(numbers) == min(count, 5) for numbers in seen["groups"].values())
    shapes = {task: tuple(v.shape) for task, v in next(iter(seen["outputs"].values())).items()}
    assert shapes == {"seg": (1, 32, 32), "bbox": (4,), "bin": (1,)}


def test_mistakes_end_in_one_line(finished, shared_data, tmp_path, capsys):
    run = finished["MTL_main"]

    def message(*arguments):
        assert gallery.main([*map(str, arguments), "--out", str(tmp_path / "sheet.png")]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1 and not (tmp_path / "sheet.png").exists()
        return printed

    assert "expected the folder of one run, with NAME_model_lite.pt, found none" in message(
        tmp_path, shared_data
    )
    assert "nowhere/test: no such folder" in message(run, "nowhere")
    make_demo(tmp_path / "other", side=32, counts=(1, 1, 2))
    assert "expected the data of the run, 7 test samples of (32, 32), found 2 of (32, 32)" in (
        message(run, tmp_path / "other")
    )
    for flags in (["--count", "0"], ["--out", "sheet.pdf"], ["--split", "all"]):
        with pytest.raises(SystemExit) as stopped:
            gallery.main([str(run), str(shared_data), *flags])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
