"""Draw a synthetic data set of cats and dogs in the H5 layout of dataload.py, for `--demo`.

    python tools/make_demo.py --out DIR [--side 128] [--counts 640 96 96] [--seed 0]

The species differ in shape (ears, head, muzzle, trunk, tail), never in colour: furs, background and
the clutter in it all take their colours from one palette. A pet is a list of parts, each a signed
distance on the pixel grid, in units of the pet's own size: negative inside, positive outside. What
is painted, the mask and the head box all come from the same distances, so they cannot disagree.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS, DataError, write_split

CLASS_NAMES = ("cat", "dog")
PALETTE = np.array(  # RGB 0-255: black, grey, silver, white, cream, ginger, brown, chocolate
    [
        *[(52, 50, 54), (112, 112, 118), (168, 168, 170), (232, 228, 220)],
        *[(222, 190, 148), (204, 130, 66), (148, 100, 62), (92, 62, 46)],
    ],
    np.float32,
)
DARK = np.array((28, 24, 26), np.float32)  # eyes and nose of both species
GLINT = np.array((245, 245, 245), np.float32)


# Signed distances, (H, W) each, of coordinates x and y (H, W).


def rotate(x, y, degrees):
    """Coordinates in a frame turned by `degrees`."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return cosine * x + sine * y, cosine * y - sine * x


def ellipse(x, y, centre, radii, degrees=0.0):
    """Distance to an ellipse; exact on its outline, approximate elsewhere."""
    x, y = rotate(x - centre[0], y - centre[1], degrees)
    return (np.hypot(x / radii[0], y / radii[1]) - 1) * min(radii)


def rounded_box(x, y, centre, half, radius):
    """Distance to a box of half size `half` whose corners are rounded by `radius`."""
    x, y = np.abs(x - centre[0]) - half[0] + radius, np.abs(y - centre[1]) - half[1] + radius
    outside = np.hypot(np.maximum(x, 0), np.maximum(y, 0))
    return outside + np.minimum(np.maximum(x, y), 0) - radius


def capsule(x, y, start, end, radii):
    """Distance to a thick line whose radius goes from radii[0] to radii[1]."""
    along = (end[0] - start[0], end[1] - start[1])
    x, y = x - start[0], y - start[1]
    place = np.clip((x * along[0] + y * along[1]) / (along[0] ** 2 + along[1] ** 2), 0, 1)
    thickness = radii[0] + place * (radii[1] - radii[0])
    return np.hypot(x - place * along[0], y - place * along[1]) - thickness


def curve(x, y, start, bend, end, radius):
    """Distance to a quadratic Bezier curve of thickness `radius`, as eight capsules."""
    steps = np.linspace(0, 1, 9)[:, None]
    points = np.square(1 - steps) * start + 2 * steps * (1 - steps) * bend + np.square(steps) * end
    pieces = zip(points[:-1].tolist(), points[1:].tolist(), strict=True)
    return union(*(capsule(x, y, start, end, (radius, radius)) for start, end in pieces))


def triangle(x, y, corners, radius):
    """Distance to a triangle grown by `radius`; corners clockwise on the screen."""
    sides = []
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        across, down = end[0] - start[0], end[1] - start[1]
        sides.append(((x - start[0]) * down - (y - start[1]) * across) / np.hypot(across, down))
    return np.maximum.reduce(sides) - radius


def union(*shapes):
    """Union of shapes with sharp seams."""
    return np.minimum.reduce(shapes)


def blend(first, second, softness=0.12):
    """Union of two shapes that flow into each other over about `softness`."""
    overlap = np.maximum(softness - np.abs(first - second), 0) / softness
    return np.minimum(first, second) - overlap * overlap * (softness / 4)


# The pets. x points to where the pet looks, y down, (0, 0) is the middle of the trunk or of the
# head. Each function returns a list of (distance, paint) in painting order.


def legs(x, y, places, radius, stride):
    """Two legs that reach the ground at y = 0.7, with paws."""
    shapes = []
    for place, swing in zip(places, (stride, -stride), strict=True):
        foot = place + swing
        shapes.append(capsule(x, y, (place, 0.05), (foot, 0.64), (radius * 1.3, radius * 0.85)))
        shapes.append(ellipse(x, y, (foot + 0.04, 0.65), (radius * 1.3, radius * 0.8)))
    return union(*shapes)


