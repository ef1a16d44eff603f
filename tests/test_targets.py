"""How targets and outputs of every kind are drawn and told, pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from MTL_Utils import BBOX, BIN, SEG, Task
from parts.targets import PETS, Box, Derived, Label, PixelClasses, PixelValues, Values

NAN = math.nan
NAMES = ("cat", "dog")
BLUE, ORANGE, DIMMED = [0, 114, 178], [230, 159, 0], [115] * 3  # the last is 45 % of white
WHITE, BLACK = [255] * 3, [0] * 3


def white(height=100, width=200):
    return torch.full((3, height, width), 255, dtype=torch.uint8)


def extent(image, colour):
    """xmin, ymin, xmax, ymax of the pixels of a colour, both ends included."""
    y, x = (image == torch.tensor(colour)[:, None, None]).all(0).nonzero().unbind(1)
    return [x.min().item(), y.min().item(), x.max().item(), y.max().item()]


def test_the_background_is_dimmed_and_the_foreground_outlined_on_its_inner_side():
    target = torch.zeros(1, 50, 100, dtype=torch.uint8)  # half the size of the image
    target[:, :25] = 1
    image, words = SEG.draw(white(), target, NAMES)
    assert words == ""
    assert image[:, 49, 150].tolist() == BLUE and image[:, 48, 150].tolist() == WHITE
    assert image[:, 0, 150].tolist() == WHITE  # the frame is no outline
    assert image[:, 50:].eq(torch.tensor(DIMMED)[:, None, None]).all()


def test_logits_are_cut_at_0_in_the_size_of_the_image():
    before = torch.full((3, 4, 8), 200, dtype=torch.uint8)
    image, _ = SEG.draw(before, torch.tensor([[[1.0, -1.0]]]), NAMES)
    assert (image[0] == 90).tolist() == [[False] * 4 + [True] * 4] * 4
    assert before.eq(200).all()


def test_more_classes_are_tinted_and_the_first_is_left_as_it_is():
    kind = PixelClasses("x", 4)
    target = torch.tensor([[[0, 1, 2, 3]]], dtype=torch.uint8)
    logits = torch.nn.functional.one_hot(target[0, 0].long(), 4).T[:, None].float()  # (4, 1, 4)
    for value in (target, logits):
        image, words = kind.draw(white(4, 16), value, kind.default_names)
        colours = [image[:, 2, x].tolist() for x in (0, 5, 10, 15)]
        assert colours == [WHITE, [128, 184, 216], [242, 207, 128], [128, 206, 185]] and words == ""


@pytest.mark.parametrize("kind", [PixelClasses("x"), PixelClasses("x", 5), PixelValues("x")])
def test_unknown_pixels_are_hatched_in_black_and_white(kind):
    target = torch.zeros(1, 50, 100, dtype=kind.dtype)
    target[:, 40:] = NAN if kind.dtype == torch.float32 else 255
    image, _ = kind.draw(torch.full((3, 100, 200), 90, dtype=torch.uint8), target, NAMES)
    below = [0] * 3 if kind.dtype == torch.float32 else [90] * 3
    assert [image[:, 80, x].tolist() for x in range(4)] == [WHITE, BLACK, below, below]
    assert image[:, 81, 7].tolist() == WHITE  # 88 is the next multiple of 8
    assert (image[:, :80] == image[:, :1, :1]).all()


def test_values_are_grey_from_the_least_to_the_largest():
    value = torch.tensor([[[2.0, 3.0, 4.0, NAN]]])
    image, words = PixelValues("x").draw(white(1, 4), value, ())
    assert image[:, 0, :3].tolist() == [[0, 127, 255]] * 3 and words == "2 to 4"
    _, words = PixelValues("x").draw(white(), torch.full((1, 9, 9), NAN), ())
    assert words == "unknown"
    sparse = torch.tensor([[[NAN] * 3, [NAN, 7, NAN], [NAN] * 3]])
    image, words = PixelValues("x").draw(torch.full((3, 9, 9), 90).byte(), sparse, ())
    assert image[:, 3:6, 3:6].eq(0).all() and words == "7 to 7"
    assert image[0, 0, 0] == 255 and image[0, 6, 2] == 255  # hatched
    image, words = PixelValues("x").draw(white(2, 2), torch.ones(1, 2, 2), ())
    assert image.eq(0).all() and words == "1 to 1"
    directions = torch.tensor([1.0, -1.0, 0.0])[:, None, None]
    image, words = PixelValues("x", 3).draw(white(1, 1), directions, ())
    assert image.flatten().tolist() == [255, 0, 127] and words == "-1 to 1"


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
    thick, _ = BBOX.draw(white(300, 600), torch.tensor([0.25, 0.5, 0.75, 0.9]), NAMES)
    across = [thick[:, 200, x].tolist() for x in (146, 147, 149, 150, 152, 153, 155, 156)]
    assert across == [WHITE, BLACK, BLACK, ORANGE, ORANGE, BLACK, BLACK, WHITE]


def test_an_unknown_box_is_said():
    image, words = BBOX.draw(white(), torch.full((4,), torch.nan), NAMES)
    assert words == "box unknown" and image.eq(255).all()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([2.6], "dog, probability 0.93"),
        ([-2.6], "cat, probability 0.93"),
        ([7.0], "dog, probability 0.99+"),  # no rounding makes a class certain
        ([40.0], "dog, probability 0.99+"),
        (1.0, "dog"),
        (0.0, "cat"),
        (-1.0, "class unknown"),
    ],
)
def test_the_class_in_words(value, words):
    image, found = BIN.draw(white(), torch.tensor(value), NAMES)
    assert found == words and image.eq(255).all()


def test_one_class_of_many_in_words():
    kind, names = Label("x", 3), ("a", "b", "c")
    logits = torch.tensor([0.0, math.log(3), 0.0])  # 1/5, 3/5, 1/5
    assert kind.draw(white(), logits, names)[1] == "b, probability 0.60"
    assert kind.draw(white(), torch.tensor([0.0, 9, 0]), names)[1] == "b, probability 0.99+"
    assert kind.draw(white(), torch.tensor(2), names)[1] == "c"
    assert kind.draw(white(), torch.tensor(-1), names)[1] == "class unknown"


@pytest.mark.parametrize("kind", [Values("x"), Derived(lambda x: x, x=Box("x"))])
def test_values_in_words(kind):
    for value, words in ((0.12345, "0.123"), ([1.0], "1"), ([-2.5, NAN], "-2.5 unknown")):
        image, found = kind.draw(white(), torch.tensor(value), ())
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
    assert BIN.describe(torch.tensor([20.0]), (1, 1), NAMES)["probability"] == 0.9999
    logits = torch.tensor([0.0, math.log(3), 0.0])
    told = Label("x", 3).describe(logits, (1, 1), ("a", "b", "c"))
    assert told == {"class": "b", "probability": 0.6}
    assert Values("x").describe(torch.tensor([0.123456]), (1, 1), ()) == {"value": 0.1235}
    assert Values("x", 2).describe(torch.tensor([1.0, 2]), (1, 1), ()) == {"value": [1.0, 2.0]}


def test_what_json_tells_of_classes_and_values_per_pixel():
    logits = torch.tensor([[[5.0, 0, 0, 0]], [[0.0, 5, 5, 0]], [[0.0, 0, 0, 5]]])  # (3, 1, 4)
    found = PixelClasses("x", 3).describe(logits, (8, 2), ("sky", "road", "car"))
    assert found["mask"].tolist() == [[0] * 2 + [1] * 4 + [2] * 2] * 2
    assert found["mask"].dtype == np.uint8
    assert found["mask_area"] == {"sky": 0.25, "road": 0.5, "car": 0.25}
    found = PixelValues("x", 2).describe(torch.tensor([[[1.0]], [[2.0]]]), (3, 2), ())
    assert found["map"].tolist() == [[[1.0, 2.0]] * 3] * 2 and found["map"].dtype == np.float32
    assert found["map_mean"] == 1.5


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (700, 2)])
def test_images_of_any_size(size):
    for kind, value in (
        *((PETS["seg"], [[[1.0]]]), (PETS["bbox"], [0.25, 0.5, 0.75, 1.0]), (PETS["bin"], [1.0])),
        *((PixelClasses("x", 2), [[[1.0]]]), (PixelValues("x"), [[[NAN]]])),
    ):
        drawn, _ = kind.draw(white(*size), torch.tensor(value), kind.default_names)
        assert drawn.shape == (3, *size) and drawn.dtype == torch.uint8


OUTPUTS = {  # kind, output, that of the mirrored image
    "box": (Box("x"), [[0.125, 0.25, 0.5, 1.0]], [[0.5, 0.25, 0.875, 1.0]]),
    "mask": (PixelClasses("x"), [[[[1.0, 2, 3]]]], [[[[3.0, 2, 1]]]]),
    "classes": (PixelClasses("x", 3), [[[[1.0, 2]], [[3.0, 4]]]], [[[[2.0, 1]], [[4.0, 3]]]]),
    "depth": (PixelValues("x"), [[[[1.0, 2], [3, 4]]]], [[[[2.0, 1], [4, 3]]]]),
    "label": (Label("x"), [3.0], [3.0]),
    "classes of an image": (Label("x", 3), [[1.0, 2, 3]], [[1.0, 2, 3]]),
    "values": (Values("x", 2), [[1.0, 2]], [[1.0, 2]]),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_the_mirror_of_an_output(case):
    kind, output, mirrored = OUTPUTS[case]
    assert kind.mirror(torch.tensor(output)).tolist() == mirrored
    assert kind.mirror(torch.tensor(mirrored)).tolist() == output


def test_a_box_is_stored_in_pixels_where_all_networks_agree():
    """The first box covers .82 and .78 of the others' area."""
    one = torch.tensor([0.0, 0.0, 0.5, 1.0])
    close, far = one * torch.tensor([1, 1, 1, 0.82]), one * torch.tensor([1, 1, 1, 0.78])
    assert Box("x").stored([one], (50, 200)).tolist() == [0, 0, 100, 50]
    assert Box("x").stored([one, close], (50, 200)).tolist() == pytest.approx([0, 0, 100, 45.5])
    assert Box("x").stored([one, far], (50, 200)) is None
    assert Box("x").stored([one, one, one, far], (50, 200)) is None  # though on average they agree


