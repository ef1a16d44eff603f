"""Losses and metrics against numbers worked out by hand and against torch and torchvision."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.ops import distance_box_iou_loss

from MTL_Utils import (
    BBOX,
    BIN,
    SEG,
    Task,
    bbox_loss,
    bin_loss,
    bin_metrics,
    class_loss,
    class_metrics,
    distance_iou,
    pixel_class_loss,
    pixel_class_metrics,
    seg_loss,
    seg_metrics,
    value_loss,
    value_metrics,
)
from parts.targets import Label, PixelClasses, PixelValues, Values

NAN = math.nan
CLASS = Task(Label("x", 3), class_loss, class_metrics, "accuracy")
PARTS = Task(
    PixelClasses("x", 3), pixel_class_loss, pixel_class_metrics, "miou",
    means={"miou": ("iou_0", "iou_1", "iou_2")},
)  # fmt: skip
MAP = Task(PixelValues("x", 2), value_loss, value_metrics, "absolute_error", False)
VALUE = Task(Values("x"), value_loss, value_metrics, "absolute_error", False)
ALL = ("seg", "bbox", "bin", "class", "parts", "map", "value")


def pooled(task, output, target):
    return task.ratios({name: p.sum(0) for name, p in task.metrics(output, target).items()})


def half_known():
    """{task: (task, output, target)}; sample 1 is unknown in each, sample 0 of seg in part."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[[[1, 255], [0, 1]]], [[[255, 255], [255, 255]]]], dtype=torch.uint8)
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.3, 0.1, 0.7, 0.9]])
    box = torch.tensor([[0.2, 0.2, 0.6, 0.5], [0.1, NAN, 0.4, 0.5]])
    values = torch.tensor([[[[9.0, NAN]], [[NAN, NAN]]], [[[NAN, NAN]], [[NAN, NAN]]]])
    return {
        "seg": (SEG, torch.randn(2, 1, 2, 2, generator=generator), mask),
        "bbox": (BBOX, boxes, box),
        "bin": (BIN, torch.randn(2, generator=generator), torch.tensor([1.0, -1.0])),
        "class": (CLASS, torch.randn(2, 3, generator=generator), torch.tensor([2, -1])),
        "parts": (PARTS, torch.randn(2, 3, 2, 2, generator=generator), mask + (mask == 1)),
        "map": (MAP, torch.randn(2, 2, 1, 2, generator=generator), values),
        "value": (VALUE, torch.rand(2, generator=generator), torch.tensor([[2.0], [NAN]])),
    }


# ------------------------------------------------------------------------------------------ Task


def test_ratios_are_of_any_names_and_means_only_where_the_task_says_so():
    sums = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([3.0, 4.0])}
    assert BBOX.ratios(sums) == {"a": 0.25, "b": 0.75}
    task = replace(BBOX, means={"m": ("a", "b")})
    assert task.ratios(sums) == {"a": 0.25, "b": 0.75, "m": 0.5}
    values = task.ratios(sums | {"b": torch.zeros(2)})  # the mean of those that are defined
    assert values["a"] == values["m"] == 0.25 and math.isnan(values["b"])
    assert math.isnan(task.ratios({"a": torch.zeros(2), "b": torch.zeros(2)})["m"])


# ------------------------------------------------------------------------------- what is unknown


@pytest.mark.parametrize("name", ALL)
def test_an_unknown_sample_has_no_loss_no_gradient_and_no_metric(name):
    """Beside a known one, whatever the network says of it, or alone."""
    task, output, target = half_known()[name]
    other = output.clone()
    other[1] = output[1].flip(0) - 1
    output.requires_grad_()
    loss, table = task.loss(output, target), task.metrics(output.detach(), target)
    assert loss.shape == (2,) and loss.dtype == torch.float32 and loss[0] > 0 and loss[1] == 0
    loss.sum().backward()
    assert output.grad[0].abs().sum() > 0 and (output.grad[1] == 0).all()
    assert torch.equal(loss, task.loss(other, target))
    for metric, pairs in task.metrics(other, target).items():
        assert pairs.shape == (2, 2) and pairs.dtype == torch.float64
        assert pairs[1].tolist() == [0, 0] and torch.equal(pairs, table[metric])
    assert task.known(target).tolist() == [True, False]
    alone = output.detach()[1:].requires_grad_()
    loss = task.loss(alone, target[1:])
    loss.sum().backward()
    assert loss.item() == 0 and (alone.grad == 0).all()
    assert all(math.isnan(value) for value in pooled(task, alone, target[1:]).values())


