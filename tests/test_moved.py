"""What augmentation does to each kind of target, by hand.

Offsets (x, y) are in pixels from the centre of the image, x to the right and y down. A map is a
linear part, of input to output offsets, and a shift.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from augmented import OFF
from torch.nn.functional import pad

from parts.augment import Augment
from parts.targets import Box, Derived, Label, PixelClasses, PixelValues, Values

NAN = math.nan
MAPS = {
    "nothing": ([[1.0, 0], [0, 1]], (0, 0)),
    "flip": ([[-1.0, 0], [0, 1]], (0, 0)),
    "turn": ([[0.0, -1], [1, 0]], (0, 0)),  # what was on the right is below
    "turn and flip": ([[0.0, -1], [-1, 0]], (0, 0)),
    "zoom": ([[2.0, 0], [0, 2]], (0, 0)),
    "shrink": ([[1 / 3, 0], [0, 1 / 3]], (0, 0)),
    "shift": ([[1.0, 0], [0, 1]], (2, -1)),
}
ZOOMED = torch.tensor([1, 2, 2, 3, 3, 4])  # the pixels seen: offsets of 2.5, 1.5, 0.5, halved
BY_HAND = {  # (..., 6, 6) and what is outside the frame -> (..., 6, 6)
    "nothing": lambda v, outside: v,
    "flip": lambda v, outside: v.flip(-1),
    "turn": lambda v, outside: v.mT.flip(-1),  # the first row becomes the last column
    "turn and flip": lambda v, outside: v.mT.flip(-1).flip(-2),
    "zoom": lambda v, outside: v[..., ZOOMED, :][..., ZOOMED],
    "shrink": lambda v, outside: pad(v[..., 1:5:3, 1:5:3], (2, 2, 2, 2), value=outside),
    "shift": lambda v, outside: pad(v[..., 1:, :4], (2, 0, 0, 1), value=outside),
}


class Fixed(Augment):
    """Moves every sample by the same map, and changes nothing else."""

    def __init__(self, kinds, name, complete=()):
        super().__init__({n: SimpleNamespace(target=kind) for n, kind in kinds.items()}, **OFF)
        self.name, self.complete = name, frozenset(complete)

    def draw_affine(self, size, aspect, generator):
        linear, shift = map(torch.tensor, MAPS[self.name])
        maps = torch.eye(3).repeat(size, 1, 1)
        maps[:, :2, :2] = linear * torch.tensor([[1, 1 / aspect], [aspect, 1]])
        maps[:, :2, 2] = shift / 3  # of images of 6 x 6
        return maps


def move(kinds, targets, name, side=None, complete=(), shape=(6, 6)):
    count = len(next(iter(targets.values())))
    images = torch.zeros(count, 3, *shape, dtype=torch.uint8)
    return Fixed(kinds, name, complete)(images, targets, torch.Generator(), side)[1]


def grid(*kept):
    """(2, len(kept), 6, 6): the numbers from 0, and nothing known (-1) in all of sample 1."""
    numbers = torch.arange(36.0).view(6, 6)
    first = torch.stack([torch.where(numbers % 5 == 4, -1, keep(numbers)) for keep in kept])
    return torch.stack([first, torch.full_like(first, -1)])


PIXELS = {  # kind, target with -1 for unknown, value for unknown, value outside the frame
    "mask": (PixelClasses("x"), grid(lambda n: n % 7 % 2), 255, 0),
    "mask in a scene": (PixelClasses("x", outside=255), grid(lambda n: n % 7 % 2), 255, 255),
    "classes": (PixelClasses("x", 7), grid(lambda n: n % 7), 255, 0),
    "classes in class 3": (PixelClasses("x", 7, outside=3), grid(lambda n: n % 7), 255, 3),
    "values": (PixelValues("x"), grid(lambda n: n / 4), NAN, NAN),
    "vectors": (PixelValues("x", 2), grid(lambda n: n / 4, lambda n: 9 * n), NAN, NAN),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("case", PIXELS)
def test_pixels_move(case, name):
    kind, numbers, unknown, outside = PIXELS[case]
    target = torch.where(numbers < 0, unknown, numbers).to(kind.dtype)
    found = move({"it": kind}, {"it": target.clone()}, name)["it"]
    expected = BY_HAND[name](target.float(), outside).to(kind.dtype)
    expected[1] = unknown  # a sample of which nothing is known stays one, outside the frame too
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", PIXELS)
def test_what_is_known_to_the_last_pixel_moves_alike_in_half_the_time(case):
    kind, numbers, *_ = PIXELS[case]
    target = {"it": numbers[:1].abs().to(kind.dtype)}
    for name in MAPS:
        found = [move({"it": kind}, target, name, None, names)["it"] for names in ((), ("it",))]
        torch.testing.assert_close(*found, equal_nan=True)


def test_a_turn_of_an_oblong_image_is_one_in_pixels():
    values = torch.arange(48.0).view(1, 1, 6, 8)
    found = move({"it": PixelValues("x")}, {"it": values}, "turn", shape=(6, 8))["it"]
    expected = pad(values[..., 1:7].mT.flip(-1), (1, 1), value=NAN)
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("kind", [PixelClasses("x", 9), PixelValues("x")])
def test_no_value_comes_up_that_was_not_there(kind):
    """A mean of two classes is another class, and a mean of two depths is on neither side."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([0.0, 8, 255 if kind.classes else NAN])
    target = corners[torch.randint(0, 3, (20, 1, 16, 16), generator=generator)].to(kind.dtype)
    settings = {"degrees": 40, "scale": (0.6, 1.4), "stretch": 1.3, "shift": 0.2}
    augment = Augment({"it": SimpleNamespace(target=kind)}, **OFF | settings)
    for side in (None, (12, 20)):
        images = torch.zeros(20, 3, 16, 16, dtype=torch.uint8)
        found = augment(images, {"it": target}, generator, side)[1]["it"].float()
        assert found.shape[2:] == (side or (16, 16))
        found = found[~found.isnan() & (found != 255)]
        assert set(found.unique().tolist()) == {0, 8}


