"""One picture with a box and a triangle, in the formats of annotation tools."""

import json
import re

import numpy as np
import pytest

from tools.shared.annotations import FormatError, decode, read_annotations, read_folder
from tools.shared.names import Names
from tools.shared.notes import Note, combine, draw_mask
from tools.shared.pictures import View

SHOWN = View((100, 80))
SIDE = 40  # of masks
RECTANGLE = [10, 20, 60, 20, 60, 70, 10, 70]  # of the picture a.jpg, everywhere
CORNERS = [[10, 20], [60, 20], [60, 70], [10, 70]]
COCO = {
    "images": [
        {"id": 7, "file_name": "photos/a.jpg", "width": 100, "height": 80},
        {"id": 8, "file_name": "b.jpg"},
    ],
    "categories": [{"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 50, 50]}
        | {"segmentation": [RECTANGLE]}
    ],
}
LABELME = {
    "imagePath": "..\\photos\\a.jpg",
    "imageWidth": 100,
    "imageHeight": 80,
    "shapes": [
        {"label": "cat", "shape_type": "polygon", "points": CORNERS},
        {"label": "nose", "shape_type": "point", "points": [[30, 30]]},
    ],
}
POLYGON = "".join(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate(CORNERS, 1))
VOC = f"""<annotation><filename>a.jpg</filename>
<size><width>100</width><height>80</height><depth>3</depth></size>
<object><name>cat</name><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>60</xmax><ymax>70</ymax></bndbox>
<polygon>{POLYGON}</polygon></object></annotation>"""
POINTS = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in CORNERS)
OLD_LABELME = f"""<annotation><filename>a.jpg</filename><object><name>cat</name>
<polygon><username>me</username>{POINTS}</polygon></object></annotation>"""
YOLO = "0 0.1 0.25 0.6 0.25 0.6 0.875 0.1 0.875\n"
FILES = {
    "COCO": ("all.json", json.dumps(COCO)),
    "labelme": ("other.json", json.dumps(LABELME)),
    "VOC": ("a.xml", VOC),
    "LabelMe XML": ("other.xml", OLD_LABELME),
    "YOLO": ("a.txt", YOLO),
}
DRAGGED = {"label": "cat", "shape_type": "rectangle", "points": [[60, 20], [10, 70]]}
BOXES = {
    "COCO": json.dumps(COCO).replace(json.dumps([RECTANGLE]), "[]"),
    "labelme": json.dumps(LABELME | {"shapes": [DRAGGED]}),
    "VOC": VOC.replace(f"<polygon>{POLYGON}</polygon>", ""),
    "YOLO": "0 0.35 0.5625 0.5 0.625\n",
}


def read(folder, name, text):
    (folder / "classes.txt").write_text("cat\ndog\n")
    (folder / name).write_text(text)
    names = Names({"a.jpg": "a.jpg"})
    found = read_annotations(folder / name, names)
    chosen, _ = names.match({note.name for note in found})
    return [note for note in found if note.name == chosen["a.jpg"]]