def cat_body(x, y, rng):
    """An oval trunk on thin legs and a long thin curved tail."""
    length, height, thickness, tail_radius = rng.uniform(0.9, 1.1, 4)
    stride = rng.uniform(-0.1, 0.1)
    bend, tip = (-1.05, rng.uniform(0.0, 0.3)), (rng.uniform(-1.0, -0.7), rng.uniform(-0.8, -0.5))
    tail = curve(x, y, (-0.42, -0.05), bend, tip, 0.055 * tail_radius)
    trunk = ellipse(x, y, (-0.02, 0.0), (0.55 * length, 0.27 * height))
    trunk = blend(trunk, capsule(x, y, (0.33, 0.0), (0.5, -0.35), (0.2, 0.17)))
    near = blend(trunk, legs(x, y, (-0.36, 0.36), 0.085 * thickness, stride))
    far = legs(x, y, (-0.2, 0.22), 0.08 * thickness, -stride)
    return [(tail, "fur"), (far, "shade"), (near, "fur")]


def cat_head(x, y, rng):
    """A round face with pointed ears."""
    width, ear_width, ear_height = rng.uniform(0.92, 1.08, 3) * (0.33, 0.28, 0.46)
    face = ellipse(x, y, (0.0, 0.0), (width, 0.28))
    left = [(-ear_width, -0.08), (-0.25, -ear_height), (-0.05, -0.22)]
    right = [(0.05, -0.22), (0.25, -ear_height), (ear_width, -0.08)]
    ears = union(triangle(x, y, left, 0.02), triangle(x, y, right, 0.02))
    eyes = union(*(ellipse(x, y, (place, -0.04), (0.05, 0.065)) for place in (-0.09, 0.17)))
    glints = union(*(ellipse(x, y, (place, -0.07), (0.02, 0.02)) for place in (-0.075, 0.185)))
    nose = triangle(x, y, [(0.0, 0.06), (0.08, 0.06), (0.04, 0.1)], 0.01)
    muzzle = ellipse(x, y, (0.04, 0.13), (0.14, 0.1))
    return [
        (ears, "fur"),
        (ears + 0.045, "shade"),
        (face, "fur"),
        (muzzle, "light"),
        (eyes, "dark"),
        (glints, "glint"),
        (nose, "dark"),
    ]


def dog_body(x, y, rng):
    """A boxy trunk on thick legs and a short straight tail."""
    length, height, thickness, tail_length = rng.uniform(0.9, 1.1, 4)
    stride = rng.uniform(-0.1, 0.1)
    tip = (-0.5 - 0.22 * tail_length, rng.uniform(-0.5, -0.2))
    tail = capsule(x, y, (-0.45, -0.12), tip, (0.09, 0.055))
    trunk = rounded_box(x, y, (-0.02, 0.0), (0.54 * length, 0.27 * height), 0.15)
    trunk = blend(trunk, capsule(x, y, (0.33, 0.0), (0.48, -0.35), (0.22, 0.18)))
    near = blend(trunk, legs(x, y, (-0.36, 0.36), 0.11 * thickness, stride))
    far = legs(x, y, (-0.2, 0.2), 0.1 * thickness, -stride)
    return [(tail, "fur"), (far, "shade"), (near, "fur")]


def dog_head(x, y, rng):
    """A long head with a muzzle and hanging ears."""
    length, ear_width, ear_length = rng.uniform(0.9, 1.1, 3)
    end = 0.16 + 0.22 * length
    skull = rounded_box(x, y, (-0.03, -0.03), (0.27, 0.26), 0.18)
    muzzle = capsule(x, y, (0.1, 0.06), (end, 0.08), (0.17, 0.13))
    ear = ellipse(x, y, (-0.2, 0.06), (0.11 * ear_width, 0.27 * ear_length), 12)
    far_ear = ellipse(x, y, (0.17, -0.1), (0.08 * ear_width, 0.2 * ear_length), -25)
    nose = ellipse(x, y, (end + 0.07, 0.0), (0.065, 0.055))
    return [
        (far_ear, "shade"),
        (blend(skull, muzzle), "fur"),
        (capsule(x, y, (0.2, 0.09), (end, 0.09), (0.07, 0.1)), "light"),
        (ear, "shade"),
        (ellipse(x, y, (0.08, -0.1), (0.05, 0.06)), "dark"),
        (ellipse(x, y, (0.095, -0.125), (0.02, 0.02)), "glint"),
        (nose, "dark"),
    ]