@pytest.mark.parametrize("kind", [PixelClasses("x", 12), PixelValues("x")])
def test_pixels_are_resized_by_taking_one_of_those_covered(kind):
    target = torch.arange(9.0).view(1, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    target = target.to(kind.dtype)
    found = move({"it": kind}, {"it": target}, "nothing", (6, 6), shape=(12, 12))["it"]
    assert torch.equal(found, target[..., ::2, ::2])


@pytest.mark.parametrize("shape", [(6, 6), (6, 8)])
@pytest.mark.parametrize("name", MAPS)
def test_move_is_told_the_linear_part_in_pixels(name, shape):
    told = []
    kind = PixelValues("x", move=lambda values, linear: told.append(linear) or values)
    move({"it": kind}, {"it": torch.zeros(2, 1, *shape)}, name, shape=shape)
    expected = torch.tensor(MAPS[name][0]).expand(2, 2, 2)
    torch.testing.assert_close(told[0], expected, rtol=0, atol=1e-6)


def nearer(values, linear):
    """Depths under a zoom: what looks twice as large is half as far."""
    return values / torch.linalg.det(linear).abs().sqrt()[:, None, None, None]


def test_move_corrects_what_is_in_the_frame():
    kind, values = PixelValues("x", move=nearer), torch.arange(36.0).view(1, 1, 6, 6)
    for name, factor in {"zoom": 0.5, "shrink": 3, "flip": 1, "turn": 1}.items():
        found = move({"it": kind}, {"it": values}, name)["it"]
        expected = BY_HAND[name](values, NAN) * factor
        torch.testing.assert_close(found, expected, equal_nan=True)
    ones = PixelValues("x", move=lambda values, linear: torch.ones_like(values))
    found = move({"it": ones}, {"it": values}, "shift")["it"]
    assert torch.equal(found.isnan(), BY_HAND["shift"](values, NAN).isnan())


# ------------------------------------------------------------------------ masks of two classes


def binary(mask, side=None, **settings):
    """Masks (B, 1, H, W) after a random augmentation."""
    augment = Augment({"seg": SimpleNamespace(target=PixelClasses("x"))}, **OFF | settings)
    images = torch.zeros(len(mask), 3, *mask.shape[2:], dtype=torch.uint8)
    return augment(images, {"seg": mask}, torch.Generator().manual_seed(3), side)[1]["seg"]


def is_one_of(found, expected):
    """Whether every mask is the expected one or its mirror image."""
    pairs = zip(found, expected, strict=True)
    return all(torch.equal(f, e) or torch.equal(f, e.flip(-1)) for f, e in pairs)


MOVES = {"degrees": 40, "scale": (0.6, 1.4), "stretch": 1.3, "shift": 0.2}


@pytest.mark.parametrize("side", [None, (24, 48)])
def test_unknown_pixels_move_like_any_others(side):
    """Where only discs are unknown, they arrive where discs of pet would."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = ((x - 12) ** 2 + (y - 18) ** 2 < 60).byte().expand(8, 1, -1, -1)
    pet = binary(disc, side, **MOVES)
    assert pet.any() and torch.equal(binary(disc * 255, side, **MOVES), pet * 255)


def test_unknown_pixels_are_not_mixed_with_others():
    """Half of the pixels are unknown, the others all the same: no third value may come up."""
    mask = torch.zeros(8, 1, 32, 32, dtype=torch.uint8)
    mask[..., 16:] = 255
    for side in (None, (20, 44)):
        assert set(binary(mask, side, **MOVES).unique().tolist()) == {0, 255}
    mask = mask.clamp(min=1)  # and nothing from outside the frame
    found = binary(mask, degrees=20, scale=(1.5, 2))
    assert set(found.unique().tolist()) == {1, 255}


def test_a_pixel_is_unknown_if_half_of_it_is_and_the_known_part_decides():
    """Half as wide, every other pixel shows 3/8 pet, 3/8 unknown and 1/4 background."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.tensor([0, 1, 255])[torch.randint(0, 3, (8, 1, 8, 8), generator=generator)]
    blocks = blocks.byte()
    mask = blocks.repeat_interleave(4, -1).repeat_interleave(4, -2)
    half = blocks.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert is_one_of(binary(mask, (16, 16)), half)
    mask = torch.tensor([1, 255, 0, 0], dtype=torch.uint8).repeat(8, 1, 32, 8)
    expected = torch.tensor([1, 0], dtype=torch.uint8).repeat(8, 1, 16, 8)
    assert is_one_of(binary(mask, (16, 16)), expected)


# ------------------------------------------------------------------ targets that have no pixels


BOXES = torch.tensor([[1 / 3, 1 / 2, 2 / 3, 5 / 6], [NAN] * 4])
MOVED_BOXES = {
    "flip": [1 / 3, 1 / 2, 2 / 3, 5 / 6],
    "turn": [1 / 6, 1 / 3, 1 / 2, 2 / 3],
    "zoom": [1 / 6, 1 / 2, 5 / 6, 1.0],  # cut at the frame, with 3/4 of its area left
    "shrink": [4 / 9, 1 / 2, 5 / 9, 11 / 18],
    "shift": [2 / 3, 1 / 3, 1.0, 2 / 3],
}


@pytest.mark.parametrize("name", MOVED_BOXES)
def test_a_box_moves(name):
    found = move({"it": Box("x")}, {"it": BOXES}, name)["it"]
    assert found[0].tolist() == pytest.approx(MOVED_BOXES[name], abs=1e-6)
    assert found[1].isnan().all()


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (Label("x"), torch.tensor([1.0, -1])),
        (Label("x", 9), torch.tensor([8, -1])),
        (Values("x", 2), torch.tensor([[2.5, NAN], [NAN, NAN]])),
    ],
)
def test_labels_and_values_do_not_move(kind, target):
    for name in MAPS:
        found = move({"it": kind}, {"it": target}, name)["it"]
        torch.testing.assert_close(found, target, rtol=0, atol=0, equal_nan=True)


