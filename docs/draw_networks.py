"""Draw the networks of the five scripts as one small picture, docs/networks.svg.

python docs/draw_networks.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from MTL_main import WIDTHS
from parts.commandline import Parser
from tools.shared.common import command

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"  # Okabe and Ito's, told apart by all readers
MIDDLE = 112  # y of the row of feature maps
HEIGHTS = (100, 76, 56, 40)  # of the feature maps, from stride 4 to stride 32


def text(x, y, words, colour="black", size=13, anchor="middle"):
    """Words around (x, y)."""
    style = f'font-size="{size}" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x}" y="{y}" {style}>{words}</text>'


def block(x, y, width, height, words, fill="#EEEEEE"):
    """A box around (x, y) with words in it."""
    corner = f'x="{x - width / 2:g}" y="{y - height / 2:g}"'
    shape = f'<rect {corner} width="{width:g}" height="{height:g}" rx="3" fill="{fill}" '
    return shape + f'stroke="black"/>{text(x, y + 5, words)}'


def arrow(path, colour="black", dashes=""):
    """An arrow along an SVG path."""
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    head = {"black": "black", GREY: "grey", BLUE: "blue", ORANGE: "orange"}[colour]
    stroke = f'fill="none" stroke="{colour}" stroke-width="1.5"{dashed}'
    return f'<path d="{path}" {stroke} marker-end="url(#{head})"/>'


def feature_map(x, level, channels, fill):
    """A block with its channels and its share of the image's side."""
    yield block(x, MIDDLE, 44, HEIGHTS[level], "", fill)
    yield text(x, MIDDLE, channels)
    yield text(x, MIDDLE + 14, f"1/{4 * 2**level}", GREY, 11)


def heads():
    """The tips of the arrows, one for each colour."""
    colours = {"black": "black", "grey": GREY, "blue": BLUE, "orange": ORANGE}
    for name, colour in colours.items():
        yield (
            f'<marker id="{name}" markerWidth="7" markerHeight="7" refX="6" refY="3.5" '
            f'orient="auto"><path d="M0,0 L7,3.5 L0,7 z" fill="{colour}"/></marker>'
        )


def trunk():
    """The shared encoder and the decoder of the mask, with their skip connections."""
    encoder, decoder = (150, 225, 300, 375), (615, 540, 465)  # x at stride 4, 8, 16 (, 32)
    yield block(55, MIDDLE, 70, HEIGHTS[0], "image", "white")
    yield block(710, MIDDLE, 70, HEIGHTS[0], "mask", "white")
    places = (55, *encoder, *reversed(decoder), 710)
    half = (35, 22, 22, 22, 22, 22, 22, 22, 35)
    for i in range(len(places) - 1):
        yield arrow(f"M{places[i] + half[i]},{MIDDLE} H{places[i + 1] - half[i + 1] - 2}")
    for level, (x, width) in enumerate(zip(encoder, WIDTHS, strict=True)):
        yield from feature_map(x, level, width, "#CFE3F1")
    for level, x in enumerate(decoder):
        top, bend = MIDDLE - HEIGHTS[level] / 2, 22 + 12 * level
        yield arrow(f"M{encoder[level]},{top:g} V{bend} H{x} V{top - 2:g}", GREY)
        yield from feature_map(x, level, WIDTHS[level], "#FBE3C2")
    yield text(262, 14, "shared encoder: channels, and side as a share of the image's", GREY, 11)
    yield text(600, 14, "decoder of the mask", GREY, 11)


def two_heads():
    """The heads of box and class, and what the scripts let them see."""
    yield block(465, 235, 120, 34, "box head")
    yield block(300, 235, 120, 34, "class head")
    yield arrow(f"M375,{MIDDLE + 20} C375,200 420,190 440,216", ORANGE, "6 3")
    yield arrow(f"M465,{MIDDLE + 28} V216", BLUE)
    yield arrow(f"M375,{MIDDLE + 20} C375,200 345,190 325,216")
    yield arrow(f"M455,{MIDDLE + 28} C450,190 365,180 346,216", BLUE)
    yield arrow("M405,235 H362", BLUE)
    yield arrow(f"M710,{MIDDLE + 50} V285 H300 V254")
    yield arrow("M525,235 H588")
    yield text(594, 240, "head box", anchor="start")
    yield arrow("M240,235 H177")
    yield text(171, 240, "cat or dog", anchor="end")
    yield text(383, 228, "where", BLUE, 11)
    yield text(505, 302, "the class head looks where the mask is", GREY, 11)
    yield text(20, 325, "black: all scripts with this head", size=12, anchor="start")
    yield text(225, 325, "orange: MTL_main and MTL_ablation_bbox", ORANGE, 12, "start")
    yield text(495, 325, "blue: MTL_OEQ, with one more level, 1/2", BLUE, 12, "start")


def picture():
    """The whole picture as SVG."""
    font = 'font-family="Helvetica, Arial, sans-serif"'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 770 340" {font}>'
    parts = ('<rect width="770" height="340" fill="white"/>', "<defs>", *heads(), "</defs>")
    return "\n".join([start, *parts, *trunk(), *two_heads(), "</svg>"]) + "\n"


@command
def main(argv):
    """Write the picture; raises UserError."""
    Parser("draw_networks.py", __doc__).parse_args(argv)
    Path(__file__).with_name("networks.svg").write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
