"""Losses and metrics against numbers worked out by hand and against torch and torchvision."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.ops import distance_box_iou_loss

from MTL_Utils import (
    Task,
    bbox_known,
    bbox_loss,
    bbox_metrics,
    bin_known,
    bin_loss,
    bin_metrics,
    class_known,
    class_loss,
    class_metrics,
    distance_iou,
    seg_known,
    seg_loss,
    seg_metrics,
)

NAN = math.nan
SEG = Task(seg_loss, seg_metrics, seg_known, "iou", means={"miou": ("iou", "background_iou")})
BBOX = Task(bbox_loss, bbox_metrics, bbox_known, "iou")
BIN = Task(
    bin_loss,
    bin_metrics,
    bin_known,
    "accuracy",
    means={"balanced_accuracy": ("recall_0", "recall_1")},
)
CLASS = Task(class_loss, class_metrics, class_known, "accuracy")


def pooled(task, output, target):
    return task.ratios({name: p.sum(0) for name, p in task.metrics(output, target).items()})


def half_known():
    """{task: (task, output, target)}; sample 1 is unknown in each, sample 0 of seg in part."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[[[1, 255], [0, 1]]], [[[255, 255], [255, 255]]]], dtype=torch.uint8)
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.3, 0.1, 0.7, 0.9]])
    box = torch.tensor([[0.2, 0.2, 0.6, 0.5], [0.1, NAN, 0.4, 0.5]])
    return {
        "seg": (SEG, torch.randn(2, 1, 2, 2, generator=generator), mask),
        "bbox": (BBOX, boxes, box),
        "bin": (BIN, torch.randn(2, generator=generator), torch.tensor([1.0, -1.0])),
        "class": (CLASS, torch.randn(2, 3, generator=generator), torch.tensor([2, -1])),
    }


# ------------------------------------------------------------------------------------------ Task


def test_known_is_each_tasks_own_rule():
    masks = torch.full((3, 1, 2, 2), 255, dtype=torch.uint8)
    masks[0, 0, 1, 1] = 0
    masks[2] = 1
    assert seg_known(masks).tolist() == [True, False, True]
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [NAN] * 4, [0.1, NAN, 0.5, 0.5], [-1.0, 0, 0, 1]])
    assert bbox_known(boxes).tolist() == [True, False, False, True]
    assert bin_known(torch.tensor([1.0, -1.0, 0.0, NAN])).tolist() == [True, False, True, False]
    assert class_known(torch.tensor([36, -1, 0])).tolist() == [True, False, True]


def test_a_task_alone_draws_and_tells_nothing_and_mirrors_by_doing_nothing():
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    drawn, words = BBOX.draw(image, torch.zeros(4), ["cat", "dog"])
    assert drawn is image
    assert words == ""
    assert BBOX.describe(torch.zeros(4), (2, 2), ["cat", "dog"]) == {}
    assert BBOX.mirror(image) is image
    assert BBOX.reference is None
    assert BBOX.higher_is_better
    with pytest.raises(AttributeError):
        BBOX.primary = "other"


def test_ratios_are_of_any_names_and_means_only_where_the_task_says_so():
    sums = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([3.0, 4.0])}
    assert BBOX.ratios(sums) == {"a": 0.25, "b": 0.75}
    task = Task(None, None, None, "m", means={"m": ("a", "b")})
    assert task.ratios(sums) == {"a": 0.25, "b": 0.75, "m": 0.5}
    values = task.ratios(sums | {"b": torch.zeros(2)})
    assert values["a"] == 0.25
    assert math.isnan(values["b"])
    assert math.isnan(values["m"])


# ------------------------------------------------------------------------------- what is unknown


@pytest.mark.parametrize("name", ["seg", "bbox", "bin", "class"])
def test_an_unknown_sample_has_no_loss_no_gradient_and_no_metric(name):
    task, output, target = half_known()[name]
    output.requires_grad_()
    loss = task.loss(output, target)
    assert loss.shape == (2,)
    assert loss.dtype == torch.float32
    assert loss[0] > 0
    assert loss[1] == 0
    loss.sum().backward()
    assert output.grad[0].abs().sum() > 0
    assert (output.grad[1] == 0).all()
    for pairs in task.metrics(output.detach(), target).values():
        assert pairs.shape == (2, 2)
        assert pairs.dtype == torch.float64
        assert pairs[1].tolist() == [0, 0]
    assert task.known(target).tolist() == [True, False]


