"""The pictures: what they say, what they leave out, and the marks of the best epoch."""

import math
from dataclasses import replace
from itertools import pairwise

import matplotlib.image
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import parts.figures
from engine import pictures, results
from MTL_Utils import BBOX, BIN, SEG

NAMES = {"seg": ("background", "pet"), "bbox": (), "bin": ("cat", "dog")}
TASKS = {"seg": SEG, "bbox": BBOX, "bin": BIN}
IMAGE = torch.full((3, 32, 48), 90, dtype=torch.uint8)
SCORES = {"seg iou": 0.9, "bbox iou": 0.75, "bin accuracy": float("nan")}


def sample(box=(0.25, 0.5, 0.5, 1.0), label=1.0):
    mask = torch.zeros(1, 32, 48, dtype=torch.uint8)
    mask[:, 8:20, 10:30] = 1
    return {"seg": mask, "bbox": torch.tensor(box), "bin": torch.tensor(label)}


def outputs():
    mask = torch.full((1, 32, 48), -3.0)
    mask[:, 8:20, 12:30] = 3.0
    return {"seg": mask, "bbox": torch.tensor([0.2, 0.5, 0.5, 0.9]), "bin": torch.tensor([-2.0])}


@pytest.fixture
def figures(monkeypatch):
    """The figures that a picture function saves."""
    saved = []
    for module in (pictures, parts.figures):
        monkeypatch.setattr(module, "save", lambda figure, path: saved.append(figure))
    return saved


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


def test_truth_and_prediction_are_told_in_the_titles(figures):
    pictures.save_test_picture("x.png", IMAGE, sample(), outputs(), SCORES, TASKS, NAMES)
    assert titles(figures[0]) == [
        "image",
        "truth: dog",
        "prediction: cat, probability 0.88\nseg iou 0.90, bbox iou 0.75",
    ]
    plain, truth, prediction = (axis.images[0].get_array() for axis in figures[0].axes)
    assert plain.shape == (480, 720, 3) and (plain == 90).all()  # 15-fold: at least 450 pixels
    inside, outside = (14 * 15, 20 * 15), (2 * 15, 2 * 15)
    assert (truth[inside] == 90).all() and (truth[outside] < 60).all()  # darker
    assert truth[14 * 15, 10 * 15].tolist() == [0, 114, 178]  # a blue outline
    assert (truth != prediction).any()


def test_what_a_network_does_not_predict_is_absent(figures):
    only, predicted = {"seg": SEG}, {"seg": outputs()["seg"]}
    pictures.save_test_picture("x.png", IMAGE, sample(), predicted, {"seg iou": 0.9}, only, NAMES)
    assert titles(figures[0]) == ["image", "truth", "prediction\nseg iou 0.90"]


def test_unknown_targets_are_named(figures):
    unknown = sample(box=(torch.nan,) * 4, label=-1.0)
    pictures.save_test_picture("x.png", IMAGE, unknown, outputs(), SCORES, TASKS, NAMES)
    assert titles(figures[0])[1] == "truth: box unknown, class unknown"


@pytest.mark.parametrize("primary", ["iou", "miou"])
def test_the_test_picture_is_the_median_of_the_samples_with_a_known_mask(monkeypatch, primary):
    shown = []
    monkeypatch.setattr(pictures, "save_test_picture", lambda path, *content: shown.append(content))
    iou = torch.tensor([[9, 10], [0, 0], [5, 10], [0, 0], [7, 10]]).double()
    loss = torch.tensor([[1, 1], [0, 0], [1, 1], [0, 0], [1, 1]]).double()
    table = {"seg": {"loss": loss, "iou": iou, "background_iou": iou}}

    class Split:
        def __getitem__(self, numbers):
            return torch.stack([IMAGE * 0 + n for n in numbers]), {"seg": sample()["seg"][None]}

    tasks = {"seg": replace(SEG, primary=primary)}

    def network(images):
        return {"seg": outputs()["seg"][None]}

    results._draw_median(network, tasks, table, Split(), {"class_names": NAMES}, "x.png")
    ((image, _, _, scores, *_),) = shown
    assert image.unique().tolist() == [4] and scores == {f"seg {primary}": 0.7}


