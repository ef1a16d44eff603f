"""The sheet of best, median and worst samples."""

import re
from dataclasses import replace

import pytest
import torch
from boxes import errors, stopped_run
from PIL import Image
from running import history

from engine.evaluation import sample_scores
from MTL_Utils import SEG
from parts import figures
from tools import gallery


@pytest.fixture
def run(shared_data, tmp_path):
    """The checkpoint of a stopped run of MTL_boxes."""
    return stopped_run(tmp_path / "run", shared_data)


@pytest.fixture
def sheets(monkeypatch):
    """The figures that the tool saves."""
    seen, save = [], figures.save

    def spy(figure, path):
        seen.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures, "save", spy)
    return seen


def rows(sheet):
    """{group: titles of its panels}."""
    found = {}
    for axis in sheet.axes:
        if axis.get_ylabel():
            titles = found[axis.get_ylabel()] = []
        titles.append(axis.get_title())
    return found


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
        "loss": torch.tensor([[0, 1], [0.1, 1], [0.9, 1], [0.8, 1], [0, 0], [0.2, 1]]),
        "iou": torch.tensor([[0, 0], [4, 4], [0, 3], [1, 4], [0, 0], [2, 4]]),
        "background_iou": torch.tensor([[9, 9], [5, 5], [3, 6], [4, 8], [0, 0], [0, 0]]),
    }
    table = {name: pairs.double() for name, pairs in table.items()}
    expected = torch.tensor([1.0, 1.0, 0.0, 0.25, torch.nan, 0.5]).double()
    assert torch.allclose(sample_scores(table, SEG), expected, equal_nan=True)
    by_mean = replace(SEG, primary="miou")
    expected = torch.tensor([1.0, 1.0, 0.25, 0.375, torch.nan, 0.5]).double()
    assert torch.allclose(sample_scores(table, by_mean), expected, equal_nan=True)
    assert sample_scores(table, replace(SEG, higher_is_better=False))[0] == 0


@pytest.mark.parametrize(("split", "count"), [("test", 2), ("val", 9)])
def test_a_sheet_of_a_finished_run(finished, shared_data, tmp_path, sheets, capsys, split, count):
    path, run = tmp_path / "sheet.png", finished["MTL_main"]
    flags = ["--split", split, "--count", str(count), "--out", str(path), "--device", "cpu"]
    assert gallery.main([str(run), str(shared_data), *flags]) == 0
    assert capsys.readouterr() == (f"{path}\n", "")
    shown = min(count, 5)
    width, height = Image.open(path).size
    assert width == pytest.approx(2 * shown * gallery.PANEL * gallery.DPI, abs=2)
    assert len(Image.open(path).convert("RGB").getcolors(width * height)) > 500
    found = rows(sheets[0])
    assert {group: len(titles) for group, titles in found.items()} == dict.fromkeys(
        ("best", "median", "worst"), 2 * shown
    )
    for titles in found.values():
        for truth, prediction in zip(titles[::2], titles[1::2], strict=True):
            assert re.fullmatch(r"\d: truth\n(blue|red)", truth)
            assert re.fullmatch(r"prediction, iou \d\.\d\d\n(blue|red) \d\.\d\d\+?", prediction)
    if count == 9:  # all samples are shown
        record, best = history(run), history(run)["best_epoch"] - 1
        shares = [float(title[16:20]) for title in found["best"][1::2]]
        assert shares == sorted(shares, reverse=True)
        expected = record["val"]["seg_image_iou"][best]
        assert sum(shares) / 5 == pytest.approx(expected, abs=0.01)


def test_a_stopped_run_by_a_metric_of_which_less_is_better(run, shared_data, sheets, capsys):
    """A wrong class is red; the network always says blue, which every second sample is."""
    assert gallery.main([str(run.parent), str(shared_data), "--count", "4"]) == 0
    printed, path = capsys.readouterr(), run.parent / "boxes_gallery.png"
    assert printed.out == f"{path}\n" and path.is_file()
    words = "the run is unfinished; these are the weights of epoch 1, the best of 2 out of 5"
    assert printed.err == f"{run}: {words}\n"
    found, expected = errors(shared_data), []
    for number in sorted(range(7), key=found.__getitem__)[:4]:
        expected += [(f"{number}: truth\n{('blue', 'red')[number % 2]}", False)]
        expected += [(f"prediction, error {found[number]:.2f}\nblue 0.88", number % 2 == 1)]
    titles = [axis.title for axis in sheets[0].axes[:8]]
    assert [(t.get_text(), t.get_color() == "#B00000") for t in titles] == expected


def test_truth_on_the_left_and_prediction_on_the_right(run, shared_data, sheets):
    assert gallery.main([str(run), str(shared_data), "--count", "1"]) == 0
    truth, prediction = (axis.images[0].get_array() for axis in sheets[0].axes[:2])
    side, line = truth.shape[1], [230, 159, 0]
    columns = [(p[side - 3] == line).all(1).nonzero()[0] for p in (truth, prediction)]
    assert side >= figures.SHARP  # so that lines are thin
    assert (
        len(columns[0]) == 0
    )  # no true box reaches the lowest rows; the answer 0, 0, 0.75, 1 does
    assert columns[1].max() == 0.75 * side - 1


def test_the_file_of_one_of_several_runs_in_a_folder(run, shared_data, capsys):
    (run.parent / "other_model_lite.pt").write_bytes(run.read_bytes())
    assert gallery.main([str(run.parent), str(shared_data)]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"gallery.py: {run.parent}: expected the folder of one run, with NAME_model_lite.pt or "
        "NAME_last.pt, found boxes_last.pt, other_model_lite.pt\n"
    )
    assert gallery.main([str(run), str(shared_data), "--count", "1"]) == 0


def test_mistakes_end_in_one_line(run, shared_data, tmp_path, capsys):
    def message(*arguments):
        assert gallery.main([*map(str, arguments), "--out", str(tmp_path / "sheet.png")]) == 2
        printed = capsys.readouterr().err.splitlines()
        assert len([line for line in printed if "unfinished" not in line]) == 1
        assert not (tmp_path / "sheet.png").exists()
        return printed[-1]

    assert "NAME_model_lite.pt or NAME_last.pt, found none" in message(tmp_path, shared_data)
    assert "nowhere/test: no such folder" in message(run, "nowhere")
    assert "RUN: expected a path, found an empty one" in message("", shared_data)
    assert "DATA: expected a path, found an empty one" in message(run, "")
    for flags in (["--count", "0"], ["--count", "21"], ["--out", "sheet.pdf"], ["--split", "all"]):
        assert gallery.main([str(run), str(shared_data), *flags]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_split_where_nothing_is_known(run, data_folder, capsys):
    (data_folder / "test" / "bboxes.h5").unlink()
    assert gallery.main([str(run), str(data_folder)]) == 2
    error = f"{data_folder / 'test'}: expected a sample with known bbox, found none\n"
    assert capsys.readouterr().err.endswith(error)
