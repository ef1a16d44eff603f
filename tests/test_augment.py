"""Augment against ways to move a picture that are not ours.

The maps that Augment draws are measured: three spots, one in each colour channel, are found again
in the result, and three pairs of places determine an affine map. PIL then moves pictures by the
measured map. Places are (x, y) in pixels; pixel i covers [i, i + 1].
"""

import functools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from dataload import Augment

HEIGHT, WIDTH = 48, 64  # not square, so that a mistake in the aspect shows
SPOTS = torch.tensor([[25.0, 21.0], [38.0, 20.0], [33.0, 31.0]])  # of red, green and blue
MANY = 500
OFF = {
    "degrees": 0.0,
    "scale": (1.0, 1.0),
    "stretch": 1.0,
    "shift": 0.0,
    "colour": 0.0,
    "erase": 0.0,
}
GEOMETRY = {"degrees": 25.0, "scale": (0.6, 1.5), "stretch": 1.3, "shift": 0.1}
EVERYTHING = GEOMETRY | {"colour": 0.4, "erase": 0.3}


def augment(image, count=None, masks=None, boxes=None, seed=0, side=None, **settings):
    """`count` copies of an image (3, H, W), or images (B, 3, H, W), with targets, augmented."""
    images = image.expand(count, -1, -1, -1) if count else image
    targets = {
        "seg": torch.zeros_like(images[:, :1]) if masks is None else masks,
        "bbox": torch.full((len(images), 4), torch.nan) if boxes is None else boxes,
        "bin": torch.arange(len(images)) % 3 - 1.0,
    }
    generator = torch.Generator().manual_seed(seed)
    return Augment(**OFF | settings)(images, targets, generator, side)


def pixel_centres(height, width):
    """x and y (H, W) in pixels."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return x, y


def spots(fine=1):
    """uint8 (3, fine H, fine W): grey 128 with one smooth bright spot in each channel."""
    x, y = (place / fine for place in pixel_centres(HEIGHT * fine, WIDTH * fine))
    square = (x - SPOTS[:, :1, None]) ** 2 + (y - SPOTS[:, 1:, None]) ** 2
    return (128 + 120 * torch.exp(-square / (2 * 1.5**2))).round().to(torch.uint8)


def measured(moved, size=(1.0, 1.0), fine=1):
    """The maps (B, 2, 3) of input to output pixels that moved `spots(fine)`, in pixels of `fine` 1.

    Args:
        moved: images (B, 3, h, w).
        size: factors of width and height by which `side` had resized the image before.
    """
    weight = (moved - 128).double()
    x, y = (place / fine for place in pixel_centres(*moved.shape[-2:]))
    centre = torch.stack([(weight * x).sum((2, 3)), (weight * y).sum((2, 3))], dim=2)
    centre = centre / weight.sum((2, 3))[..., None]  # (B, 3 spots, 2)
    corners = torch.cat([SPOTS * torch.tensor(size), torch.ones(3, 1)], dim=1).double()
    return torch.linalg.solve(corners, centre).mT


def taken_apart(maps, height=HEIGHT, width=WIDTH):
    """What a map does to the image: {name: (B,)}; width and height first, then the rotation."""
    linear, wide, high = maps[:, :, :2], maps[:, :, 0], maps[:, :, 1]
    middle = torch.tensor([width / 2, height / 2]).double()
    shift = (linear @ middle + maps[:, :, 2] - middle) / torch.tensor([width, height])
    ratio = wide.norm(dim=1) / high.norm(dim=1)
    return {
        "rotation": torch.atan2(-high[:, 0], high[:, 1]).rad2deg(),
        "zoom": torch.linalg.det(linear).abs().sqrt().log(),
        "stretch": ratio.log(),
        "shift x": shift[:, 0],
        "shift y": shift[:, 1],
        "flip": torch.linalg.det(linear).sign(),
    }


def fills(values, low, high):
    """Whether values are spread evenly over a whole range and do not leave it."""
    place = (values.sort().values - low) / (high - low)
    even = (torch.arange(len(place)) + 0.5) / len(place)
    return -0.01 < place[0] < 0.02 and 0.98 < place[-1] < 1.01 and (place - even).abs().max() < 0.07


def brightened(image, **settings):
    return augment(image, MANY, **settings)[0]


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


def test_the_zoom_need_not_be_symmetric():
    found = taken_apart(measured(augment(spots(), MANY, scale=(1.2, 1.6))[0]))
    assert fills(found["zoom"], math.log(1.2), math.log(1.6))


def test_a_picture_is_not_sheared():
    """Width and height stay at right angles, in pixels, though the image is oblong."""
    maps = measured(augment(spots(), MANY, **GEOMETRY)[0])
    cosine = torch.cosine_similarity(maps[:, :, 0], maps[:, :, 1])
    assert cosine.abs().max() < 0.02


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


def warped(values, linear_map, fill):
    """PIL's bilinear warp of (H, W) by a map (2, 3) of input to output; outside is `fill`."""
    (height, width), margin = values.shape, 100
    values = np.pad(np.asarray(values, np.float32), margin, constant_values=fill)
    inverse = np.linalg.inv(np.vstack([linear_map, [0, 0, 1]]))
    inverse[:2, 2] += margin
    image = Image.fromarray(values)
    moved = image.transform((width, height), Image.AFFINE, inverse[:2].ravel(), Image.BILINEAR)
    return torch.from_numpy(np.array(moved))


