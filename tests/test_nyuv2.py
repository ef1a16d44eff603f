"""examples/nyuv2.py: losses and metrics by hand, and augmentation against computed views."""

import math

import numpy as np
import pytest
import torch
from cameras import transformed

from examples import nyuv2
from parts.augment import Augment
from parts.drawn_rooms import draw_camera, draw_room, render

TARGETS = {name: task.target for name, task in nyuv2.everything.items()}
NAN = math.nan


def ratios(task, output, target):
    """The metrics of a batch, as the run computes them for a split."""
    task = nyuv2.everything[task]
    sums = {name: table.sum(0) for name, table in task.metrics(output, target).items()}
    return task.ratios(sums)


def normal(x, y, z):
    return torch.tensor([x, y, z], dtype=torch.float32)[:, None]


# ------------------------------------------------------------------------------------- by hand


def test_segmentation_of_four_pixels():
    """Class 0 where class 0 is, twice; class 2 where class 1 is; one pixel unknown."""
    logits = torch.zeros(1, 13, 1, 4)
    for pixel, number in enumerate((0, 0, 2, 5)):
        logits[0, number, 0, pixel] = 2.0
    target = torch.tensor([0, 0, 1, 255], dtype=torch.uint8).view(1, 1, 1, 4)
    found = ratios("seg", logits, target)
    assert found["pixel_accuracy"] == pytest.approx(2 / 3)
    assert (found["iou_bed"], found["iou_books"], found["iou_ceiling"]) == (1, 0, 0)
    assert math.isnan(found["iou_furniture"])  # was predicted for the unknown pixel only
    assert found["miou"] == pytest.approx(1 / 3)
    total = 12 + math.exp(2)
    expected = (2 * (math.log(total) - 2) + math.log(total)) / 3
    assert nyuv2.everything["seg"].loss(logits, target).tolist() == pytest.approx([expected])


def test_depth_of_three_pixels():
    depth = torch.tensor([[1.5, 4.0, 9.0]]).view(1, 1, 1, 3)
    target = torch.tensor([[1.0, 5.0, NAN]]).view(1, 1, 1, 3)
    found = ratios("depth", depth, target)
    assert found["absolute_error"] == pytest.approx((0.5 + 1) / 2)
    assert found["relative_error"] == pytest.approx((0.5 / 1 + 1 / 5) / 2)
    assert nyuv2.everything["depth"].loss(depth, target).tolist() == pytest.approx([0.75])


def test_normals_of_five_pixels():
    """Angles of 0, 10, 20, 25 and 90 degrees; the sixth is not known; no length matters."""
    angles = [math.radians(degrees) for degrees in (0, 10, 20, 25, 90, 0)]
    output = torch.stack([normal(3 * math.sin(a), 0, -3 * math.cos(a)) for a in angles], 2)
    target = torch.stack([normal(0, 0, -1)] * 5 + [normal(NAN, NAN, NAN)], 2)
    output, target = output[None], target[None]
    found = ratios("normals", output, target)
    assert found["mean_angle"] == pytest.approx(145 / 5, rel=1e-5)
    assert found["median_angle"] == pytest.approx(20, rel=1e-5)
    assert (found["within_11"], found["within_22"], found["within_30"]) == (0.4, 0.6, 0.8)
    expected = 1 - sum(math.cos(a) for a in angles[:5]) / 5
    assert nyuv2.normals_loss(output, target).tolist() == pytest.approx([expected], rel=1e-5)


def test_the_median_is_that_of_each_image_and_of_two_middle_pixels_their_mean():
    angles = torch.tensor([[[10.0, 20.0, 40.0, 70.0]], [[1.0, 2.0, 9.0, 3.0]], [[5.0] * 4]])
    known = torch.tensor([[[1, 1, 1, 1]], [[1, 1, 1, 0]], [[0, 0, 0, 0]]]).bool()
    median, there = nyuv2.medians(angles, known)
    assert median.tolist() == [[30], [2], [0]] and there.tolist() == [[True], [True], [False]]


def test_an_exact_answer_has_no_angle_and_none_at_all_is_at_right_angles():
    target = torch.nn.functional.normalize(torch.randn(1, 3, 8, 8), dim=1)
    assert ratios("normals", 0.01 * target, target)["mean_angle"] < 1e-3
    assert ratios("normals", 0 * target, target)["mean_angle"] == pytest.approx(90)


