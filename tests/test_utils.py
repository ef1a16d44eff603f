"""Losses, metrics and weightings against numbers worked out by hand and against torchvision."""

import math

import pytest
import torch
from torchvision.ops import distance_box_iou_loss

from MTL_Utils import (
    DynamicWeightAverage,
    FixedWeights,
    UncertaintyWeights,
    bbox_loss,
    bbox_metrics,
    bin_loss,
    bin_metrics,
    distance_iou,
    known,
    ratios,
    seg_loss,
    seg_metrics,
)

NAN = math.nan


def pooled(metrics, task):
    return ratios({f"{task}_{name}": pairs.sum(0) for name, pairs in metrics.items()})


def test_known_is_neither_nan_nor_negative():
    assert known(torch.tensor([1.0, -1.0, 0.0, NAN])).tolist() == [True, False, True, False]
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [NAN] * 4])
    assert known(boxes).tolist() == [True, False]
    assert known(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)).tolist() == [True, True]


def test_seg_metrics_by_hand():
    """Image 0: 1 of 3 foreground pixels right, 1 false; image 1: both empty."""
    logits = torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]]], [[[-1.0] * 2] * 2]])
    target = torch.tensor([[[[1, 0], [1, 1]]], [[[0, 0], [0, 0]]]])
    values = pooled(seg_metrics(logits, target), "seg")
    assert values == pytest.approx(
        {
            "seg_iou": 1 / 4,
            "seg_image_iou": (1 / 4 + 1) / 2,
            "seg_background_iou": 4 / 7,
            "seg_miou": (1 / 4 + 4 / 7) / 2,
            "seg_dice": 2 / 5,
            "seg_pixel_accuracy": 5 / 8,
        }
    )


def test_seg_loss_by_hand():
    logits = torch.zeros(1, 1, 2, 2)
    target = torch.tensor([[[[1, 0], [0, 0]]]])
    dice = (2 * 0.5 + 1) / (2 + 1 + 1)
    assert seg_loss(logits, target).item() == pytest.approx(math.log(2) + 1 - dice)
    perfect = torch.where(target > 0, 50.0, -50.0)
    assert seg_loss(perfect, target).item() == pytest.approx(0, abs=1e-6)


def test_bbox_metrics_by_hand():
    """IoU 1/3 and 1 where known; the unknown one does not count."""
    boxes = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.1, 0.1, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]])
    target = torch.tensor([[0.2, 0.0, 0.6, 0.4], [0.1, 0.1, 0.5, 0.5], [NAN] * 4])
    values = pooled(bbox_metrics(boxes, target), "bbox")
    assert values == pytest.approx({"bbox_iou": (1 / 3 + 1) / 2, "bbox_iou_above_half": 0.5})


def test_bbox_loss_by_hand():
    """IoU 1/3, centres 0.2 apart, enclosing diagonal^2 0.52, corners 0.2 off in two coordinates."""
    boxes = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.3, 0.3, 0.6, 0.7]], requires_grad=True)
    target = torch.tensor([[0.2, 0.0, 0.6, 0.4], [NAN] * 4])
    loss = bbox_loss(boxes, target)
    assert loss.item() == pytest.approx(1 - 1 / 3 + 0.04 / 0.52 + 0.4, abs=1e-5)
    loss.backward()
    assert boxes.grad[0].abs().sum() > 0
    assert boxes.grad[1].tolist() == [0, 0, 0, 0]


def test_bin_metrics_and_loss_by_hand():
    logits = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0, 9.0])
    target = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, -1.0])
    values = pooled(bin_metrics(logits, target), "bin")
    assert values == pytest.approx(
        {
            "bin_accuracy": 3 / 5,
            "bin_recall_0": 1 / 2,
            "bin_recall_1": 2 / 3,
            "bin_balanced_accuracy": 7 / 12,
        }
    )
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert bin_loss(logits, target).item() == pytest.approx((3 * right + 2 * wrong) / 5)


def test_nothing_known_is_no_loss_and_no_metric():
    boxes = torch.rand(2, 4, requires_grad=True)
    loss = bbox_loss(boxes, torch.full((2, 4), NAN)) + bin_loss(torch.zeros(2), -torch.ones(2))
    loss.backward()
    assert loss.item() == 0
    assert boxes.grad.tolist() == [[0] * 4] * 2
    assert math.isnan(pooled(bin_metrics(torch.zeros(2), -torch.ones(2)), "bin")["bin_accuracy"])


def test_distance_iou_and_its_gradient_are_torchvisions():
    corners = torch.rand(2, 500, 2, 2, generator=torch.Generator().manual_seed(0))
    boxes, others = torch.cat([corners.amin(2), corners.amax(2)], dim=2)  # (500, 4), half overlap
    boxes.requires_grad_()
    ours, theirs = distance_iou(boxes, others), 1 - distance_box_iou_loss(boxes, others)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    gradients = (torch.autograd.grad(each.sum(), boxes)[0] for each in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def losses(**values):
    return {task: torch.tensor(value) for task, value in values.items()}


def test_fixed_weights():
    assert FixedWeights({"seg": 1.0, "bin": 0.5})(losses(seg=2.0, bin=3.0)).item() == 3.5


def test_uncertainty_weights_settle_at_one_over_the_loss():
    weighting = UncertaintyWeights({"seg": 1.0, "bin": 0.5})
    total = weighting(losses(seg=2.0, bin=3.0))
    assert total.item() == pytest.approx(2 + 1.5 - math.log(0.5))
    optimiser = torch.optim.SGD(weighting.parameters(), lr=0.3)
    for _ in range(300):
        optimiser.zero_grad()
        weighting(losses(seg=2.0, bin=4.0)).backward()
        optimiser.step()
    weights = {task: weight.item() for task, weight in weighting.weights().items()}
    assert weights == pytest.approx({"seg": 0.5, "bin": 0.25}, rel=1e-3)


def test_dynamic_weight_average_favours_the_slower_task():
    weighting = DynamicWeightAverage({"seg": 1.0, "bin": 0.5})
    weighting.epoch_end({"seg": 2.0, "bin": 1.0})
    assert weighting(losses(seg=2.0, bin=1.0)).item() == pytest.approx(2.5)
    weighting.epoch_end({"seg": 1.0, "bin": 1.0})
    fast, slow = math.exp(0.5 / 2), math.exp(1 / 2)
    expected = {"seg": 2 * fast / (fast + slow), "bin": 0.5 * 2 * slow / (fast + slow)}
    weights = {task: weight.item() for task, weight in weighting.weights().items()}
    assert weights == pytest.approx(expected)


def test_dynamic_weight_average_of_a_task_that_knows_nothing_is_finite():
    weighting = DynamicWeightAverage({"seg": 1.0, "bbox": 0.5})
    for seg in (2.0, 1.0, 0.5):
        weighting.epoch_end({"seg": seg, "bbox": 0.0})
    assert all(0 < weight < 2 for weight in weighting.weights().values())
