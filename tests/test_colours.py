"""How Augment changes colours and erases rectangles, against numbers and torchvision."""

import functools
import math

import torch
from augmented import (
    BOX,
    GEOMETRY,
    HEIGHT,
    MANY,
    WIDTH,
    augment,
    fills,
    measured,
    photograph,
    spots,
    taken_apart,
)
from torchvision.transforms import v2


def brightened(image, **settings):
    return augment(image, MANY, **settings)[0]


PAINTS = torch.tensor([[128, 128, 128], [148, 128, 128], [128, 148, 128], [128, 128, 148]])


@functools.cache
def colours(**settings):
    """What happens to the colours of an image, alike for all its pixels: {name: (MANY,)}.

    "brightness" is added; "red", "green" and "blue" are the gains of contrast and channel that
    grey shades see; "saturation" is what torchvision calls so.
    """
    bands = PAINTS.T.to(torch.uint8).repeat_interleave(12, 1)[..., None].expand(3, 48, WIDTH)
    moved = brightened(bands, **settings).unflatten(2, (4, 12))  # (B, 3, 4 bands, 12, W)
    middle = moved[:, :, :, 3:9]
    assert (middle.amax((3, 4)) - middle.amin((3, 4))).max() < 0.01
    found = middle.mean((3, 4))  # (B, 3 channels, 4 paints)
    brightness = found[:, :, 0] - 128
    assert (brightness - brightness[:, :1]).abs().max() < 0.01
    matrix = (found[:, :, 1:] - found[:, :, :1]) / 20  # (B, 3 out, 3 in)
    gains = matrix.sum(2)
    share = matrix[:, 0, 0] / gains[:, 0]
    saturation = (share - 0.299) / (1 - 0.299)
    names = ("red", "green", "blue")
    gains = dict(zip(names, gains.unbind(1), strict=True))
    return {"brightness": brightness[:, 0], "saturation": saturation} | gains


def test_brightness_and_saturation_go_up_and_down():
    found = colours(colour=0.4)
    assert fills(found["brightness"], -0.4 * 128, 0.4 * 128)
    assert fills(found["saturation"], 0.6, 1.4)


def test_contrast_goes_up_and_down():
    """Further than the channels alone would, whose gains are up to half as much."""
    found = colours(colour=0.4)
    gains = torch.stack([found["red"], found["green"], found["blue"]])
    assert gains.min() > 0.6 * 0.8 - 0.01 and gains.max() < 1.4 * 1.2 + 0.01
    alike = gains.log().mean(0).exp()
    assert alike.min() < 0.65 and alike.max() > 1.35
    assert 0.45 < (alike > 1).float().mean() < 0.55


def test_each_channel_has_its_own_gain():
    """The contrast leaves the ratio of two channels alone."""
    found = colours(colour=0.4)
    for one, other in (("red", "green"), ("green", "blue"), ("blue", "red")):
        ratio = found[one] / found[other]
        assert 0.8 / 1.2 - 0.01 < ratio.min() < 0.72 and 1.39 < ratio.max() < 1.2 / 0.8 + 0.01


def test_saturation_is_torchvisions():
    """Of paints without brightness, contrast and channel gains, which are divided out."""
    found = colours(colour=0.4)
    image, _ = photograph()
    image = image // 4 + 96  # so that no colour is cut off at 0 or 255
    moved = brightened(image, colour=0.4)
    flipped = taken_apart(measured(brightened(spots())))["flip"] < 0
    for i in range(20):
        gains = torch.stack([found[name][i] for name in ("red", "green", "blue")])[:, None, None]
        pixels = (moved[i] - 128 - found["brightness"][i]) / gains + 128
        expected = v2.functional.adjust_saturation(image / 255, found["saturation"][i].item()) * 255
        expected = expected.flip(2) if flipped[i] else expected
        torch.testing.assert_close(pixels, expected, atol=0.3, rtol=0)


def test_colours_are_cut_off_at_0_and_255():
    image, _ = photograph()
    moved = brightened((image > 128) * torch.tensor(255, dtype=torch.uint8), colour=0.4)
    assert moved.min() == 0 and moved.max() == 255