def test_unknown_pixels_change_nothing_and_get_no_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 8, 8, generator=generator)
    target = (torch.rand(3, 1, 8, 8, generator=generator) > 0.5).to(torch.uint8)
    unknown = torch.rand(3, 1, 8, 8, generator=generator) > 0.5
    target[unknown] = 255
    flipped = torch.where(unknown, -logits * 1000, logits).requires_grad_()
    loss = seg_loss(flipped, target)
    for i, known in enumerate(~unknown):  # the known pixels alone, as an image of their own
        alone = (each[i][known].view(1, 1, 1, -1) for each in (logits, target))
        torch.testing.assert_close(loss[i], seg_loss(*alone)[0])
    loss.sum().backward()
    assert (flipped.grad[unknown] == 0).all()
    assert (flipped.grad[~unknown] != 0).all()
    before, after = seg_metrics(logits, target), seg_metrics(flipped, target)
    assert all(torch.equal(before[metric], after[metric]) for metric in before)


def test_losses_and_metrics_make_a_gpu_never_wait():
    """Under FakeTensorMode and on the meta device whatever asks for a value raises."""
    known = half_known()
    with FakeTensorMode() as mode:
        for task, output, target in known.values():
            output, target = (mode.from_tensor(each).to("cuda") for each in (output, target))
            assert task.loss(output, target).shape == (2,)
            assert task.known(target).shape == (2,)
            assert all(p.shape == (2, 2) for p in task.metrics(output, target).values())
    for task, output, target in known.values():
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
    assert pooled(SEG, logits, target) == pytest.approx({
        "iou": 1 / 4, "image_iou": (1 / 4 + 1) / 2, "background_iou": 4 / 7,
        "miou": (1 / 4 + 4 / 7) / 2, "dice": 2 / 5, "pixel_accuracy": 5 / 8,
    })  # fmt: skip


def test_seg_metrics_with_unknown_pixels_by_hand():
    """Of image 0, right 1 and 0, wrong 1 and 0 are known; image 1 is unknown."""
    logits = torch.tensor([[[[1.0, -1.0, -1.0], [1.0, 1.0, -1.0]]], [[[1.0] * 3] * 2]])
    target = torch.tensor([[[[1, 0, 1], [0, 255, 255]]], [[[255] * 3] * 2]])
    expected = dict.fromkeys(("iou", "image_iou", "background_iou", "miou"), 1 / 3)
    expected |= {"dice": 2 / 4, "pixel_accuracy": 2 / 4}
    assert pooled(SEG, logits, target) == pytest.approx(expected)
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
        {"accuracy": 3 / 5, "recall_0": 1 / 2, "recall_1": 2 / 3, "balanced_accuracy": 7 / 12}
    )
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    expected = [right, wrong, right, right, wrong, 0]
    assert bin_loss(logits, target).tolist() == pytest.approx(expected)


def test_class_metrics_and_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(2), 0.0], [0.0, 0.0, math.log(2)], [9.0, 0.0, 0.0]])
    target = torch.tensor([1, 0, -1])
    assert pooled(CLASS, logits, target) == {"accuracy": 1 / 2}
    assert class_loss(logits, target).tolist() == pytest.approx([math.log(2), math.log(4), 0])


# ------------------------------------------------------------------- classes and values per pixel


