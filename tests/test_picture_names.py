"""Names as people write them, and the one picture that each means."""

import unicodedata

import pytest

from tools.shared.names import Names, masks_among

NAMES = {  # a picture and a name that means it
    "as it is": ("x.jpg", "x.jpg"),
    "no ending": ("x.jpg", "x"),
    "another ending": ("x.jpg", "x.PNG"),
    "of an annotation": ("x.jpg", "x.xml"),
    "a point in the name": ("x.v2.jpg", "x.v2"),
    "a folder": ("x.jpg", "photos/x.jpg"),
    "folders of Windows": ("x.jpg", "C:\\photos\\x.jpg"),
    "folders in common": ("cat/x.jpg", "photos/cat/x.png"),
    "another case": ("IMG_7.JPG", "img_7.jpg"),
    "two endings": ("x.jpg", "x.jpg.png"),
    "a mask": ("x.jpg", "x_mask.png"),
    "a mask of two words": ("x.jpg", "x-seg_mask.gif"),
    "a mask in front": ("x.jpg", "Mask_x.png"),
    "a mask with a space": ("benign (1).png", "benign (1)_mask.png"),
    "words on both sides": ("7_sat.jpg", "7_mask.png"),
    "zeros that a spreadsheet drops": ("0007.jpg", "7"),
    "an accent apart": ("Käse.jpg", unicodedata.normalize("NFD", "Käse.png")),
    "an accent apart in the picture": (unicodedata.normalize("NFD", "Käse.jpg"), "KÄSE"),
}


def match(pictures, names):
    return Names({picture: picture for picture in pictures}).match(names)


@pytest.mark.parametrize("kind", NAMES)
def test_usual_names_are_matched(kind):
    picture, name = NAMES[kind]
    assert match([picture, "y.jpg", "dog/z.jpg"], [name, "w.png"]) == (
        {picture: name},
        {"w.png": "no picture has that name"},
    )


def test_what_is_not_unique_is_not_used():
    pictures = ["cat/1.jpg", "dog/1.jpg", "x.jpg", "x.png"]
    assert match(pictures, ["1.jpg", "x"]) == (
        {},
        {"1.jpg": "it fits 2 pictures", "x": "it fits 2 pictures"},
    )
    assert match(pictures, ["dog/1.jpg", "x.png"])[0] == {
        "dog/1.jpg": "dog/1.jpg",
        "x.png": "x.png",
    }
    assert match(["a.jpg", "A.jpg"], ["A.jpg", "a"])[0] == {"A.jpg": "A.jpg", "a.jpg": "a"}


def test_the_closest_of_two_names_counts():
    used, unused = match(["x.jpg"], ["x_mask.png", "x.png"])
    assert used == {"x.jpg": "x.png"}
    assert unused == {"x_mask.png": "its picture also fits x.png"}
    used, unused = match(["1.jpg"], ["cat/1.jpg", "dog/1.jpg"])
    assert not used and unused == {
        "cat/1.jpg": "its picture also fits dog/1.jpg",
        "dog/1.jpg": "its picture also fits cat/1.jpg",
    }


def test_masks_beside_their_images():
    texts = ["1.jpg", "1_mask.png", "2.jpg", "2_label.png", "mask.jpg", "3_mask.jpg"]
    assert masks_among(texts) == {"1_mask.png"}
    assert masks_among(texts, are_included=True) == {"1_mask.png", "2_label.png"}
    assert masks_among(["1.jpg", "1.png", "2.png"]) == set()
    assert masks_among(["1.jpg", "1.png", "2.png"], are_included=True) == {"1.png"}
