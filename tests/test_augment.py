"""Augment against ways to move a picture that are not ours.

The maps that Augment draws are measured (augmented.py), and PIL moves pictures by them.
"""

import math

import numpy as np
import pytest
import torch
from augmented import (
    BOX,
    EVERYTHING,
    GEOMETRY,
    HEIGHT,
    MANY,
    OFF,
    TASKS,
    WIDTH,
    augment,
    fills,
    measured,
    photograph,
    spots,
    taken_apart,
)
from PIL import Image
from torchvision.transforms import v2

from parts.augment import Augment
from parts.targets import move_boxes

# -------------------------------------------------------------------------------------- geometry


INGREDIENTS = {  # setting: what it does, evenly between the two bounds
    "degrees": (40.0, {"rotation": (-40, 40)}),
    "scale": ((0.5, 1.6), {"zoom": (math.log(0.5), math.log(1.6))}),
    "stretch": (1.5, {"stretch": (-math.log(1.5), math.log(1.5))}),
    "shift": (0.15, {"shift x": (-0.15, 0.15), "shift y": (-0.15, 0.15)}),
}


@pytest.mark.parametrize("setting", INGREDIENTS)
def test_an_ingredient_acts_in_both_directions_and_alone(setting):
    value, acts = INGREDIENTS[setting]
    found = taken_apart(measured(augment(spots(), MANY, **{setting: value})[0]))
    for name, values in found.items():
        if name == "flip":
            assert 0.45 < (values < 0).float().mean() < 0.55
        elif name in acts:
            assert fills(values, *acts[name]), name
        else:
            assert values.abs().max() < (0.5 if name == "rotation" else 0.005), name


def warped(values, linear_map, fill):
    """PIL's bilinear warp of (H, W) by a map (2, 3) of input to output; outside is `fill`."""
    (height, width), margin = values.shape, 100
    values = np.pad(np.asarray(values, np.float32), margin, constant_values=fill)
    inverse = np.linalg.inv(np.vstack([linear_map, [0, 0, 1]]))
    inverse[:2, 2] += margin
    image = Image.fromarray(values)
    moved = image.transform((width, height), Image.AFFINE, inverse[:2].ravel(), Image.BILINEAR)
    return torch.from_numpy(np.array(moved))


def resized(values, side):
    """PIL's antialiased bilinear resize of (H, W)."""
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.array(image.resize(side[::-1], Image.BILINEAR))


@pytest.mark.parametrize("side", [None, (HEIGHT, WIDTH), (24, 32), (32, 32)])
def test_image_and_mask_move_as_pil_moves_them(side):
    height, width = side or (HEIGHT, WIDTH)
    size = (width / WIDTH, height / HEIGHT)
    maps = measured(augment(spots(4), 24, side=(4 * height, 4 * width), **GEOMETRY)[0], size, 4)
    image, mask = photograph()
    moved, targets = augment(image, 24, masks=mask.expand(24, -1, -1, -1), side=side, **GEOMETRY)
    assert moved.shape == (24, 3, height, width) and moved.dtype == torch.float32
    assert targets["seg"].shape == (24, 1, height, width) and targets["seg"].dtype == torch.uint8
    channels = [resized(channel, (height, width)) for channel in image]
    pet, unknown = (resized(mask[0] == value, (height, width)) for value in (1, 255))
    for i in range(24):
        expected = torch.stack([warped(channel, maps[i], 128) for channel in channels])
        difference = (moved[i] - expected).abs()
        assert difference.mean() < 0.3 and difference.quantile(0.99) < 2
        found, share = targets["seg"][i, 0], warped(unknown, maps[i], 0)
        balance = warped(pet, maps[i], 0) - (1 - share) / 2  # half of what is known
        known = share < 0.45
        assert (found[share > 0.55] == 255).all() and (found[known] != 255).all()
        assert (found[known & (balance > 0.05)] == 1).all()
        assert (found[known & (balance < -0.05)] == 0).all()
        assert (share > 0.55).any() and (known & (balance.abs() > 0.05)).float().mean() > 0.5


@pytest.mark.parametrize("side", [(HEIGHT, WIDTH), (24, 32), (32, 32)])
def test_a_resized_picture_is_moved_as_far_and_not_sheared(side):
    """Width and height stay at right angles, in pixels, though the image is oblong."""
    height, width = side
    moved = augment(spots(2), 300, side=(2 * height, 2 * width), **GEOMETRY)[0]
    maps = measured(moved, (width / WIDTH, height / HEIGHT), fine=2)
    assert torch.cosine_similarity(maps[:, :, 0], maps[:, :, 1]).abs().max() < 0.02
    found = taken_apart(maps, height, width)
    assert fills(found["rotation"], -25, 25) and fills(found["shift y"], -0.1, 0.1)