def rectangle(left, top, right, bottom):
    """uint8 (SIDE, SIDE), 1 within these fractions."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[round(top * SIDE) : round(bottom * SIDE), round(left * SIDE) : round(right * SIDE)] = 1
    return mask


OUTLINED = rectangle(0.1, 0.25, 0.6, 0.875)


@pytest.mark.parametrize("kind", FILES)
def test_outlines(tmp_path, kind):
    notes = read(tmp_path, *FILES[kind])
    known = combine(notes, SHOWN)
    assert known.box == pytest.approx([0.1, 0.25, 0.6, 0.875]) and known.label == "cat"
    assert known.problems == () and known.objects == 1
    assert (draw_mask(notes, SHOWN, SIDE) == OUTLINED).mean() > 0.99


@pytest.mark.parametrize("kind", BOXES)
def test_boxes_without_outlines(tmp_path, kind):
    notes = read(tmp_path, FILES[kind][0], BOXES[kind])
    known = combine(notes, SHOWN)
    assert known.box == pytest.approx([0.1, 0.25, 0.6, 0.875]) and known.label == "cat"
    assert draw_mask(notes, SHOWN, SIDE) is None


def test_a_circle_is_given_by_its_centre_and_a_point_on_it(tmp_path):
    circle = {"label": "cat", "shape_type": "circle", "points": [[35, 45], [35, 70]]}
    notes = read(tmp_path, "other.json", json.dumps(LABELME | {"shapes": [circle]}))
    assert combine(notes, SHOWN).box == pytest.approx([0.1, 0.25, 0.6, 0.875], abs=1e-3)
    area = np.pi * 25**2 / (100 * 80)
    assert draw_mask(notes, SHOWN, SIDE).mean() == pytest.approx(area, rel=0.02)


@pytest.mark.parametrize("kind", ["COCO", "labelme", "VOC"])
def test_pictures_of_another_size(tmp_path, kind):
    notes = read(tmp_path, *FILES[kind])
    small = View((50, 40))
    assert combine(notes, small).box == pytest.approx([0.1, 0.25, 0.6, 0.875])
    assert (draw_mask(notes, small, SIDE) == OUTLINED).mean() > 0.99
    other = combine(notes, View((60, 60)))
    assert other.box is None
    assert "expected a picture of 60 x 60, found a picture of 100 x 80" in other.problems[0][1]
    with pytest.raises(ValueError, match="expected a picture of 60 x 60"):
        draw_mask(notes, View((60, 60)), SIDE)


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_annotations_of_the_stored_picture_are_turned(tmp_path, turn):
    """Against what numpy makes of the mask that is drawn without a rotation."""
    notes = read(tmp_path, *FILES["COCO"])
    stored = OUTLINED
    turned = np.rot90(stored, {6: -1, 7: 2, 8: 1}.get(turn, 0))
    turned = turned.T if turn in (5, 7) else turned
    shown = View((80, 100), turn)
    assert (draw_mask(notes, shown, SIDE) == turned).mean() > 0.98
    rows, columns = turned.any(1).nonzero()[0], turned.any(0).nonzero()[0]
    corners = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / SIDE
    assert combine(notes, shown).box == pytest.approx(corners)
    wide = np.zeros((80, 100), bool)
    wide[20:70, 10:60] = True
    region = [note._replace(polygons=(), region=wide if note.box else None) for note in notes]
    assert (draw_mask(region, shown, SIDE) == turned).mean() > 0.98


def test_an_upright_annotation_of_a_turned_picture_stays(tmp_path):
    notes = read(tmp_path, *FILES["VOC"])
    assert combine(notes, View((100, 80), 6)).box == pytest.approx([0.1, 0.25, 0.6, 0.875])
    assert combine(notes, View((100, 80), 3)).box == pytest.approx([0.1, 0.25, 0.6, 0.875])


def test_of_several_objects_the_largest_counts():
    notes = [
        Note("a", "1", (0, 0, 10, 10), None, "cat"),
        Note("a", "2", (20, 20, 60, 40), None, "dog"),
        Note("a", "3", (20, 20, 60, 40), None, "dog"),
        Note("a", "4", (0, 0, 30, 20), None, "cat"),
    ]
    known = combine(notes, SHOWN)
    assert known.box == pytest.approx([0.2, 0.25, 0.6, 0.5]) and known.label == "dog"
    assert known.objects == 3 and known.problems == ()


def test_rows_complete_or_contradict_each_other():
    notes = [
        Note("a", "1", (0, 0, 10, 10)),
        Note("a", "2", label="cat"),
        Note("a", "3", split="val"),
    ]
    known = combine(notes, SHOWN)
    assert (known.label, known.split, known.objects) == ("cat", "val", 1)
    known = combine([*notes, Note("a", "4", label="dog", split="test")], SHOWN)
    assert (known.label, known.split) == ("", "") and known.problems == (
        ("class", "expected one, found cat, dog"),
        ("split", "expected one, found test, val"),
    )


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((10, 20, 102, 70), r"expected a box inside 100 x 80, found \[10.0, 20.0, 102.0, 70.0\]"),
        ((60, 20, 10, 70), r"expected a box inside 100 x 80, found \[60.0, 20.0, 10.0, 70.0\]"),
        ((0.1, 0.2, 0.6, 0.7), r"expected a box of more than a pixel, found 0.5 x 0.5"),
    ],
)
def test_boxes_that_do_not_fit(box, message):
    known = combine([Note("a", "known.csv line 3", box), Note("a", "", label="cat")], SHOWN)
    ((what, reason),) = known.problems
    assert (known.box, known.label, what) == (None, "cat", "box")
    assert re.fullmatch(message + r" \(known.csv line 3\)", reason)


def test_a_box_is_cut_at_the_frame():
    known = combine([Note("a", "", (-0.5, 1, 101, 80.9))], SHOWN)
    assert known.box == pytest.approx([0, 1 / 80, 1, 1])


def test_an_object_without_outline_is_unknown_in_the_mask():
    ring = np.array([[0, 0], [50, 0], [50, 80], [0, 80]], float)
    notes = [
        Note("a", "", (0, 0, 50, 80), polygons=(ring,)),
        Note("a", "", (25, 20, 75, 40)),
        Note("a", "", (0, 0, 999, 9)),  # does not fit, which `combine` says
    ]
    wanted = rectangle(0, 0, 0.5, 1)
    wanted[10:20, 20:30] = 255
    assert (draw_mask(notes, SHOWN, SIDE) == wanted).mean() > 0.98


RUNS = [5, 2, 3, 1, 1]  # down the columns of 3 x 4 pixels
DECODED = np.array([0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0], bool).reshape(4, 3).T


def test_run_lengths(tmp_path):
    assert (decode({"size": [3, 4], "counts": RUNS}) == DECODED).all()
    # what pycocotools.mask.encode makes of the same, and of a disc
    assert (decode({"size": [3, 4], "counts": "523ON"}) == DECODED).all()
    disc = {"size": [40, 30], "counts": "P89n02N2N2N2O0000000000000001N2N2N2NY8"}
    y, x = np.mgrid[:40, :30]
    assert (decode(disc) == (np.hypot(y - 20, x - 14) < 9)).all()
    with pytest.raises(ValueError, match="expected run lengths of 3 x 4 pixels, found 11"):
        decode({"size": [3, 4], "counts": [5, 2, 4]})
    runs = {"size": [80, 100], "counts": [800, 400, 6800]}
    entry = COCO["annotations"][0] | {"segmentation": runs}
    notes = read(tmp_path, "all.json", json.dumps(COCO | {"annotations": [entry]}))
    assert (draw_mask(notes, SHOWN, SIDE) == rectangle(0.1, 0, 0.15, 1)).all()


def test_a_damaged_object_is_named_and_the_others_count(tmp_path):
    entry = COCO["annotations"][0]
    wrong = [entry | {"id": 2, "bbox": [1, 2, 3]}, entry | {"id": 3, "image_id": 99}]
    notes = read(tmp_path, "all.json", json.dumps(COCO | {"annotations": [*wrong, entry]}))
    known = combine(notes, SHOWN)
    assert known.box == pytest.approx([0.1, 0.25, 0.6, 0.875])
    ((what, reason),) = known.problems
    assert what == "box" and "expected a box or an outline, found" in reason
    assert reason.endswith("(all.json annotation 2)")


DAMAGED = {
    "a.json": ("{", ValueError, "Expecting property name"),
    "b.json": (
        '{"images": [{}], "annotations": []}',
        ValueError,
        "expected a complete .json, found",
    ),
    "c.json": ('{"title": "a.jpg", "views": 3}', FormatError, "expected images and annotations"),
    "a.xml": ("<annotation>", ValueError, "no element found"),
    "b.xml": ("<alto/>", FormatError, "expected <annotation> .Pascal VOC., found <alto>"),
    "c.xml": ("<annotation><object><bndbox/></object></annotation>", ValueError, "complete .xml"),
    "a.txt": ("0 .1 .2 .3", ValueError, "line 1: expected a class and 4 numbers, found 0 .1 .2 .3"),
    "b.txt": ("a cat on a wall", FormatError, "expected the number of a class, found a"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_one_line(tmp_path, name):
    text, kind, message = DAMAGED[name]
    with pytest.raises(kind, match=message) as error:
        read(tmp_path, name, text)
    assert "\n" not in str(error.value)


def test_a_folder_of_files(tmp_path):
    for name, text in (("a.xml", VOC), ("b.xml", "<annotation>"), ("c.xml", "<alto/>")):
        (tmp_path / name).write_text(text)
    for name in ("a.txt", "readme.txt"):
        (tmp_path / name).write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jpg.json").write_text(json.dumps(LABELME))
    names = Names({"a.jpg": "a.jpg"})
    notes, words, files, problems = read_folder(tmp_path, names, recursive=False)
    found = "1 .txt files, 1 .xml files; 2 boxes, 1 outlines"
    assert words == f"{tmp_path.name}: {found}"
    assert [path.name for path in files] == ["a.txt", "a.xml", "b.xml"]
    assert [path.name for path, _ in problems] == ["b.xml"]
    assert len(read_folder(tmp_path, names, recursive=True)[0]) == len(notes) + 2