@pytest.mark.parametrize("name", ["seg", "bbox", "bin", "class"])
def test_what_the_network_says_of_an_unknown_sample_changes_nothing(name):
    task, output, target = half_known()[name]
    other = output.clone()
    other[1] = output[1].flip(0) - 1
    torch.testing.assert_close(task.loss(output, target), task.loss(other, target), rtol=0, atol=0)
    before, after = task.metrics(output, target), task.metrics(other, target)
    assert all(torch.equal(before[metric], after[metric]) for metric in before)


def test_unknown_pixels_change_nothing_and_get_no_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 8, 8, generator=generator)
    target = (torch.rand(3, 1, 8, 8, generator=generator) > 0.5).to(torch.uint8)
    unknown = torch.rand(3, 1, 8, 8, generator=generator) > 0.5
    target[unknown] = 255
    flipped = torch.where(unknown, -logits * 1000, logits).requires_grad_()
    expected = torch.stack(
        [  # the known pixels alone, as an image of their own
            seg_loss(
                logits[i][~unknown[i]].view(1, 1, 1, -1), target[i][~unknown[i]].view(1, 1, 1, -1)
            )
            for i in range(3)
        ]
    )[:, 0]
    loss = seg_loss(flipped, target)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert (flipped.grad[unknown] == 0).all()
    assert (flipped.grad[~unknown] != 0).all()
    before, after = seg_metrics(logits, target), seg_metrics(flipped, target)
    assert all(torch.equal(before[metric], after[metric]) for metric in before)


def test_all_losses_and_metrics_of_nothing_known_are_zero_and_nan():
    for task, output, target in half_known().values():
        output, target = output[1:].requires_grad_(), target[1:]
        loss = task.loss(output, target)
        loss.sum().backward()
        assert loss.item() == 0
        assert (output.grad == 0).all()
        assert all(math.isnan(value) for value in pooled(task, output, target).values())


def test_losses_and_metrics_make_a_gpu_never_wait():
    """Under FakeTensorMode and on the meta device whatever asks for a value raises."""
    with FakeTensorMode():
        for task, output, target in (
            (SEG, torch.rand(2, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)),
            (BBOX, torch.rand(2, 4), torch.rand(2, 4)),
            (BIN, torch.rand(2), torch.rand(2)),
            (CLASS, torch.rand(2, 3), torch.zeros(2, dtype=torch.int64)),
        ):
            output, target = output.to("cuda"), target.to("cuda")
            assert task.loss(output, target).shape == (2,)
            assert task.known(target).shape == (2,)
            assert all(p.shape == (2, 2) for p in task.metrics(output, target).values())
    for task, output, target in half_known().values():
        output = output.to("meta").requires_grad_()
        loss = task.loss(output, target.to("meta"))
        loss.sum().backward()
        assert loss.shape == (2,)
        assert output.grad.shape == output.shape


# --------------------------------------------------------------------------------- segmentation


def test_seg_metrics_by_hand():
    """Image 0: 1 of 3 foreground pixels right, 1 false; image 1: both empty."""
    logits = torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]]], [[[-1.0] * 2] * 2]])
    target = torch.tensor([[[[1, 0], [1, 1]]], [[[0, 0], [0, 0]]]])
    assert pooled(SEG, logits, target) == pytest.approx(
        {
            "iou": 1 / 4,
            "image_iou": (1 / 4 + 1) / 2,
            "background_iou": 4 / 7,
            "miou": (1 / 4 + 4 / 7) / 2,
            "dice": 2 / 5,
            "pixel_accuracy": 5 / 8,
        }
    )


