"""Measuring the tasks' gradients: the numbers, no effect on training, several processes."""

import math
from dataclasses import replace

import matplotlib.image
import pytest
import torch
from running import history, load, run, same, stopped
from torch import nn

from engine.processes import Processes
from engine.training import TrainingStep, conflict, known_counts, means, rows_of
from MTL_Utils import BBOX, BIN, FixedWeights
from parts.gradients import GradientWeights, equal_norms, upgrad

TASKS = {"bbox": BBOX, "bin": BIN}
EXAMPLE = "examples/weighting"


class Toy(nn.Module):
    """Features 3 x of a number x; a box and a logit that both depend on them."""

    def encoder(self, image):
        return [3 * image]

    def decode(self, features):
        (x,) = features  # (B, 1)
        return {"bbox": torch.cat([0 * x, 0 * x, x, x], dim=1), "bin": x[:, 0]}

    def forward(self, image):
        return self.decode(self.encoder(image))


def look(step, images, targets, counts):
    return step(images, targets, torch.tensor(counts), True)


def test_inner_products_by_hand():
    """With respect to x, the class loss log(1 + exp(-x)) has the gradient -sigmoid(-x), and the
    box is given by a loss of slope 1 in both corners."""
    corner_sum = replace(BBOX, loss=lambda box, target: box[:, 2:].sum(1))
    step = TrainingStep(Toy(), TASKS | {"bbox": corner_sum}, FixedWeights({"bbox": 1, "bin": 1}))
    x = torch.tensor([[0.1], [0.2]], requires_grad=True)
    targets = {"bbox": torch.rand(2, 4), "bin": torch.ones(2)}
    _, _, matrix = look(step, x, targets, [2.0, 2.0])
    slopes = [-1 / (1 + math.exp(3 * value)) / 2 for value in (0.1, 0.2)]  # of the mean
    expected = [[2.0, slopes[0] + slopes[1]], [0, slopes[0] ** 2 + slopes[1] ** 2]]
    expected[1][0] = expected[0][1]
    torch.testing.assert_close(matrix, torch.tensor(expected))


def test_a_task_without_a_known_target_has_no_gradient_and_no_vote():
    weighting = GradientWeights({"bbox": 1.0, "bin": 1.0}, upgrad)
    step = TrainingStep(Toy(), TASKS, weighting)
    x = torch.tensor([[0.1], [0.2]], requires_grad=True)
    targets = {"bbox": torch.full((2, 4), torch.nan), "bin": torch.ones(2)}
    total, _, matrix = step(x, targets, torch.tensor([0.0, 2.0]))
    assert matrix[0].tolist() == [0.0, 0.0] and matrix[1, 1] > 0
    assert float(weighting.weights()["bbox"]) == 0 and total.isfinite()


@pytest.mark.parametrize("order", [("bbox", "bin"), ("bin", "bbox")])
def test_each_task_gets_its_own_weight_in_whatever_order_they_are_given(order):
    """Of gradients that end up equally long; the second time the boxes are unknown."""
    weighting = GradientWeights(dict.fromkeys(order, 1.0), equal_norms)
    step = TrainingStep(Toy(), TASKS, weighting)
    x = torch.tensor([[0.1], [0.2]], requires_grad=True)
    targets = {"bbox": torch.tensor([[0.0, 0.0, 0.5, 0.5]] * 2), "bin": torch.ones(2)}
    total, sums, matrix = step(x, targets, torch.tensor([2.0, 2.0]))
    weights = weighting.weights()
    lengths = [float(weights[task]) * matrix[i, i].sqrt() for i, task in enumerate(TASKS)]
    assert weights["bbox"] < 0.8 < 1.2 < weights["bin"]
    assert lengths[0].item() == pytest.approx(lengths[1].item())
    expected = sum(float(weights[task]) * sums[i] / 2 for i, task in enumerate(TASKS))
    assert total.item() == pytest.approx(expected.item())
    targets["bbox"][:] = torch.nan
    step(x, targets, torch.tensor([0.0, 2.0]))
    assert {task: float(w) for task, w in weighting.weights().items()} == {"bbox": 0, "bin": 1}


def test_the_means_of_an_epoch_by_hand():
    """Two looks at two tasks; in the second the other task knows nothing."""
    matrices = [[4.0, 3.0], [3.0, 9.0]], [[16.0, 0.0], [0.0, 0.0]]
    first, last = ({"products": torch.tensor(matrix)} for matrix in matrices)
    found = conflict(TASKS, rows_of(TASKS, [first, {"norm": torch.tensor(1.0)}, last]))
    assert found["cosine"] == pytest.approx({("bbox", "bin"): 0.5})
    assert found["norm"] == pytest.approx({"bbox": 3.0, "bin": 3.0})
    assert math.isnan(conflict(TASKS, [{"norm": 1.0}])["norm"]["bin"])