def test_with_everything_off_a_picture_is_itself_or_its_mirror_image():
    image, mask = photograph()
    boxes = torch.tensor([0.125, 0.25, 0.5, 1.0]).expand(20, 4)
    moved, targets = augment(image, 20, mask.expand(20, -1, -1, -1), boxes)
    mirrored = 0
    for i in range(20):
        flipped = bool((moved[i] - image).abs().max() > 1)
        mirrored += flipped
        expected = v2.functional.horizontal_flip(image) if flipped else image
        torch.testing.assert_close(moved[i], expected.float(), atol=0.01, rtol=0)
        expected = v2.functional.horizontal_flip(mask) if flipped else mask
        assert torch.equal(targets["seg"][i], expected)
        expected = [0.5, 0.25, 0.875, 1.0] if flipped else [0.125, 0.25, 0.5, 1.0]
        assert targets["bbox"][i].tolist() == pytest.approx(expected, abs=1e-6)
    assert 4 < mirrored < 16


# ----------------------------------------------------------------------------------------- boxes


def test_boxes_are_those_of_the_moved_ellipse_cut_to_the_frame():
    """Less than 0.7 of its area left in the frame, and a box is unknown."""
    settings = GEOMETRY | {"shift": 0.2}
    maps = measured(augment(spots(), 400, **settings)[0])
    inside = taken_apart(maps)["shift y"].abs() < 0.12  # the spots have not left the frame
    box = torch.tensor([0.1, 0.3, 0.35, 0.8])
    found = augment(spots(), 400, boxes=box.expand(400, 4), **settings)[1]["bbox"]
    angle = torch.linspace(0, 2 * math.pi, 1000).double()
    centre, radius = (box[:2] + box[2:]).double() / 2, (box[2:] - box[:2]).double() / 2
    rim = (centre + torch.stack([angle.cos(), angle.sin()], 1) * radius) * torch.tensor(
        [WIDTH, HEIGHT]
    )
    counts = {"whole": 0, "cut": 0, "unknown": 0}
    for linear_map, moved in zip(maps[inside], found[inside], strict=True):
        places = (rim @ linear_map[:, :2].T + linear_map[:, 2]) / torch.tensor([WIDTH, HEIGHT])
        whole = torch.cat([places.min(0).values, places.max(0).values])
        cut = whole.clamp(0, 1)
        share = (cut[2:] - cut[:2]).prod() / (whole[2:] - whole[:2]).prod()
        if abs(share - 0.7) < 0.02:
            continue
        counts["whole" if share == 1 else "cut" if share > 0.7 else "unknown"] += 1
        expected = cut.float() if share > 0.7 else torch.full((4,), torch.nan)
        torch.testing.assert_close(moved, expected, atol=0.015, rtol=0, equal_nan=True)
    assert min(counts.values()) > 15, counts


def test_a_box_needs_seven_tenths_of_its_area_in_the_frame():
    """Moved to the left by .29 and .31 of its width, and up in the same way."""
    box = torch.tensor([0.0, 0.0, 0.5, 0.5])
    for place in (0, 1):
        maps = torch.eye(3).repeat(2, 1, 1)
        maps[:, place, 2] = -torch.tensor([0.295, 0.305])  # of [-1, 1], so as many halves
        kept, lost = move_boxes(box.expand(2, 4), maps)
        expected = torch.tensor([0.0, 0.0, 0.5, 0.5])
        expected[2 + place] = 0.5 * 0.705
        torch.testing.assert_close(kept, expected)
        assert lost.isnan().all()


# ------------------------------------------------------------------------------------ generators


def whole(seed, count=8, **settings):
    """An augmented batch as one vector per sample."""
    image, mask = photograph()
    masks, boxes = mask.expand(count, -1, -1, -1), BOX.expand(count, 4)
    moved, targets = augment(image, count, masks, boxes, seed, **settings)
    parts = moved.flatten(1), targets["seg"].flatten(1), targets["bbox"]
    return torch.cat(parts, dim=1).nan_to_num(-7)


def test_one_generator_one_result_whatever_torchs_own_is_at():
    torch.manual_seed(1)
    first = whole(5, **EVERYTHING)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(whole(5, **EVERYTHING), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert (whole(6, **EVERYTHING) != first).any(1).all()


@pytest.mark.parametrize("setting", ["degrees", "scale", "stretch", "shift", "colour"])
def test_each_sample_and_batch_has_its_own_numbers(setting):
    samples = whole(5, count=16, **{setting: EVERYTHING[setting]})
    assert len(samples.unique(dim=0)) == 16
    generator, image = torch.Generator().manual_seed(0), spots()[None]
    targets = {"seg": image[:, :1] * 0, "bbox": BOX[None], "bin": torch.ones(1)}
    apply = Augment(TASKS, **OFF | {setting: EVERYTHING[setting]})
    first, second = (apply(image, targets, generator)[0] for _ in "ab")
    assert not torch.equal(first, second)


def test_the_data_stays_as_it_is():
    """What an in-memory split holds is not written to."""
    image, mask = photograph()
    images, masks, boxes = image.repeat(4, 1, 1, 1), mask.repeat(4, 1, 1, 1), BOX.repeat(4, 1)
    copies = images.clone(), masks.clone(), boxes.clone()
    for side in (None, (24, 32)):
        augment(images, masks=masks, boxes=boxes, side=side, **EVERYTHING)
    assert all(map(torch.equal, (images, masks, boxes), copies))