def test_seg_metrics_with_unknown_pixels_by_hand():
    """Of image 0, right 1 and 0, wrong 1 and 0 are known; image 1 is unknown."""
    logits = torch.tensor([[[[1.0, -1.0, -1.0], [1.0, 1.0, -1.0]]], [[[1.0] * 3] * 2]])
    target = torch.tensor([[[[1, 0, 1], [0, 255, 255]]], [[[255] * 3] * 2]])
    assert pooled(SEG, logits, target) == pytest.approx(
        {
            "iou": 1 / 3,
            "image_iou": 1 / 3,
            "background_iou": 1 / 3,
            "miou": 1 / 3,
            "dice": 2 / 4,
            "pixel_accuracy": 2 / 4,
        }
    )
    assert seg_metrics(logits, target)["pixel_accuracy"].tolist() == [[2, 4], [0, 0]]


def test_seg_loss_by_hand():
    logits = torch.zeros(1, 1, 2, 2)
    target = torch.tensor([[[[1, 0], [0, 0]]]])
    dice = (2 * 0.5 + 1) / (2 + 1 + 1)
    assert seg_loss(logits, target).item() == pytest.approx(math.log(2) + 1 - dice)
    target[0, 0, 1, 1] = 255
    dice = (2 * 0.5 + 1) / (1.5 + 1 + 1)
    assert seg_loss(logits, target).item() == pytest.approx(math.log(2) + 1 - dice)
    perfect = torch.where(target == 1, 50.0, -50.0)
    assert seg_loss(perfect, target).item() == pytest.approx(0, abs=1e-6)


def test_seg_loss_of_known_masks_is_on_average_the_entropy_of_all_pixels_and_the_mean_dice_loss():
    logits = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    target = (logits.roll(1, 3) > 0).to(torch.uint8)
    entropy = F.binary_cross_entropy_with_logits(logits, target.float())
    p, t = logits.sigmoid(), target.float()
    dice = (2 * (p * t).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + t.sum((1, 2, 3)) + 1)
    torch.testing.assert_close(seg_loss(logits, target).mean(), entropy + (1 - dice).mean())


# ------------------------------------------------------------------------------------------- box


def test_bbox_metrics_by_hand():
    """IoU 1/3 and 1 where known; the unknown one does not count."""
    boxes = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.1, 0.1, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]])
    target = torch.tensor([[0.2, 0.0, 0.6, 0.4], [0.1, 0.1, 0.5, 0.5], [NAN] * 4])
    assert pooled(BBOX, boxes, target) == pytest.approx(
        {"iou": (1 / 3 + 1) / 2, "iou_above_half": 0.5}
    )


def test_bbox_loss_by_hand():
    """IoU 1/3, centres 0.2 apart, enclosing diagonal^2 0.52, corners 0.2 off in two coordinates."""
    boxes = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.3, 0.3, 0.6, 0.7]])
    target = torch.tensor([[0.2, 0.0, 0.6, 0.4], [0.3, 0.3, 0.6, 0.7]])
    expected = [1 - 1 / 3 + 0.04 / 0.52 + 0.4, 0]
    assert bbox_loss(boxes, target).tolist() == pytest.approx(expected, abs=1e-5)


def test_distance_iou_and_its_gradient_are_torchvisions():
    corners = torch.rand(2, 500, 2, 2, generator=torch.Generator().manual_seed(0))
    boxes, others = torch.cat([corners.amin(2), corners.amax(2)], dim=2)  # (500, 4), half overlap
    boxes.requires_grad_()
    ours, theirs = distance_iou(boxes, others), 1 - distance_box_iou_loss(boxes, others)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    gradients = (torch.autograd.grad(each.sum(), boxes)[0] for each in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------------------------- labels


def test_bin_metrics_and_loss_by_hand():
    logits = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0, 9.0])
    target = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, -1.0])
    assert pooled(BIN, logits, target) == pytest.approx(
        {
            "accuracy": 3 / 5,
            "recall_0": 1 / 2,
            "recall_1": 2 / 3,
            "balanced_accuracy": 7 / 12,
        }
    )
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    expected = [right, wrong, right, right, wrong, 0]
    assert bin_loss(logits, target).tolist() == pytest.approx(expected)


def test_class_metrics_and_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(2), 0.0], [0.0, 0.0, math.log(2)], [9.0, 0.0, 0.0]])
    target = torch.tensor([1, 0, -1])
    assert pooled(CLASS, logits, target) == {"accuracy": 1 / 2}
    assert class_loss(logits, target).tolist() == pytest.approx([math.log(2), math.log(4), 0])
