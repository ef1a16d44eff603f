"""Masks as people have them, all of one disc: read as a person sees them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tools.shared.masks import (
    OPAQUE,
    SCALED,
    SOFT,
    TURNED,
    Choice,
    parse_value,
    read_mask,
    summarise,
)
from tools.shared.pictures import View

WIDTH, HEIGHT, SIDE = 100, 80, 64
Y, X = np.mgrid[:HEIGHT, :WIDTH]
DISTANCE = np.hypot(X - 40, Y - 35)
DISC = (DISTANCE < 20).astype(np.uint8)
NOTHING = np.zeros_like(DISC)
NOISE = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 4), np.uint8)
SHOWN = View((WIDTH, HEIGHT))
ORIENTATION = 0x0112


def resized(pixels):
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST))


def palette(indices, *colours):
    image = Image.frombytes("P", (WIDTH, HEIGHT), indices.astype(np.uint8).tobytes())
    image.putpalette([value for colour in colours for value in colour])
    return image


def rgb(red, green, blue):
    return Image.fromarray(np.dstack([red, green, blue]))


def rgba(pixels, alpha):
    return Image.fromarray(np.dstack([pixels[..., :3], alpha]))


def was_jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return Image.open(file)


def grey(pixels):
    return Image.fromarray(pixels)


def saved(picture, ending=".png", **options):
    """A function that saves a picture at a path that gets this ending."""
    return lambda path: picture.save(path.with_suffix(ending), **options)


WHITE = grey(DISC * 255)
BLURRED = WHITE.filter(ImageFilter.GaussianBlur(1))
FLOATS = DISC.astype(np.float32)
BLACK_RGB = np.dstack([NOTHING] * 3)
CUT = np.where(DISC[..., None] == 1, NOISE[..., :3] // 4 + 96, 255).astype(np.uint8)
IDS = DISC * (1 + (X * 7 + Y * 13) % 255).astype(np.uint8)
EXACT = {  # masks that are the disc to the pixel
    "0 and 1": saved(grey(DISC)),
    "0 and 255": saved(WHITE),
    "0 and 255 of 16 bits": saved(grey(DISC.astype(np.uint16) * 65535)),
    "0 and 1 of 16 bits": saved(grey(DISC.astype(np.uint16))),
    "0 and 1 of 32 bits": saved(grey(DISC.astype(np.int32)), ".tif"),
    "one bit": saved(WHITE.convert("1")),
    "a bitmap": saved(WHITE.convert("1"), ".bmp"),
    "a GIF": saved(WHITE, ".gif"),
    "numbers of cells": saved(grey(IDS)),
    "floats": saved(grey(FLOATS), ".tif"),
    "floats below 1": saved(grey(FLOATS * 0.3), ".tif"),
    "floats up to 255": saved(grey(FLOATS * 255), ".tif"),
    "white first": saved(palette(1 - DISC, (255,) * 3, (0,) * 3)),
    "white first, GIF": saved(palette(1 - DISC, (255,) * 3, (0,) * 3), ".gif"),
    "red on white": saved(palette(DISC, (255,) * 3, (255, 0, 0))),
    "labels in colours": saved(palette(DISC * 2, (0, 0, 0), (128, 0, 0), (0, 128, 0))),
    "labels without colours": saved(palette(DISC * 2, *[(0, 0, 0)] * 3)),
    "first colour clear": saved(palette(DISC, (255,) * 3, (0,) * 3), transparency=0),
    "red is 1": saved(rgb(DISC, NOTHING, NOTHING)),
    "red is 255": saved(rgb(DISC * 255, NOTHING, NOTHING)),
    "blue is 7": saved(rgb(NOTHING, NOTHING, DISC * 7)),
    "white": saved(WHITE.convert("RGB")),
    "white, opaque": saved(WHITE.convert("RGBA")),
    "white, CMYK": saved(WHITE.convert("RGB").convert("CMYK"), ".tif"),
    "a drawing on white": saved(rgb(255 - NOTHING, *[255 - DISC * 255] * 2)),
}
FOUND = {  # the same, which take a decision that is said
    "black on clear": (saved(rgba(BLACK_RGB, DISC * 255)), OPAQUE),
    "white on clear": (saved(rgba(255 - BLACK_RGB, DISC * 255)), OPAQUE),
    "cut out": (saved(rgba(NOISE, DISC * 255)), OPAQUE),
    "cut out, soft": (saved(rgba(NOISE, np.asarray(BLURRED))), OPAQUE),
    "cut out, WebP": (saved(rgba(NOISE, DISC * 255), ".webp"), OPAQUE),
    "second colour clear": (saved(palette(1 - DISC, *[(0,) * 3] * 2), transparency=1), OPAQUE),
    "cut out on white": (saved(grey(CUT)), "white is background"),
    "JPEG": (saved(WHITE, ".jpg"), SOFT),
    "JPEG, coarse": (saved(WHITE, ".jpg", quality=30), SOFT),
    "JPEG, colours": (saved(WHITE.convert("RGB"), ".jpg"), SOFT),
    "JPEG, light grey": (saved(grey(DISC * 200), ".jpg"), SOFT),
    "PNG that was JPEG": (saved(was_jpeg(WHITE)), SOFT),
    "PNG that was a fine JPEG": (saved(was_jpeg(WHITE, quality=95)), SOFT),
    "GIF that was JPEG": (saved(was_jpeg(WHITE), ".gif"), SOFT),
    "palette that was JPEG": (saved(was_jpeg(WHITE.convert("RGB")).quantize(16)), SOFT),
    "no pure black or white": (saved(grey(2 + DISC * 251)), SOFT),
    "soft edges": (saved(BLURRED), SOFT),
    "probabilities": (saved(grey(np.asarray(BLURRED, np.float32) / 255), ".tif"), SOFT),
}


def read(folder, save, choice=Choice(), shown=SHOWN):  # noqa: B008
    save(folder / "mask")
    (path,) = folder.iterdir()
    return read_mask(path, shown, SIDE, choice)


@pytest.mark.parametrize("kind", EXACT)
def test_masks_are_read_as_they_look(tmp_path, kind):
    mask = read(tmp_path, EXACT[kind])
    assert (mask.pixels == resized(DISC)).all() and not {*mask.words} - {"white is background"}
    assert mask.foreground == DISC.mean() and mask.shares[0 if 0 in mask.shares else 255] > 0.8


@pytest.mark.parametrize("kind", FOUND)
def test_what_is_decided_is_said(tmp_path, kind):
    save, words = FOUND[kind]
    mask = read(tmp_path, save)
    assert (mask.pixels == resized(DISC)).all() and mask.words == (words,)


def test_a_coloured_disc_in_a_jpeg(tmp_path):
    mask = read(tmp_path, saved(rgb(DISC * 255, NOTHING, NOTHING), ".jpg"))
    assert mask.words == ("black is background",)
    assert abs(mask.foreground - DISC.mean()) < 0.01  # its colours are stored at half the side


TRIMAP = np.where(DISTANCE < 20, 1, np.where(DISTANCE < 24, 3, 2)).astype(np.uint8)


def test_values_are_chosen(tmp_path):
    save, whole = saved(grey(TRIMAP)), (TRIMAP != 2).astype(np.uint8)
    assert (read(tmp_path, save, Choice((1, 3))).pixels == resized(whole)).all()
    mask = read(tmp_path, save, Choice((1,), (3,)))
    assert (mask.pixels == resized(np.where(TRIMAP == 3, 255, DISC))).all()
    assert mask.foreground == DISC.sum() / (TRIMAP != 3).sum()
    assert read(tmp_path, save).foreground == 1
    mask = read(tmp_path, save, Choice((9,)))
    assert mask.foreground == 0
    line, warnings = summarise({"a": mask, "b": mask}, Choice((9,)))
    assert line == "masks: 2; values 2 (77.6%), 1 (15.6%), 3 (6.8%); foreground 0.0%"
    assert warnings == [
        "masks without foreground: 2 of 2 (a, b); --foreground chooses among the values 1, 2, 3",
        "--foreground 9: found in no mask",
    ]


def test_chosen_colours_and_void(tmp_path):
    colours = np.where(X < 10, 255, DISC * 128).astype(np.uint8)
    with_void = np.where(X < 10, 255, DISC).astype(np.uint8)
    save = saved(rgb(colours, np.where(X < 10, 255, 0).astype(np.uint8), NOTHING))
    mask = read(tmp_path, save, Choice((parse_value("#800000"),), (parse_value("#FFff00"),)))
    assert (mask.pixels == resized(with_void)).all()
    words = "values 0 (74.4%), #800000 (15.6%), #ffff00 (10.0%)"
    assert words in summarise({"": mask}, Choice())[0]
    assert parse_value("#070707") == 7 and parse_value("12") == 12


def test_black_is_chosen(tmp_path):
    mask = read(tmp_path, saved(grey(255 - DISC * 255)), Choice((0,)))
    assert (mask.pixels == resized(DISC)).all()


def test_a_chosen_grey_in_a_jpeg(tmp_path):
    pixels = np.where(DISTANCE < 20, 255, np.where(DISTANCE < 26, 128, 0)).astype(np.uint8)
    mask = read(tmp_path, saved(grey(pixels), ".jpg"), Choice((), (128,)))
    assert {*mask.shares} == {0, 128, 255}
    assert ((mask.pixels == 1) == (resized(DISC) == 1)).mean() > 0.99


def test_nan_is_unknown(tmp_path):
    floats = FLOATS.copy()
    floats[:5] = np.nan
    mask = read(tmp_path, saved(grey(floats), ".tif"))
    assert (mask.pixels[:4] == 255).all() and (mask.pixels[4:] == resized(DISC)[4:]).all()
    assert mask.foreground == DISC.sum() / DISC[5:].size
    assert "nan (6.2%)" in summarise({"": mask}, Choice())[0]


def test_pages_add_up(tmp_path):
    left, right = DISC.copy(), DISC.copy()
    left[:, 40:], right[:, :40] = 0, 0
    preview = grey(right[::4, ::4] * 255)
    pages = [grey(right * 255), preview]
    save = saved(grey(left * 255), ".tif", save_all=True, append_images=pages)
    mask = read(tmp_path, save)
    assert (mask.pixels == resized(DISC)).all()
    assert mask.words == ("several pages, whose foregrounds are joined",)
    # if the picture has pages too, the first one is the first one's
    assert (read(tmp_path, save, shown=SHOWN._replace(pages=3)).pixels == resized(left)).all()


@pytest.mark.parametrize(("scale", "wrong"), [(0.5, 0.01), (2, 0), (0.33, 0.02)])
def test_masks_of_another_size_are_scaled(tmp_path, scale, wrong):
    size = (round(WIDTH * scale), round(HEIGHT * scale))
    mask = read(tmp_path, saved(WHITE.resize(size, 0)))
    assert (mask.pixels != resized(DISC)).mean() <= wrong and mask.words == (SCALED,)


# Orientation 6: the stored picture must be turned by 90 degrees clockwise; 3: upside down.
UPRIGHT = {3: np.rot90(DISC, 2), 6: np.rot90(DISC, -1)}


def rotated(turn):
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    return exif


@pytest.mark.parametrize("turn", [3, 6])
@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("has_own", [False, True])
def test_a_mask_on_the_stored_pixels_is_turned_with_its_picture(
    tmp_path, turn, scale, ending, has_own
):
    small = WHITE.resize((round(WIDTH * scale), round(HEIGHT * scale)), 0)
    save, upright = saved(small, ending, exif=rotated(turn if has_own else 1)), UPRIGHT[turn]
    mask = read(tmp_path, save, shown=View(upright.shape[::-1], turn))
    assert (mask.pixels != resized(upright)).mean() < 0.02
    own_of_a_tiff = has_own and ending == ".tif"  # Pillow turns it
    assert set(mask.words) == {TURNED} - ({TURNED} if own_of_a_tiff else set()) | (
        {SCALED} if scale != 1 else set()
    )


def test_a_mask_on_the_upright_picture_stays(tmp_path):
    upright = UPRIGHT[6] * 255
    shown = View(upright.shape[::-1], 6)
    mask = read(tmp_path, saved(grey(upright)), shown=shown)
    assert (mask.pixels == resized(UPRIGHT[6])).all() and mask.words == ()
    # left behind by a program that has turned the pixels
    mask = read(tmp_path, saved(grey(upright), exif=rotated(6)), shown=shown)
    assert (mask.pixels == resized(UPRIGHT[6])).all()


def huge(path):
    """A PNG that claims 20,000 x 20,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    path.with_suffix(".png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + data)


def truncated(path):
    saved(grey(NOISE[..., 0]))(path)
    path.with_suffix(".png").write_bytes(path.with_suffix(".png").read_bytes()[:4000])


REFUSED = {
    "shape": (saved(WHITE.resize((50, 50))), r"expected a mask of \(100, 80\), found \(50, 50\)"),
    "text": (lambda p: p.with_suffix(".png").write_text("x"), "cannot identify image file"),
    "truncated": (truncated, "(?i)truncated"),
    "huge": (huge, r"exceeds limit of \d+ pixels"),
    "a photo": (
        saved(grey(NOISE[..., :3]), ".jpg"),
        "expected a mask, found a picture with many colours and no black or white background",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_mask_is_refused_in_one_line(tmp_path, kind):
    save, message = REFUSED[kind]
    with pytest.raises((OSError, ValueError), match=message) as error:
        read(tmp_path, save)
    assert "\n" not in str(error.value)


def test_masks_of_one_kind_alone_are_a_warning(tmp_path):
    some = read(tmp_path, saved(WHITE))
    none = read(tmp_path, saved(grey(NOTHING)))
    full = read(tmp_path, saved(grey(NOTHING + 1)))
    line, warnings = summarise({"a": some, "b": none, "c": full, "d": none}, Choice())
    assert line == "masks: 4; values 0 (71.1%), 1 (25.0%), 255 (3.9%); foreground 28.9%"
    assert warnings == [
        "masks without foreground: 2 of 4 (b, d)",
        "masks without background: 1 of 4 (c)",
    ]
    assert summarise({"a": some}, Choice())[1] == []
    assert summarise({"c": full}, Choice())[1] == ["masks without background: 1 of 1 (c)"]