def test_what_comes_from_outside_is_background_and_grey_before_the_brightness_changes():
    white = torch.full((3, HEIGHT, WIDTH), 255, dtype=torch.uint8)
    masks = torch.ones(MANY, 1, HEIGHT, WIDTH, dtype=torch.uint8)
    moved, targets = augment(white, MANY, masks, scale=(0.5, 0.5), colour=0.4)
    brightness = colours(colour=0.4)["brightness"]
    expected = (128 + brightness)[:, None].expand(-1, 3)
    for corner in (moved[..., 0, 0], moved[..., 0, -1], moved[..., -1, 0], moved[..., -1, -1]):
        torch.testing.assert_close(corner, expected, atol=0.01, rtol=0)
    inner = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    inner[12:-12, 16:-16] = 1
    assert (targets["seg"] == inner).all()


# --------------------------------------------------------------------------------------- erasing


@functools.cache
def erased(**settings):
    """Bool (MANY, H, W): where images of one light shade have become grey."""
    moved = brightened(torch.full((3, HEIGHT, WIDTH), 200, dtype=torch.uint8), **settings)
    assert ((moved - 200).abs().lt(0.01) | (moved == 128)).all()
    assert moved.eq(moved[:, :1]).all()
    return moved[:, 0] == 128


def test_as_many_images_as_asked_for_lose_a_rectangle():
    assert not erased(erase=0.0).any()
    assert 0.25 < erased(erase=0.3).any((1, 2)).float().mean() < 0.35
    assert erased(erase=1.0).any((1, 2)).all()


def test_a_rectangle_has_a_tenth_of_the_area_any_shape_and_any_place():
    where = erased(erase=1.0)
    shapes, centres = [], []
    for mask in where:
        ys, xs = mask.nonzero(as_tuple=True)
        low, high = (xs.min(), ys.min()), (xs.max() + 1, ys.max() + 1)
        width, height = high[0] - low[0], high[1] - low[1]
        assert mask.sum() == width * height  # a full rectangle
        if min(low) > 0 and high[0] < WIDTH and high[1] < HEIGHT:
            shapes.append((width / WIDTH, height / HEIGHT))
            centres.append(((low[0] + high[0]) / 2, (low[1] + high[1]) / 2))
    shapes, centres = torch.tensor(shapes), torch.tensor(centres)
    assert len(shapes) > 150
    assert (shapes.prod(1) - 0.1).abs().max() < 0.02
    ratio = shapes[:, 0] / shapes[:, 1]
    assert 0.4 < ratio.min() < 0.6 and 1.7 < ratio.max() < 2.3
    often = where.float().mean(0)  # (H, W)
    assert often.min() > 0.01 and often.max() < 0.2  # corners too, and no place always
    assert torch.corrcoef(centres.T)[0, 1].abs() < 0.2


def test_erasing_leaves_all_but_the_image_alone():
    image, mask = photograph()
    masks, boxes = mask.expand(MANY, -1, -1, -1), BOX.expand(MANY, 4)
    moved, targets = augment(image, MANY, masks, boxes, **GEOMETRY, colour=0.4, erase=1.0)
    kept, kept_targets = augment(image, MANY, masks, boxes, **GEOMETRY, colour=0.4)
    for name, target in targets.items():
        torch.testing.assert_close(target, kept_targets[name], rtol=0, atol=0, equal_nan=True)
    changed = (moved != kept).any(1)
    assert (moved.permute(0, 2, 3, 1)[changed] == 128).all()  # whatever the brightness is


def test_no_ingredient_tells_another():
    """Each draws its own numbers; all at once they keep their ranges."""
    found = taken_apart(measured(augment(spots(), MANY, **GEOMETRY)[0])) | colours(colour=0.4)
    found["erased"] = erased(erase=0.3).any((1, 2)).double()
    assert fills(found["rotation"], -25, 25)
    assert fills(found["zoom"], math.log(0.6), math.log(1.5))
    assert fills(found["stretch"], -math.log(1.3), math.log(1.3))
    assert fills(found["shift x"], -0.1, 0.1) and fills(found["shift y"], -0.1, 0.1)
    related = torch.corrcoef(torch.stack([values.double() for values in found.values()]))
    mixed = {"red", "green", "blue"}  # all contain the contrast
    for i, one in enumerate(found):
        for j, other in enumerate(list(found)[:i]):
            assert {one, other} <= mixed or related[i, j].abs() < 0.2, (one, other)