def test_a_label_is_stored_where_all_networks_agree():
    no, yes = torch.tensor([-0.1]), torch.tensor([0.1])
    assert Label("x").stored([yes, 9 * yes], (1, 1)) == 1
    assert Label("x").stored([no], (1, 1)) == 0
    assert Label("x").stored([yes, yes, no], (1, 1)) is None
    logits = torch.eye(3)
    assert Label("x", 3).stored([logits[2], 2 * logits[2]], (1, 1)) == 2
    assert Label("x", 3).stored([logits[2], logits[1]], (1, 1)) is None


def test_anything_known_of_a_target_makes_it_known():
    cases = (
        (PixelClasses("x", 3), [[[[255, 255]]], [[[255, 2]]], [[[0, 1]]]], torch.uint8),
        (PixelValues("x"), [[[[NAN, NAN]]], [[[NAN, -1]]], [[[0, 1]]]], torch.float32),
        (PixelValues("x", 2), [[[[NAN]], [[NAN]]], [[[NAN]], [[2]]], [[[0]], [[0]]]], None),
        (Label("x"), [-1.0, 0, 1], None),
        (Label("x", 37), [-1, 0, 36], None),
        (Values("x", 2), [[NAN, NAN], [NAN, 3], [-1, -1]], None),
        (Derived(None), [NAN, 0.0, 2], None),
    )
    for kind, target, dtype in cases:
        assert kind.known(torch.tensor(target, dtype=dtype)).tolist() == [False, True, True]
    boxes = torch.tensor([[0.1, NAN, 0.5, 0.5], [NAN] * 4, [-1.0, 0, 0, 1]])  # all or nothing
    assert Box("x").known(boxes).tolist() == [False, False, True]


def test_a_task_asks_its_target_unless_it_says_otherwise():
    task = Task(PETS["bbox"], None, None, "iou")
    assert task.draw == PETS["bbox"].draw and task.mirror == PETS["bbox"].mirror
    assert task.describe(torch.tensor([0.0, 0, 1, 1]), (4, 2), ()) == {"box": [0.0, 0, 4, 2]}
    assert task.higher_is_better and task.reference is None
    own = Task(PETS["bbox"], None, None, "iou", describe=lambda *_: {"mine": 1}, draw=max)
    assert own.describe(None, None, None) == {"mine": 1} and own.draw is max
    assert own.known(torch.tensor([[NAN] * 4])).tolist() == [False]
    with pytest.raises(AttributeError):
        task.primary = "other"


@pytest.mark.parametrize(("kind", "classes"), [(PixelClasses, 1), (PixelClasses, 255), (Label, 1)])
def test_a_number_of_classes_that_cannot_be_is_refused(kind, classes):
    with pytest.raises(ValueError, match=f"^classes: expected .*, found {classes}$"):
        kind("file", classes=classes)
