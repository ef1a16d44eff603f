"""Names of classes in any alphabet, on an overlay and in the title of a figure."""

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from parts import figures, fonts
from tools import predict

SIZE = 20


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Puts on the machine a damaged font and one that has a square for 猫 and nothing else."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "cat"])
    font.setupCharacterMap({ord("猫"): "cat"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (900, 0), "cat": (900, 0)})
    font.setupHorizontalHeader(ascent=900)
    font.setupNameTable({"familyName": "One Cat", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    (tmp_path / "a.ttf").write_bytes(b"damaged")
    font.save(tmp_path / "cat.ttf")
    paths = [str(tmp_path / "cat.ttf"), str(tmp_path / "a.ttf")]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: paths)
    fonts.font_file.cache_clear()
    yield
    fonts.font_file.cache_clear()


def written(words, size=SIZE):
    """The first line of a picture, (H, W), with these words on it."""
    picture = Image.new("L", (300, 2 * size), 100)
    predict.write(picture, words, size)
    return np.asarray(picture)


@pytest.mark.parametrize("letters", ["кж", "γλ", "قط", "éß", "猫a"])
def test_letters_of_every_alphabet_have_their_own_shapes(letters, capsys):
    one, other = map(written, letters)
    assert (one == 255).any() and (other == 255).any() and (one != other).any()
    assert capsys.readouterr().err == ""


def test_each_word_is_written_in_a_font_that_has_it():
    """The square of 猫 is 0.9 of the size wide and high; the Latin letters follow."""
    found = written("猫, probability 0.98") == 255
    assert found[5:20, 2:18].all()
    assert np.array_equal(found[:, 19:200], (written(", probability 0.98") == 255)[:, 1:182])


def test_letters_that_no_font_has_are_named_once_and_crash_nothing(capsys):
    assert (written("犬猫 x") == 255).any() and (written("犬猫 y") == 255).any()
    assert capsys.readouterr().err == "warning: expected a font with 犬, found none\n"


@pytest.mark.parametrize("size", [14, 40])
def test_the_words_are_as_high_as_asked_for(size):
    rows = (written("Cat", size) == 0).any(1).nonzero()[0]
    assert size <= np.ptp(rows) <= 1.5 * size


@pytest.mark.parametrize("letter", ["猫", "犬"])
def test_titles_of_figures_find_the_letters_too(tmp_path, recwarn, capsys, letter):
    with figures.plain_style():
        figure = figures.Figure()
        axis = figure.subplots()
        figures.show(axis, torch.zeros(3, 8, 8, dtype=torch.uint8), f"prediction: {letter} $1")
        figures.save(figure, tmp_path / "x.png")
    assert not recwarn and ("found none" in capsys.readouterr().err) == (letter == "犬")
    assert ("One Cat" in axis.title.get_fontfamily()) == (letter == "猫")