def photograph(seed=0):
    """A smooth random image, uint8 (3, H, W), and a mask (1, H, W) of 0, 1 and 255 in pieces."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 5, 6, 8, generator=generator)
    options = {"size": (HEIGHT, WIDTH), "mode": "bicubic", "align_corners": False}
    fine = torch.nn.functional.interpolate(coarse, **options)[0].clamp(0, 1)
    mask = (fine[3:4] > 0.5).to(torch.uint8).masked_fill(fine[4:] > 0.7, 255)
    return (fine[:3] * 255).to(torch.uint8), mask


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


@pytest.mark.parametrize("side", [(24, 32), (32, 32)])
def test_a_resized_picture_is_moved_as_far_and_not_sheared(side):
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


def ellipse(box):
    """Bool (H, W): the ellipse inscribed in a box (4,) in [0, 1]."""
    x, y = pixel_centres(HEIGHT, WIDTH)
    low, high = box[:2] * torch.tensor([WIDTH, HEIGHT]), box[2:] * torch.tensor([WIDTH, HEIGHT])
    (cx, cy), (rx, ry) = (low + high) / 2, (high - low) / 2
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1


BOX = torch.tensor([0.3, 0.25, 0.5, 0.6])


def test_image_mask_and_box_move_together():
    """An ellipse is where its mask is, and its box is around it."""
    shape = ellipse(BOX)[None]  # (1, H, W)
    image = (128 + 100 * shape).expand(3, -1, -1).to(torch.uint8)
    masks, boxes = shape.to(torch.uint8).expand(200, 1, -1, -1), BOX.expand(200, 4)
    moved, targets = augment(image, 200, masks, boxes, **GEOMETRY)
    seen = moved[:, 0] > 178
    assert (seen != targets["seg"][:, 0].bool()).float().mean() < 1e-4
    whole = 0
    for mask, box in zip(seen, targets["bbox"], strict=True):
        ys, xs = mask.nonzero(as_tuple=True)
        found = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        if found.min() > 0 and found[2] < WIDTH and found[3] < HEIGHT:
            difference = box * torch.tensor([WIDTH, HEIGHT] * 2) - found
            assert difference.abs().max() < 1.3, difference
            whole += 1
    assert whole > 100


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


def test_what_is_unknown_stays_unknown_and_the_label_as_it_is():
    _, targets = augment(spots(), 9, **EVERYTHING)
    assert targets["bbox"].isnan().all()
    assert targets["bin"].tolist() == [-1, 0, 1] * 3


# ---------------------------------------------------------------------------------------- colour


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


def test_colour_0_changes_no_colour():
    found = colours()
    for name, values in found.items():
        torch.testing.assert_close(values, torch.full((MANY,), float(name != "brightness")))


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


def test_another_generator_another_result():
    first, second = whole(5, **EVERYTHING), whole(6, **EVERYTHING)
    assert (first != second).any(1).all()


@pytest.mark.parametrize("setting", ["degrees", "scale", "stretch", "shift", "colour"])
def test_each_sample_has_its_own_numbers(setting):
    samples = whole(5, count=16, **{setting: EVERYTHING[setting]})
    assert len(samples.unique(dim=0)) == 16


def test_a_generator_goes_on_from_batch_to_batch():
    generator, image = torch.Generator().manual_seed(0), spots()[None]
    targets = {"seg": image[:, :1] * 0, "bbox": BOX[None], "bin": torch.ones(1)}
    apply = Augment(**EVERYTHING)
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


def test_known_masks_move_alike_with_and_without_the_plane_of_the_unknown():
    random = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (4, 3, 40, 64), generator=random, dtype=torch.uint8)
    masks = torch.randint(0, 2, (4, 1, 40, 64), generator=random, dtype=torch.uint8)
    targets = {"seg": masks, "bbox": torch.tensor([[0.2, 0.2, 0.6, 0.7]] * 4)}
    found = []
    for unknown_pixels in (True, False):
        augment = Augment(15.0, (0.75, 1.6), 1.2, 0.15, 0.4, 0.2)
        augment.unknown_pixels = unknown_pixels
        found.append(augment(images, targets, torch.Generator().manual_seed(5), (32, 48)))
    (image, moved), (other_image, other_moved) = found
    assert torch.equal(image, other_image) and torch.equal(moved["seg"], other_moved["seg"])


def test_an_image_without_a_mask_has_none_after_augmentation():
    """Also where it shows what lies outside the frame, which is background in other masks."""
    images, masks = torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.full((8, 1, 32, 32), 255)
    masks[4:, :, :16] = 0
    targets = {"seg": masks.to(torch.uint8), "bbox": torch.full((8, 4), torch.nan)}
    augment = Augment(30.0, (0.3, 0.5), 1.2, 0.3, 0.4, 0.2)
    _, moved = augment(images, targets, torch.Generator().manual_seed(0), (16, 16))
    assert (moved["seg"][:4] == 255).all()
    assert all((mask == 0).any() and (mask == 255).any() for mask in moved["seg"][4:])