# The picture.


def smooth_noise(rng, side, cells):
    """(side, side) float32 noise of mean 0, about -1 to 1, with features of side / cells pixels."""
    coarse = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def stripes(rng, x, y, waves):
    """(H, W) in [0, 1]: soft stripes of random direction, `waves` of them per unit of length."""
    along, _ = rotate(x, y, rng.uniform(0, 180))
    return 0.5 + 0.5 * np.sin(2 * np.pi * waves * along + rng.uniform(0, 7))


def fur(rng, x, y, side):
    """(H, W, 3) coat of two colours of the palette, as stripes or patches, with fine hair."""
    main, second = PALETTE[rng.integers(len(PALETTE), size=2)] + rng.normal(0, 10, (2, 3))
    if rng.random() < 0.5:
        pattern = stripes(rng, x, y, rng.uniform(2.5, 5)) ** 2
    else:
        pattern = np.clip(4 * smooth_noise(rng, side, int(rng.integers(4, 9))), 0, 1)
    pattern = pattern * rng.uniform(0, 0.7)
    hair = 14 * smooth_noise(rng, side, side // 3)
    return (main + pattern[..., None] * (second - main) + hair[..., None]).astype(np.float32)


def paint(image, distance, colour, scale):
    """Paint a shape on `image` in place, darker at its rim so that parts stand out.

    Args:
        image: (H, W, 3).
        distance: (H, W) in units of `scale` pixels.
        colour: (H, W, 3) or (3,).
    """
    pixels = distance * scale
    coverage = np.clip(0.5 - pixels, 0, 1)[..., None]  # one pixel of anti-aliasing
    shade = np.clip(0.62 - 5 * distance, 0.62, 1)[..., None]
    image += coverage * (colour * shade - image)


def backdrop(rng, x, y, side):
    """(H, W, 3) noisy, striped wall and floor with clutter in the colours of the pets."""
    image = fur(rng, x, y, side)
    floor = fur(rng, x, y, side)
    paint(image, rng.uniform(0.2, 0.6) - y + 0 * x, floor, side / 3)
    for _ in range(rng.integers(3, 7)):
        centre, half = rng.uniform(-1.5, 1.5, 2), rng.uniform(0.1, 0.4, 2)
        turned = rotate(x - centre[0], y - centre[1], rng.uniform(0, 180))
        shapes = (
            lambda u, v, a, b: ellipse(u, v, (0, 0), (a, b)),
            lambda u, v, a, b: rounded_box(u, v, (0, 0), (a, b), 0.05),
            lambda u, v, a, b: triangle(u, v, [(-a, b), (0, -b), (a, b)], 0.02),
            lambda u, v, a, b: capsule(u, v, (-a, 0), (a, 0), (b / 3, b / 3)),
        )
        distance = shapes[rng.integers(len(shapes))](*turned, *half)
        paint(image, distance, fur(rng, x, y, side), side / 3)
    return image


def place_pet(rng, side):
    """Coordinates (H, W) in the frame of a pet that fits the picture, and its pixels per unit."""
    scale = side * rng.uniform(0.29, 0.4)
    centre = side / 2 + rng.uniform(-1, 1, 2) * (side / 2 - scale)
    pixels = np.arange(side, dtype=np.float32) + 0.5
    x, y = np.meshgrid((pixels - centre[0]) / scale, (pixels - centre[1]) / scale)
    return *rotate(x * rng.choice((-1, 1)), y, rng.uniform(-12, 12)), scale


def draw_sample(rng, side, label):
    """One pet of class `label` on its background.

    Returns:
        image uint8 (side, side, 3), mask uint8 (side, side, 1) in {0, 1}, and the box (4,) of the
        head with its ears: xmin, ymin, xmax, ymax in pixels, right and lower edge exclusive.
    """
    pixels = (np.arange(side, dtype=np.float32) + 0.5) / side * 3 - 1.5
    image = backdrop(rng, *np.meshgrid(pixels, pixels), side)
    x, y, scale = place_pet(rng, side)
    coat = fur(rng, x, y, side)
    paints = {
        "fur": coat,
        "shade": coat * 0.72,
        "light": coat * 0.5 + 120,
        "dark": DARK,
        "glint": GLINT,
    }
    draw_body, draw_head = ((cat_body, cat_head), (dog_body, dog_head))[label]
    body = draw_body(x, y, rng)
    head = draw_head(*rotate(x - 0.56, y + 0.44, rng.uniform(-10, 10)), rng)
    for distance, name in body + head:
        paint(image, distance, paints[name], scale)
    head = union(*(distance for distance, _ in head)) < 0
    mask = head | (union(*(distance for distance, _ in body)) < 0)
    rows, columns = np.flatnonzero(head.any(axis=1)), np.flatnonzero(head.any(axis=0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return expose(rng, image, side), mask[..., None].astype(np.uint8), box


def expose(rng, image, side):
    """uint8 photograph of a float (H, W, 3) scene: uneven light, a tint and sensor noise."""
    light = rng.uniform(0.8, 1.15) + 0.15 * smooth_noise(rng, side, 2)
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(2, 8)
    image = image * light[..., None] * rng.uniform(0.93, 1.07, 3) + noise
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def draw_split(seed, split_number, count, side):
    """Arrays of one split by name, as `write_split` takes them; the classes take turns."""
    labels = np.arange(count) % 2
    generators = [np.random.default_rng([seed, split_number, index]) for index in range(count)]
    samples = [draw_sample(rng, side, label) for rng, label in zip(generators, labels, strict=True)]
    images, masks, bboxes = (np.stack(arrays) for arrays in zip(*samples, strict=True))
    return {"images": images, "masks": masks, "bboxes": bboxes, "binary": labels}


def make_demo(folder, side=128, counts=(640, 96, 96), seed=0):
    """Draw the demo and write it to `folder`/{train,val,test} in the layout of dataload.py.

    The same arguments give the same pixels; sample i of a split does not depend on the counts.

    Args:
        folder: created if missing; must not hold a split yet.
        side: height and width of the pictures in pixels, at least 32.
        counts: number of samples in train, val and test, at least 2 each.
        seed: a whole number from 0.

    Raises:
        DataError: `folder` already holds a split.
    """
    folder = Path(folder)
    found = [split for split in SPLITS if (folder / split).exists()]
    if found:
        raise DataError(f"{folder}: expected no split there yet, found {', '.join(found)}")
    folder.mkdir(parents=True, exist_ok=True)
    provenance = {"source": "tools/make_demo.py", "side": side, "seed": seed}
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:  # a killed run leaves no half split
        for number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
            arrays = draw_split(seed, number, count, side)
            target = Path(unfinished) / split
            write_split(target, **arrays, class_names=CLASS_NAMES, provenance=provenance)
        for split in SPLITS:
            (Path(unfinished) / split).rename(folder / split)


def whole_number(low, high):
    """An argparse type: a whole number from `low` to `high`."""

    def parse(text):
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            message = f"expected a whole number from {low} to {high}, found '{text}'"
            raise argparse.ArgumentTypeError(message)
        return int(text)

    return parse


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def main():
    """The command line."""
    parser = Parser(description="Draw a synthetic data set of cats and dogs.")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder without splits yet")
    parser.add_argument("--side", type=whole_number(32, 1024), default=128, help="pixels")
    parser.add_argument("--counts", type=whole_number(2, 10**5), nargs="+", default=[640, 96, 96])
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0)
    arguments = parser.parse_args()
    if len(arguments.counts) != len(SPLITS):
        parser.error(f"argument --counts: expected 3 numbers, found {len(arguments.counts)}")
    try:
        make_demo(arguments.out, arguments.side, arguments.counts, arguments.seed)
    except (DataError, OSError) as error:
        parser.error(f"argument --out: {error}")


if __name__ == "__main__":
    main()