def test_steps_become_rows_with_names(monkeypatch):
    step = {"loss": torch.tensor([6.0, 1.0]), "known": torch.tensor([3.0, 0.0])}
    step["norm"] = torch.tensor(0.5)
    products = {"products": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()}
    transfers, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: transfers.append(t) or tolist(t))
    rows = rows_of(TASKS, [step, step | products])
    assert len(transfers) == 1
    plain = {"loss": {"bbox": 6.0, "bin": 1.0}, "known": {"bbox": 3.0, "bin": 0.0}, "norm": 0.5}
    names = ("bbox", "bbox"), ("bbox", "bin"), ("bin", "bbox"), ("bin", "bin")
    named = dict(zip(names, (1.0, 2.0, 3.0, 4.0), strict=True))
    assert rows == [plain, plain | {"products": named}]
    assert known_counts(TASKS, rows) == {"bbox": 6, "bin": 0}
    found = means(TASKS, rows)
    assert found["bbox"] == 2.0 and math.isnan(found["bin"])


def test_a_diagnosed_run_learns_the_same(finished, shared_data, tmp_path):
    for script in ("MTL_main", "MTL_OEQ"):
        out, name = tmp_path / script, script.removeprefix("MTL_")
        run(script, shared_data, out, "--diagnose", "2")
        found, plain = history(out, name), history(finished[script], name)
        seen = found.pop("conflict")
        assert {len(series) for kind in seen.values() for series in kind.values()} == {3}
        assert all(-1 <= value <= 1 for value in seen["cosine"]["seg", "bin"])
        assert all(value > 0 for value in seen["norm"]["bbox"])
        for part in ("train", "val", "test", "best_epoch"):
            assert same(found[part], plain[part])
        assert matplotlib.image.imread(out / f"{name}_conflict.png").std() > 0.05
        assert not (finished[script] / f"{name}_conflict.png").exists()


def test_a_run_under_gradient_weights_resumes_bit_for_bit(shared_data, tmp_path, without_pictures):
    flags = ("--method", "upgrad", "--diagnose", "2")
    run(EXAMPLE, shared_data, tmp_path / "whole", *flags)
    weights = history(tmp_path / "whole", "weighting")["train"]
    assert weights["seg_weight"] != [1.0] * 3  # they have moved
    stopped(EXAMPLE, shared_data, tmp_path / "out", *flags)
    rows = load(tmp_path / "out" / "weighting_last.pt")["rows"]
    assert ["products" in row for row in rows] == [True, False]
    run(EXAMPLE, shared_data, tmp_path / "out", *flags, "--resume")
    pair = (load(tmp_path / name / "weighting_last.pt") for name in ("whole", "out"))
    assert same(*(state | {"about": None} for state in pair))


@pytest.mark.parametrize("method", ["uncertainty", "dwa", "random", "inverse_loss", "pcgrad"])
def test_every_kind_of_weighting_trains(shared_data, tmp_path, without_pictures, method):
    run(EXAMPLE, shared_data, tmp_path, "--method", method, "--epochs", "1")
    assert history(tmp_path, "weighting")["test"]["seg_iou"] >= 0


def test_an_unknown_method_is_refused(shared_data, tmp_path):
    printed = run(EXAMPLE, shared_data, tmp_path / "out", "--method", "magic", code=2)
    assert printed.startswith("weighting.py: --method: expected one of fixed, uncertainty, dwa")
    assert printed.count("\n") == 1 and not (tmp_path / "out").exists()
    flags = ["--method", "uncertainty", "--loss-weights", "bin=0"]
    assert run(EXAMPLE, shared_data, tmp_path / "out", *flags, code=2) == (
        "weighting.py: --loss-weights: expected numbers above 0 with uncertainty weighting, found "
        "{'seg': 1.0, 'bbox': 0.3, 'bin': 0.0}\n"
    )


def test_processes_add_up_their_inner_products():
    """Half of a batch each, the means over both halves: the matrix of the whole batch."""
    x = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    targets = {"bbox": torch.tensor([[0.0, 0.0, 0.5, 0.5]] * 4), "bin": torch.ones(4)}
    targets["bbox"][1] = torch.nan
    whole = TrainingStep(Toy(), TASKS, FixedWeights({"bbox": 1, "bin": 1}))
    _, _, expected = look(whole, x.clone().requires_grad_(), targets, [3.0, 4.0])
    halves = Processes({})
    halves.size, halves.sum, total = 2, lambda matrix: matrix, 0
    step = TrainingStep(Toy(), TASKS, FixedWeights({"bbox": 1, "bin": 1}), halves)
    for part in (slice(0, 2), slice(2, 4)):
        mine = {name: target[part] for name, target in targets.items()}
        total += look(step, x[part].clone().requires_grad_(), mine, [1.5, 2.0])[2]
    torch.testing.assert_close(total, expected)
