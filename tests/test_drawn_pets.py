"""The synthetic pets: exactly labelled, and not separable by colour."""

import hashlib

import numpy as np
import pytest

from parts import drawing, drawn_pets, drawn_scenes
from parts.drawn_scenes import BREED_NAMES, STYLES, draw_sample


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("demo", "21dc84bd1dde84059d52ccc387f2b707bf15c9724d3ffec833"),
        ("varied", "6b812e2e4336a759ba4048a7910ab0b16d8cc1f8264585fa41"),
    ],
)
def test_a_style_is_what_its_published_figures_were_measured_on(style, expected):
    digest, samples = hashlib.sha256(), (draw_sample(0, 0, i, 128, style)[:4] for i in range(6))
    for arrays in zip(*samples, strict=True):
        digest.update(np.stack(arrays).tobytes())
    assert digest.hexdigest().startswith(expected)


@pytest.fixture(scope="module", params=STYLES)
def pets(request):
    """The style, and 120 pets of it: images, masks (N, 64, 64, 1), boxes and labels."""
    samples = [draw_sample(1, 0, index, 64, request.param)[:4] for index in range(120)]
    return request.param, *map(np.stack, zip(*samples, strict=True))


def test_every_sample_is_a_pet_with_its_head_in_the_box(pets):
    style, images, masks, boxes, labels = pets
    assert images.shape == (120, 64, 64, 3) and labels.tolist() == [0, 1] * 60
    shares = masks.mean((1, 2, 3))
    assert shares.min() > 0.02 and shares.max() < (0.6 if style == "demo" else 0.9)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) / 64**2
    assert areas.min() > 0.005 and areas.max() < (0.3 if style == "demo" else 0.8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        assert mask[y0:y1, x0:x1].mean() > 0.3


@pytest.mark.parametrize("style", STYLES)
def test_mask_and_box_are_what_is_painted(monkeypatch, style):
    """On black, the body painted red, the head blue and whatever stands before them green."""
    paint_pet = drawn_pets.paint_pet

    def paint(image, distance, colour, scale, rim=1):
        image[distance < 0] = (0, 255, 0) if callable(colour) else colour

    def paint_flat(image, body, head, near, paints, *others):
        for parts, colour in (((body, []), (255, 0, 0)), (([], head), (0, 0, 255))):
            paint_pet(image, *parts, near, dict.fromkeys(paints, np.float32(colour)), *others)

    def black(rng, x, y, side):
        return np.zeros((side, side, 3), np.float32)

    monkeypatch.setattr(drawn_pets, "paint", paint)
    fakes = {"paint": paint, "paint_pet": paint_flat, "backdrop": black, "scenery": black}
    fakes |= dict.fromkeys(("expose", "photograph"), lambda rng, image, *_: image)
    for name, fake in fakes.items():
        monkeypatch.setattr(drawn_scenes, name, fake)
    hidden = 0
    for index in range(40):
        image, mask, box, *_ = draw_sample(0, 0, index, 96, style)
        red, green, blue = np.moveaxis(image == 255, -1, 0)
        assert np.array_equal(mask[..., 0], red | blue)
        rows, columns = np.nonzero(blue)
        assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        hidden += green.any()
    assert hidden == 0 if style == "demo" else hidden > 5


def test_no_head_is_larger_than_the_window_it_is_drawn_in():
    x, y = np.meshgrid(*np.linspace([-1.5, -1.5], [1.5, 1.5], 60).T)
    outside = np.hypot(x, y) > drawn_pets.HEAD_REACH - 0.04  # which is the longest hair
    x, y = x[outside], y[outside]
    for seed in range(100):
        draws = (drawn_pets.cat_head, drawn_pets.dog_head, drawn_pets.frontal_head)
        pairs = [(draws[0], 0), (draws[1], 1), (draws[2], 0), (draws[2], 1)]
        heads = [draw(x, y, np.random.default_rng(seed), label) for draw, label in pairs]
        assert min(distance.min() for head in heads for distance, _ in head) > 0


def test_paint_covers_a_shape_with_one_pixel_of_transition():
    """Distances of whole pixels from 2 inside to 2 outside, then half a pixel; scale 10."""
    distance = np.array([[-2, -1, 0, 1, 2, 0.25]]) / 10
    image = np.full((1, 6, 3), 100.0)
    drawing.paint(image, distance, np.array((200.0, 0, 100)), 10, rim=0.8)
    # 0.2 units inside the shade is 1, at 0.1 it is 0.8 + 0.5, cut to 1; from the edge on 0.8
    expected = [[200, 0, 100], [200, 0, 100], [130, 50, 90], [100, 100, 100], [100, 100, 100]]
    expected.append([115, 75, 95])  # a quarter of (160, 0, 80)
    assert np.allclose(image[0], expected)


def test_colour_does_not_tell_the_species(pets):
    _, images, masks, _, labels = pets
    for part in (masks, 1 - masks):
        colour = (images * part.astype(float)).sum((1, 2)) / part.sum((1, 2))  # (N, 3)
        for channel in colour.T:
            assert 0.3 < ((channel > np.median(channel)) == labels).mean() < 0.7


def test_a_breed_is_species_commonest_colour_and_pattern():
    """On 10 x 10 pixels, of which the last column shows no pet."""
    coat, in_pet = np.empty((10, 10, 3), np.float32), np.ones((10, 10), bool)
    black, ginger, white = drawn_scenes.PALETTE[[0, 5, 3]]
    in_pet[:, 9], coat[:, 9], coat[:, :9] = False, black, ginger + 9
    coat[:2, :9] = white  # 18 of 90 pixels, less than a quarter
    assert BREED_NAMES[drawn_scenes.breed(coat, in_pet, 0)] == "plain ginger cat"
    coat[:3, :9] = white  # 27
    assert BREED_NAMES[drawn_scenes.breed(coat, in_pet, 1)] == "patterned ginger dog"
