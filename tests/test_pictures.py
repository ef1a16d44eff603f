"""The pictures: what is drawn and said, what is left out, and the marks of the best epoch."""

import importlib
from itertools import pairwise

import matplotlib.pyplot as plt
import pytest
import torch

from engine import pictures

NAMES = ("cat", "dog")
IMAGE = torch.full((3, 32, 48), 90, dtype=torch.uint8)


def sample(box=(0.25, 0.5, 0.5, 1.0), label=1.0):
    mask = torch.zeros(1, 32, 48, dtype=torch.uint8)
    mask[:, 8:20, 10:30] = 1
    return {"seg": mask, "bbox": torch.tensor(box), "bin": torch.tensor(label)}


def outputs():
    mask = torch.full((1, 32, 48), -3.0)
    mask[:, 8:20, 12:30] = 3.0
    return {"seg": mask, "bbox": torch.tensor([0.2, 0.5, 0.5, 0.9]), "bin": torch.tensor([-2.0])}


@pytest.fixture
def tasks():
    return importlib.import_module("MTL_main").TASKS


@pytest.fixture
def figures(monkeypatch):
    """The figures a picture function saves, kept open to be looked into."""
    saved = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: saved.append(figure))
    yield saved
    plt.close("all")


METRICS = {"seg_loss": 0.1, "seg_iou": 0.9, "seg_image_iou": 0.8, "bbox_iou": 0.75, "bin_loss": 1.0}


def test_truth_and_prediction_are_told_in_the_titles(tasks, figures):
    pictures.save_test_picture("x.png", IMAGE, sample(), outputs(), METRICS, tasks, NAMES)
    titles = [axis.get_title() for axis in figures[0].axes]
    assert titles[0] == "image"
    assert titles[1] == "truth: dog"
    assert titles[2] == "prediction: cat, probability 0.88\nseg IoU 0.90, bbox IoU 0.75"
    boxes = [[patch.get_bbox().bounds for patch in axis.patches] for axis in figures[0].axes]
    assert boxes[0] == []
    assert boxes[1] == [pytest.approx((11.5, 15.5, 12, 16))]  # pixel centres are whole numbers
    assert boxes[2] == [pytest.approx((9.1, 15.5, 14.4, 12.8), abs=1e-5)]
    tint = figures[0].axes[2].images[1].get_alpha()
    assert tint[10, 20] == pytest.approx(0.45) and tint[0, 0] == 0


def test_what_a_network_does_not_predict_is_absent(tasks, figures):
    only = {"seg": tasks["seg"]}
    metrics = {"seg_iou": 0.9}
    predicted = {"seg": outputs()["seg"]}
    pictures.save_test_picture("x.png", IMAGE, sample(), predicted, metrics, only, NAMES)
    titles = [axis.get_title() for axis in figures[0].axes]
    assert titles == ["image", "truth", "prediction\nseg IoU 0.90"]
    assert not any(axis.patches for axis in figures[0].axes)


def test_unknown_targets_are_named(tasks, figures):
    unknown = sample(box=(torch.nan,) * 4, label=-1.0)
    metrics = METRICS | {"bbox_iou": float("nan")}
    pictures.save_test_picture("x.png", IMAGE, unknown, outputs(), metrics, tasks, NAMES)
    titles = [axis.get_title() for axis in figures[0].axes]
    assert titles[1] == "truth: box unknown, class unknown"
    assert titles[2].endswith("\nseg IoU 0.90")
    assert not figures[0].axes[1].patches and figures[0].axes[2].patches


def test_long_class_names_stay_in_their_panel(tasks, figures):
    names = ("a cat of the European shorthair breed", "a dog of the German shepherd breed")
    pictures.save_test_picture("x.png", IMAGE, sample(), outputs(), METRICS, tasks, names)
    figure = figures[0]
    figure.canvas.draw()
    ends = [axis.title.get_window_extent() for axis in figure.axes]
    assert all(left.x1 < right.x0 for left, right in pairwise(ends))
    left, _, right, top = figure.bbox.extents
    assert all(end.x0 >= left and end.x1 <= right and end.y1 <= top for end in ends)


def test_an_empty_mask_is_drawn_without_an_outline(tasks, figures):
    empty = sample() | {"seg": torch.zeros(1, 32, 48)}
    pictures.save_test_picture("x.png", IMAGE, empty, outputs(), METRICS, tasks, NAMES)
    assert figures[0].axes[1].images[1].get_alpha().max() == 0
    assert not figures[0].axes[1].collections and figures[0].axes[2].collections


HISTORY = {
    "best_epoch": 2,
    "train": {"seg_loss": [0.9, 0.5, 0.4]},
    "val": {"seg_loss": [0.8, 0.6, 0.7], "seg_iou": [0.3, 0.7, 0.6]},
}


def test_the_best_epoch_is_marked_on_both_panels(figures):
    pictures.save_loss_picture("x.png", HISTORY, "seg")
    left, right = figures[0].axes
    assert [axis.get_xlabel() for axis in (left, right)] == ["epoch", "epoch"]
    assert [axis.get_ylabel() for axis in (left, right)] == ["seg loss", "seg IoU"]
    curves = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert curves["training, augmented"] == [[1, 0.9], [2, 0.5], [3, 0.4]]
    assert curves["validation"] == [[1, 0.8], [2, 0.6], [3, 0.7]]
    assert curves["best epoch, 2: 0.600"] == [[2, 0.6]]
    curves = {line.get_label(): line.get_xydata().tolist() for line in right.lines}
    assert curves["validation"] == [[1, 0.3], [2, 0.7], [3, 0.6]]
    assert curves["best epoch, 2: 0.700"] == [[2, 0.7]]


def test_the_files_are_pictures_of_at_least_800_pixels(tasks, tmp_path):
    test, loss = tmp_path / "test.png", tmp_path / "loss.png"
    pictures.save_test_picture(test, IMAGE, sample(), outputs(), METRICS, tasks, NAMES)
    pictures.save_loss_picture(loss, HISTORY, "seg")
    for path in (test, loss):
        picture = plt.imread(path)
        assert picture.shape[1] >= 800 and picture[..., :3].std() > 0.05
    assert not plt.get_fignums()
