"""Fonts for text in any alphabet, from matplotlib and the machine."""

import contextlib
import functools
import re

from PIL import ImageFont

from parts.streams import STDERR


def split_by_font(words, size):
    """Words as a list of (text, Pillow font of this size that has its letters)."""
    plain = ImageFont.load_default(size)
    return [
        (text, plain if text.isascii() else ImageFont.truetype(font_file(frozenset(text)), size))
        for text in re.findall(r"[\s,.]+|[^\s,.]+", words)
    ]


def families(text):
    """The fonts in which matplotlib looks for each letter of a text, in this order."""
    words = [frozenset(word) for word in text.split() if not word.isascii()]
    return ["DejaVu Sans", *dict.fromkeys(family(font_file(letters)) for letters in words)]


@functools.cache
def font_file(letters):
    """The file of the first font with all of these letters (a frozenset), or with most of them.

    One line on stderr names the letters that no font has; they are drawn as boxes.
    """
    from matplotlib import font_manager  # takes long to import

    best, least = None, letters
    for path in [font_manager.findfont("DejaVu Sans"), *sorted(font_manager.findSystemFonts())]:
        with contextlib.suppress(Exception):  # a damaged font, or one that Pillow cannot scale
            ImageFont.truetype(path, 20)
            lacking = letters - set(map(chr, font_manager.get_font(path).get_charmap()))
            if best is None or len(lacking) < len(least):
                best, least = path, lacking
            if not lacking:
                return path
    STDERR.say(f"warning: expected a font with {' '.join(sorted(least))}, found none")
    return best


@functools.cache
def family(path):
    """The name under which matplotlib knows the font in a file."""
    from matplotlib import font_manager

    font_manager.fontManager.addfont(path)
    return font_manager.get_font(path).family_name