def test_long_class_names_stay_in_their_panel(figures):
    long = ("a cat of the European shorthair breed", "a dog of the German shepherd breed")
    names = NAMES | {"bin": long}
    pictures.save_test_picture("x.png", IMAGE, sample(), outputs(), SCORES, TASKS, names)
    figure = figures[0]
    FigureCanvasAgg(figure).draw()
    ends = [axis.title.get_window_extent() for axis in figure.axes]
    assert all(left.x1 < right.x0 for left, right in pairwise(ends))
    left, _, right, top = figure.bbox.extents
    assert all(end.x0 >= left and end.x1 <= right and end.y1 <= top for end in ends)


HISTORY = {
    "best_epoch": 2,
    "train": {"seg_loss": [0.9, 0.5, 0.4]},
    "val": {"seg_loss": [0.8, 0.6, 0.7], "seg_iou": [0.3, 0.7, 0.6]},
}


def curves(axis):
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines}


def test_the_best_epoch_is_marked_on_both_panels(figures):
    pictures.save_loss_picture("x.png", HISTORY, "seg", SEG)
    left, right = figures[0].axes
    assert [axis.get_xlabel() for axis in (left, right)] == ["epoch", "epoch"]
    assert [axis.get_ylabel() for axis in (left, right)] == ["seg loss", "seg iou"]
    assert curves(left)["training, augmented"] == [[1, 0.9], [2, 0.5], [3, 0.4]]
    assert curves(left)["validation"] == [[1, 0.8], [2, 0.6], [3, 0.7]]
    assert curves(left)["best epoch, 2: 0.600"] == [[2, 0.6]]
    assert curves(right)["validation"] == [[1, 0.3], [2, 0.7], [3, 0.6]]
    assert curves(right)["best epoch, 2: 0.700"] == [[2, 0.7]]


def test_the_starting_weights_are_epoch_0_of_the_curves(figures):
    start = {"seg_loss": 0.5, "seg_iou": 0.8}
    pictures.save_loss_picture("x.png", HISTORY | {"start": start, "best_epoch": 0}, "seg", SEG)
    left, right = figures[0].axes
    assert curves(left)["training, augmented"] == [[1, 0.9], [2, 0.5], [3, 0.4]]
    assert curves(left)["validation"] == [[0, 0.5], [1, 0.8], [2, 0.6], [3, 0.7]]
    assert curves(right)["best epoch, 0: 0.800"] == [[0, 0.8]]


def test_agreement_and_length_of_gradients_have_a_panel_each(figures):
    found = {"cosine": {("sea floor", "b"): [0.5, -0.5]}}
    found["norm"] = {"sea floor": [2.0, 1.0], "b": [0.1, 0.2]}
    parts.figures.save_conflict_picture("x.png", found)
    left, right = figures[0].axes
    assert curves(left)["sea floor and b"] == [[1, 0.5], [2, -0.5]]
    assert curves(right)["sea floor"] == [[1, 2.0], [2, 1.0]] and right.get_yscale() == "log"
    assert parts.figures.smoothed([1.0] * 20) == [1.0] * 20  # of 20 values, the mean of three
    found = parts.figures.smoothed([0.0, 3.0, 0.0, math.nan, math.nan, math.nan, *[9.0] * 14])
    assert found[:4] == [1.5, 1.0, 1.5, 0.0] and math.isnan(found[4]) and found[5:] == [9.0] * 15


def test_a_users_matplotlibrc_and_class_names_with_dollars(tmp_path):
    with matplotlib.rc_context({"text.usetex": True, "font.family": "No Such Font"}):
        record = {"best_epoch": 1, "train": {"seg_loss": [1.0]}}
        record["val"] = {"seg_loss": [1.0], "seg_iou": [0.5]}
        pictures.save_loss_picture(tmp_path / "x.png", record, "seg", SEG)
        names = NAMES | {"bin": ("a$", "b$_{")}
        pictures.save_test_picture(tmp_path / "y.png", IMAGE, sample(), {}, {}, TASKS, names)
    assert matplotlib.image.imread(tmp_path / "x.png").std() > 0.05


def test_the_files_are_pictures_of_at_least_800_pixels(tmp_path):
    test, loss = tmp_path / "test.png", tmp_path / "loss.png"
    pictures.save_test_picture(test, IMAGE, sample(), outputs(), SCORES, TASKS, NAMES)
    pictures.save_loss_picture(loss, HISTORY, "seg", SEG)
    for path in (test, loss):
        picture = matplotlib.image.imread(path)
        assert picture.shape[1] >= 800 and picture[..., :3].std() > 0.05