def share(seg):
    known = (seg != 255).flatten(1)
    return ((seg == 1).flatten(1) & known).sum(1) / known.sum(1)  # 0 / 0 where nothing is known


@pytest.mark.parametrize("names", [["area"], ["area", "seg"], ["seg", "twice"]])
def test_a_derived_target_is_computed_from_what_has_moved(names):
    seg = PixelClasses("x")
    area = Derived(share, seg=seg)
    kinds = {"seg": seg, "area": area, "twice": Derived(lambda area: 2 * area, area=area)}
    mask = torch.zeros(2, 1, 6, 6, dtype=torch.uint8)
    mask[0, :, 1:4, 1:3], mask[1] = 1, 255
    before = {"seg": mask, "area": torch.tensor([6 / 36, NAN]), "twice": torch.tensor([NAN, NAN])}
    for name, pixels in {"zoom": 5 * 3, "shrink": 1, "shift": 6, "turn": 6}.items():
        found = move({n: kinds[n] for n in names}, dict(before), name)
        assert torch.equal(found["seg"], move({"seg": seg}, {"seg": mask}, name)["seg"])
        factor = 2 if "twice" in names else 1
        values = found[names[-1] if factor == 2 else "area"]
        torch.testing.assert_close(
            values, torch.tensor([factor * pixels / 36, NAN]), equal_nan=True
        )


def test_a_target_that_no_task_has_stays_as_it_is():
    targets = {"seg": torch.ones(1, 1, 6, 6, dtype=torch.uint8), "other": torch.tensor([7])}
    assert move({"seg": PixelClasses("x")}, targets, "zoom")["other"] is targets["other"]
