"""How the three tasks are drawn and told, pixel by pixel."""

import pytest
import torch

from engine.tasks import BBOX, BIN, SEG

NAMES = ("cat", "dog")
BLUE, ORANGE, TINTED = [0, 114, 178], [230, 159, 0], [140, 192, 220]  # the last is white, 45 % blue
WHITE, BLACK = [255] * 3, [0] * 3


def white(height=100, width=200):
    return torch.full((3, height, width), 255, dtype=torch.uint8)


def extent(image, colour):
    """xmin, ymin, xmax, ymax of the pixels of a colour, both ends included."""
    y, x = (image == torch.tensor(colour)[:, None, None]).all(0).nonzero().unbind(1)
    return [x.min().item(), y.min().item(), x.max().item(), y.max().item()]


def test_a_mask_is_tinted_and_outlined_on_its_inner_side():
    target = torch.zeros(1, 50, 100, dtype=torch.uint8)  # half the size of the image
    target[:, :25] = 1
    image, words = SEG.draw(white(), target, NAMES)
    assert words == ""
    assert image[:, 49, 150].tolist() == BLUE and image[:, 48, 150].tolist() == TINTED
    assert image[:, 0, 150].tolist() == TINTED  # the frame is no outline
    assert image[:, 50:].eq(255).all()


def test_logits_are_cut_at_0_in_the_size_of_the_image():
    image, _ = SEG.draw(
        torch.zeros(3, 4, 8, dtype=torch.uint8), torch.tensor([[[1.0, -1.0]]]), NAMES
    )
    assert (image.sum(0) > 0).tolist() == [[True] * 4 + [False] * 4] * 4


def test_what_lies_outside_a_mask_is_not_changed():
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    before = image.clone()
    drawn, _ = SEG.draw(image, torch.full((1, 9, 9), -1.0), NAMES)
    assert torch.equal(drawn, before) and torch.equal(image, before)


def test_unknown_pixels_are_hatched_in_black_and_white():
    target = torch.zeros(1, 50, 100, dtype=torch.uint8)
    target[:, 40:] = 255
    grey = torch.full((3, 100, 200), 90, dtype=torch.uint8)
    image, _ = SEG.draw(grey, target, NAMES)
    assert image[:, :80].eq(90).all()
    expected = [WHITE, BLACK, [90] * 3, [90] * 3]
    assert [image[:, 80, x].tolist() for x in range(4)] == expected
    assert image[:, 81, 7].tolist() == WHITE  # 88 is the next multiple of 8


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ([0.25, 0.5, 0.75, 0.9], [50, 50, 149, 89]),
        ([0.0, 0.0, 1.0, 1.0], [0, 0, 199, 99]),  # with its right and bottom line
        ([0.5, 0.5, 1.0, 1.0], [100, 50, 199, 99]),
        ([-3.0, -3.0, 4.0, 0.5], [0, 0, 199, 49]),
        ([0.9, 0.9, 0.1, 0.1], [20, 10, 179, 89]),  # its corners exchanged
        ([1.0, 1.0, 1.0, 1.0], [199, 99, 199, 99]),
    ],
)
def test_a_box_in_its_frame(box, pixels):
    image, words = BBOX.draw(white(), torch.tensor(box), NAMES)
    assert words == "" and extent(image, ORANGE) == pixels


def test_a_box_has_a_dark_halo_on_both_sides():
    image, _ = BBOX.draw(white(), torch.tensor([0.25, 0.5, 0.75, 0.9]), NAMES)
    across = [image[:, 70, x].tolist() for x in range(48, 53)]
    assert across == [WHITE, BLACK, ORANGE, BLACK, WHITE]
    thick, _ = BBOX.draw(white(600, 900), torch.tensor([0.25, 0.5, 0.75, 0.9]), NAMES)
    across = [thick[:, 400, x].tolist() for x in (221, 222, 224, 225, 227, 228, 230, 231)]
    assert across == [WHITE, BLACK, BLACK, ORANGE, ORANGE, BLACK, BLACK, WHITE]


def test_an_unknown_box_is_said():
    image, words = BBOX.draw(white(), torch.full((4,), torch.nan), NAMES)
    assert words == "box unknown" and image.eq(255).all()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([2.6], "dog, probability 0.93"),
        ([-2.6], "cat, probability 0.93"),
        (1.0, "dog"),
        (0.0, "cat"),
        (-1.0, "class unknown"),
    ],
)
def test_the_class_in_words(value, words):
    image, found = BIN.draw(white(), torch.tensor(value), NAMES)
    assert found == words and image.eq(255).all()


def test_what_json_tells():
    found = SEG.describe(torch.tensor([[[1.0, -1.0]]]), (8, 4), NAMES)
    assert found["mask_area"] == 0.5 and found["mask"].dtype == "uint8"
    assert found["mask"].tolist() == [[255] * 4 + [0] * 4] * 4
    box = BBOX.describe(torch.tensor([0.25, 0.5, 0.75, 1.0]), (200, 100), NAMES)
    assert box == {"box": [50.0, 50.0, 150.0, 100.0]}
    assert BIN.describe(torch.tensor([-2.0]), (1, 1), NAMES) == {
        "class": "cat", "probability": 0.8808
    }  # fmt: skip


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (700, 2)])
def test_images_of_any_size(size):
    for task, value in ((SEG, [[[1.0]]]), (BBOX, [0.25, 0.5, 0.75, 1.0]), (BIN, [1.0])):
        assert task.draw(white(*size), torch.tensor(value), NAMES)[0].shape == (3, *size)


def test_the_mirror_of_every_task():
    boxes = BBOX.mirror(torch.tensor([[0.1, 0.2, 0.4, 0.9]]))
    assert torch.allclose(boxes, torch.tensor([[0.6, 0.2, 0.9, 0.9]]))
    assert SEG.mirror(torch.arange(6.0).view(1, 1, 2, 3)).flatten().tolist() == [2, 1, 0, 5, 4, 3]
    assert BIN.mirror(torch.tensor([3.0])).tolist() == [3]