@pytest.mark.parametrize("task", TARGETS)
def test_what_is_unknown_has_no_loss_no_gradient_and_no_vote(task):
    torch.manual_seed(0)
    kind, channels = TARGETS[task], {"seg": 13, "depth": 1, "normals": 3}[task]
    known = {
        "seg": torch.randint(0, 13, (1, 1, 4, 6), dtype=torch.uint8),
        "depth": torch.rand(1, 1, 4, 6) + 1,
        "normals": torch.nn.functional.normalize(torch.randn(1, 3, 4, 6), dim=1),
    }[task]
    unknown = kind.batch(kind.unknown(1, (4, 6)))
    half = torch.cat([known[..., :3], unknown[..., 3:]], dim=3)
    target = torch.cat([known, half, unknown])
    output = torch.randn(3, channels, 4, 6, requires_grad=True)
    losses = nyuv2.everything[task].loss(output, target)
    losses.sum().backward()
    assert losses.dtype == torch.float32 and losses.isfinite().all() and losses[2] == 0
    assert (output.grad[0] != 0).any() and (output.grad[1, ..., :3] != 0).any()
    assert (output.grad[1, ..., 3:] == 0).all() and (output.grad[2] == 0).all()
    alone = nyuv2.everything[task].loss(output[1:2, ..., :3], known[..., :3])
    torch.testing.assert_close(losses[1:2], alone)
    for name, table in nyuv2.everything[task].metrics(output, target).items():
        assert table.dtype == torch.float64 and table.isfinite().all() and name
        assert table[2].tolist() == [0, 0]
        own = nyuv2.everything[task].metrics(output[1:2, ..., :3], known[..., :3])[name]
        torch.testing.assert_close(table[1:2], own, rtol=1e-6, atol=1e-9)


# -------------------------------------------------------------- augmentation of scenes' geometry


class Recorded(Augment):
    """An augmentation that keeps its maps."""

    def draw_affine(self, *arguments):
        self.maps = super().draw_affine(*arguments)
        return self.maps


def augmented(view, count, **limits):
    """(targets, maps (B, 3, 3)) of copies of a View that augmentation moves."""
    limits = {"degrees": 0, "scale": (1, 1), "stretch": 1, "shift": 0} | limits
    augment = Recorded(nyuv2.everything, **limits, colour=0, erase=0)
    arrays = {
        "seg": torch.from_numpy(view.classes.astype(np.uint8))[None],
        "depth": torch.from_numpy(view.depth).float()[None],
        "normals": torch.from_numpy(view.normals).float().permute(2, 0, 1),
    }
    targets = {name: array[None].repeat(count, 1, 1, 1) for name, array in arrays.items()}
    images = torch.from_numpy(view.image).permute(2, 0, 1)[None].repeat(count, 1, 1, 1)
    _, targets = augment(images, targets, torch.Generator().manual_seed(0))
    return targets, augment.maps


def computed(room, camera, maps):
    """The View of a camera that sees what a map of [-1, 1] coordinates makes of the image."""
    half = np.array(camera.side[::-1]) / 2
    maps = maps.double().numpy()
    linear = maps[:2, :2] * half[:, None] / half
    return render(room, transformed(camera, linear, maps[:2, 2] * half))


def agreement(targets, number, view):
    """{task: share of the known pixels that are as computed} of one sample."""
    seg, depth, normals = (targets[task][number].numpy() for task in TARGETS)
    known = seg[0] != 255
    assert np.array_equal(known, ~np.isnan(depth[0])) and known.mean() > 0.2
    cosine = (np.moveaxis(normals, 0, -1) * view.normals).sum(-1)[known]
    return {
        "seg": (seg[0] == view.classes)[known].mean(),
        "depth": np.isclose(depth[0], view.depth, rtol=0.02)[known].mean(),
        "normals": (cosine > 1 - 1e-5).mean(),
    }


@pytest.fixture(scope="module")
def seen():
    rng = np.random.default_rng(2)
    room = draw_room(rng)
    return room, draw_camera(rng, room, (96, 128))


@pytest.mark.parametrize(
    "limits",
    [
        {"degrees": 180},
        {"scale": (0.6, 2)},
        {"shift": 0.3},
        {"degrees": 30, "scale": (1, 1.5), "shift": 0.1},
    ],
)
def test_augmentation_gives_what_the_moved_camera_sees(seen, limits):
    """But for half a pixel at the edges of things; half of the samples are flipped too."""
    room, camera = seen
    targets, maps = augmented(render(room, camera), 8, **limits)
    assert {True, False} == set((torch.linalg.det(maps) < 0).tolist())
    for number in range(8):
        shares = agreement(targets, number, computed(room, camera, maps[number]))
        assert min(shares.values()) > 0.95, (number, shares)


def test_a_stretch_turns_normals_of_unit_length_and_keeps_the_area_of_the_zoom():
    turn = torch.tensor([[[0.6, -0.8], [0.8, 0.6]]])
    linear = turn @ torch.diag(torch.tensor([-2.0, 0.5]))
    normals = torch.tensor([0.36, 0.48, -0.8]).view(1, 3, 1, 1)
    found = nyuv2.move_normals(normals, linear).flatten()
    expected = (turn[0] @ torch.tensor([-0.36, 0.48])).tolist()
    assert found.tolist() == pytest.approx([*expected, -0.8])
    assert nyuv2.move_depth(torch.full((1, 1, 1, 1), 3.0), 4 * linear).item() == pytest.approx(0.75)


def test_normals_of_a_mirrored_image_are_mirrored_back():
    rng = np.random.default_rng(0)
    room = draw_room(rng)
    camera = draw_camera(rng, room, (32, 32))
    plain, flipped = (
        torch.from_numpy(render(room, one).normals).permute(2, 0, 1)[None]
        for one in (camera, transformed(camera, [[-1, 0], [0, 1]]))
    )
    torch.testing.assert_close(nyuv2.everything["normals"].mirror(flipped), plain)