def test_metrics_of_several_classes_are_those_of_the_confusion_matrix():
    """Rows are the truth: sample 0 has class 0 four times, of which 3 are found, and so on."""
    first = [[3, 1, 0, 0], [0, 2, 2, 0], [1, 0, 3, 0], [0, 0, 0, 0]]
    second = [[5, 0, 0, 1], [0, 0, 1, 0], [0, 0, 4, 0], [0, 0, 0, 1]]
    logits, target = [], []
    for matrix in (first, second):
        pairs = [(t, p) for t in range(4) for p in range(4) for _ in range(matrix[t][p])]
        pairs += [(255, p) for p in range(4)]  # unknown pixels do not count
        truth, predicted = torch.tensor(pairs).T
        target.append(truth.view(1, 4, 4).byte())
        logits.append(F.one_hot(predicted, 4).T.reshape(4, 4, 4).float())
    logits, target = torch.stack(logits), torch.stack(target)
    found = pixel_class_metrics(logits, target)
    pairs = [[3, 5], [5, 6]], [[2, 5], [0, 1]], [[3, 6], [4, 5]], [[0, 0], [1, 2]]
    assert [found[f"iou_{n}"].tolist() for n in range(4)] == [*pairs]
    assert found["pixel_accuracy"].tolist() == [[8, 12], [10, 12]]
    parts = {"miou": ("iou_0", "iou_1", "iou_2", "iou_3")}
    task = replace(PARTS, target=PixelClasses("x", 4), means=parts)
    ious = [8 / 11, 2 / 6, 7 / 11, 1 / 2]  # pooled over both samples
    values = pooled(task, logits, target)
    assert values["miou"] == pytest.approx(sum(ious) / 4)
    assert values["pixel_accuracy"] == pytest.approx(18 / 24)
    first = pooled(task, logits[:1], target[:1])  # where class 3 does not occur
    assert math.isnan(first["iou_3"])
    assert first["miou"] == pytest.approx((3 / 5 + 2 / 5 + 1 / 2) / 3)


def test_the_loss_of_several_classes_is_the_mean_over_the_known_pixels():
    logits = torch.zeros(2, 3, 1, 3)
    logits[0, 1, 0, 1] = math.log(2)  # probabilities 1/4, 2/4, 1/4
    target = torch.tensor([[[[2, 1, 255]]], [[[255, 255, 255]]]], dtype=torch.uint8)
    expected = [(math.log(3) + math.log(2)) / 2, 0]
    assert pixel_class_loss(logits, target).tolist() == pytest.approx(expected)


def test_loss_and_metrics_of_values_are_means_over_the_known_ones():
    output = torch.tensor([[[[1.0, 2]], [[3, 4]]], [[[1, 1]], [[1, 1]]]])  # (2, 2, 1, 2)
    target = torch.tensor([[[[2.0, NAN]], [[NAN, 1]]], [[[NAN, NAN]], [[NAN, 6]]]])
    assert value_loss(output, target).tolist() == [(1 + 3) / 2, 5]
    assert value_metrics(output, target)["absolute_error"].tolist() == [[4, 2], [5, 1]]
    assert pooled(MAP, output, target) == {"absolute_error": (4 + 5) / 3}


def test_masks_and_labels_are_cut_at_a_probability_of_one_half():
    logits, truth = torch.tensor([0.01, 0.0]), torch.ones(2)  # of 0.0 neither is likelier
    assert bin_metrics(logits, truth)["accuracy"].tolist() == [[1, 1], [0, 1]]
    found = seg_metrics(logits.view(1, 1, 1, 2), truth.view(1, 1, 1, 2).byte())
    assert found["iou"].tolist() == [[1, 2]]


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_value_may_be_an_output_with_or_without_a_second_dimension(shape):
    output, target = torch.tensor([1.0, 2, 3]).view(shape), torch.tensor([2.0, NAN, 7])
    for truth in (target, target[:, None]):
        assert value_loss(output, truth).tolist() == [1, 0, 4]
        assert value_metrics(output, truth)["absolute_error"].tolist() == [[1, 1], [0, 0], [4, 1]]
