"""Cats and dogs drawn from formulas, with exact masks, head boxes and classes.

    make_demo(folder)                                           the data set of `--demo`
    make_demo(folder, counts=(3000, 96, 96), style="varied")    for pre-training

The species differ in shape (ears, head, muzzle, trunk, tail), never in colour: furs, background and
the clutter in it take their colours from the same palette for both. A pet is a list of parts, each
a signed distance on the pixel grid, in units of the pet's own size: negative inside, positive
outside. Picture, mask and head box all come from the same distances, so they cannot disagree.

The style "varied" draws pets that stand, sit, lie, curl up or face the camera, near or far, cut by
the frame, behind objects, with many coats, backgrounds and lights. Mask and box cover only what is
visible, not what lies behind an object or outside the frame. Training on pictures drawn by formulas
was introduced by Kataoka et al., Pre-training without Natural Images (arXiv:2101.08515), and for
segmentation by Shinoda et al., SegRCDB (arXiv:2309.17083).
"""

import os
import signal
import tempfile
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import closing
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

CLASS_NAMES = ("cat", "dog")
HEAD_REACH = 0.8  # no part of a head is farther from its centre
CHUNK = 16  # samples that a process draws at a time
POOLED_PIXELS = 200 * 128**2  # fewer are drawn before other processes have started
PALETTE = np.array(  # RGB 0-255: black, grey, silver, white, cream, ginger, brown, chocolate
    [
        *[(52, 50, 54), (112, 112, 118), (168, 168, 170), (232, 228, 220)],
        *[(222, 190, 148), (204, 130, 66), (148, 100, 62), (92, 62, 46)],
    ],
    np.float32,
)
DARK = np.array((28, 24, 26), np.float32)  # eyes and nose of both species
EYES = {"dark": DARK, "glint": np.array((245, 245, 245), np.float32)}


# Signed distances, (H, W) each, of coordinates x and y (H, W).


def rotate(x, y, degrees):
    """Coordinates in a frame turned by `degrees`."""
    cosine, sine = float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))
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
        length = float(np.hypot(across, down))
        sides.append(((x - start[0]) * down - (y - start[1]) * across) / length)
    return np.maximum.reduce(sides) - radius


def union(*shapes):
    """Union of shapes with sharp seams."""
    return np.minimum.reduce(shapes)


def blend(first, second, softness=0.12):
    """Union of two shapes that flow into each other over about `softness`."""
    overlap = np.maximum(softness - np.abs(first - second), 0) / softness
    return np.minimum(first, second) - overlap * overlap * (softness / 4)


# The pets. x points to where the pet looks, y down; (0, 0) is the centre of the trunk or of the
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


def cat_head(x, y, rng, label=0):
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


def dog_head(x, y, rng, label=1):
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


def fur(rng, x, y, side, where=...):
    """float32 (H, W, 3) coat of two colours of the palette, as stripes or patches, with fine hair.

    Only the part `where` of it, an index of (H, W), is computed and returned.
    """
    main, second = PALETTE[rng.integers(len(PALETTE), size=2)] + rng.normal(0, 10, (2, 3))
    if rng.random() < 0.5:
        pattern = stripes(rng, x[where], y[where], rng.uniform(2.5, 5)) ** 2
    else:
        pattern = np.clip(4 * smooth_noise(rng, side, int(rng.integers(4, 9)))[where], 0, 1)
    pattern = pattern * rng.uniform(0, 0.7)
    hair = 14 * smooth_noise(rng, side, side // 3)[where]
    return mix(main, second, pattern, hair)


def mix(main, second, share, grain):
    """float32 (H, W, 3): colours (3,), `share` (H, W) of the second, and `grain` (H, W) added.

    It is stored plane by plane, because NumPy loops slowly over three colours.
    """
    main, second = main[:, None, None], second[:, None, None]
    planes = (main + share * (second - main) + grain).astype(np.float32)
    return np.moveaxis(planes, 0, -1)


def window(inside):
    """The slices (rows, columns) around what is True in (H, W); empty if nothing is."""
    found = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    return tuple(slice(at[0], at[-1] + 1) if at.size else slice(0, 0) for at in found)


def paint(image, distance, colour, scale, rim=0.62):
    """Paint a shape on `image` in place, darker by `rim` at its rim so that parts stand out.

    Args:
        image: (H, W, 3).
        distance: (H, W) in units of `scale` pixels.
        colour: (H, W, 3) or (3,), or a function that gives the part of it at an index.
    """
    where = window(distance * scale < 0.5)  # elsewhere the coverage is 0
    image, distance = image[where], distance[where]
    colour = colour(where) if callable(colour) else colour[where] if colour.ndim == 3 else colour
    coverage = np.clip(0.5 - distance * scale, 0, 1)[..., None]  # one pixel of anti-aliasing
    shade = np.clip(rim - 5 * distance, rim, 1)[..., None]
    image += coverage * (colour * shade - image)


def clutter(rng, x, y):
    """Distance to an ellipse, box, triangle or bar of random position and size."""
    centre, half = rng.uniform(-1.5, 1.5, 2).tolist(), rng.uniform(0.1, 0.4, 2).tolist()
    turned = rotate(x - centre[0], y - centre[1], rng.uniform(0, 180))
    shapes = (
        lambda u, v, a, b: ellipse(u, v, (0, 0), (a, b)),
        lambda u, v, a, b: rounded_box(u, v, (0, 0), (a, b), 0.05),
        lambda u, v, a, b: triangle(u, v, [(-a, b), (0, -b), (a, b)], 0.02),
        lambda u, v, a, b: capsule(u, v, (-a, 0), (a, 0), (b / 3, b / 3)),
    )
    return shapes[rng.integers(len(shapes))](*turned, *half)


def backdrop(rng, x, y, side):
    """(H, W, 3) noisy, striped wall and floor with clutter in the colours of the pets."""
    image = fur(rng, x, y, side)
    floor = fur(rng, x, y, side)
    paint(image, rng.uniform(0.2, 0.6) - y.astype(np.float32), floor, side / 3)
    for _ in range(rng.integers(3, 7)):
        distance = clutter(rng, x, y)
        paint(image, distance, lambda where: fur(rng, x, y, side, where), side / 3)
    return image


def grid(side, dtype):
    """x and y (side, side) of the pixel centres, from -1.5 to 1.5 across the picture."""
    pixels = (np.arange(side, dtype=np.float32) + 0.5) / side * 3 - 1.5
    return np.meshgrid(pixels.astype(dtype), pixels.astype(dtype))


def place_pet(rng, side):
    """Coordinates (H, W) in the frame of a pet that fits the picture, and its pixels per unit."""
    scale = side * rng.uniform(0.29, 0.4)
    centre = side / 2 + rng.uniform(-1, 1, 2) * (side / 2 - scale)
    pixels = np.arange(side) + 0.5
    x, y = np.meshgrid((pixels - centre[0]) / scale, (pixels - centre[1]) / scale)
    return *rotate(x * rng.choice((-1, 1)), y, rng.uniform(-12, 12)), scale


def paint_pet(image, body, head, near, paints, scale, rim=0.62):
    """Paint the parts of a body, and those of a head at the index `near`, in place."""
    for distance, name in body:
        paint(image, distance, paints[name], scale, rim)
    for distance, name in head:
        colour = paints[name][near] if paints[name].ndim == 3 else paints[name]
        paint(image[near], distance, colour, scale, rim)


def silhouettes(body, head, near, side):
    """What pet and head cover, bool (side, side) each; the parts are as in `paint_pet`."""
    in_head = np.zeros((side, side), bool)
    in_head[near] = union(*(distance for distance, _ in head)) < 0
    return in_head | (union(*(distance for distance, _ in body)) < 0), in_head


def draw_demo(rng, side, label):
    """One whole pet of class `label` in profile on its background, with nothing in front of it.

    Returns:
        image uint8 (side, side, 3), and what the mask and the head cover, bool (side, side) each.
    """
    image = backdrop(rng, *grid(side, np.float64), side)
    x, y, scale = place_pet(rng, side)
    coat = fur(rng, x, y, side)
    paints = {"fur": coat, "shade": coat * 0.72, "light": coat * 0.5 + 120, **EYES}
    draw_body, draw_head = ((cat_body, cat_head), (dog_body, dog_head))[label]
    body = draw_body(x, y, rng)
    x, y = rotate(x - 0.56, y + 0.44, rng.uniform(-10, 10))
    near = window(np.hypot(x, y) < HEAD_REACH)
    head = draw_head(x[near], y[near], rng)
    paint_pet(image, body, head, near, paints, scale)
    return expose(rng, image, side), *silhouettes(body, head, near, side)


def expose(rng, image, side):
    """uint8 photograph of a float (H, W, 3) scene: uneven light, a tint and sensor noise."""
    light = rng.uniform(0.8, 1.15) + 0.15 * smooth_noise(rng, side, 2)
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(2, 8)
    image = image * light[..., None] * rng.uniform(0.93, 1.07, 3) + noise
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# The varied style. Its coordinates are float32, which halves the time.

# Poses: where the head is, then groups of limbs that flow into each other, from back to front: a
# paint, and for each limb from x, y to x, y with two radii. The ground is at y = 0.7.
SITTING = (
    (0.42, -0.55),
    ("shade", (0.4, 0.0, 0.47, 0.64, 0.11, 0.08)),
    ("fur", (0.25, -0.2, -0.12, 0.36, 0.22, 0.32), (0.22, -0.2, 0.38, -0.5, 0.22, 0.17)),
    ("fur", (0.3, 0.0, 0.36, 0.62, 0.13, 0.09), (0.36, 0.65, 0.44, 0.66, 0.08, 0.07)),
    ("fur", (-0.18, 0.42, -0.02, 0.42, 0.26, 0.2), (-0.1, 0.63, 0.14, 0.65, 0.1, 0.07)),
)
LYING = (
    (0.6, -0.15),
    ("shade", (0.4, 0.5, 0.95, 0.55, 0.11, 0.08)),
    ("fur", (-0.45, 0.4, 0.3, 0.36, 0.29, 0.27), (0.3, 0.3, 0.54, 0.0, 0.23, 0.18)),
    ("fur", (0.35, 0.55, 0.8, 0.61, 0.13, 0.08)),
    ("fur", (-0.5, 0.42, -0.36, 0.46, 0.26, 0.22), (-0.45, 0.62, -0.05, 0.63, 0.08, 0.07)),
)
FACING = (
    (0.0, -0.5),
    ("fur", (0.0, -0.3, 0.0, 0.34, 0.2, 0.34), (-0.3, 0.5, 0.3, 0.5, 0.21, 0.21)),
    ("shade", (-0.4, 0.66, -0.28, 0.67, 0.08, 0.07), (0.4, 0.66, 0.28, 0.67, 0.08, 0.07)),
    ("light", (0.0, -0.2, 0.0, 0.15, 0.1, 0.15)),
    ("fur", (-0.12, 0.05, -0.14, 0.64, 0.1, 0.08), (-0.14, 0.66, -0.16, 0.67, 0.09, 0.09)),
    ("fur", (0.12, 0.05, 0.14, 0.64, 0.1, 0.08), (0.14, 0.66, 0.16, 0.67, 0.09, 0.09)),
)
CURLED = (
    (0.42, 0.12),
    ("fur", (-0.3, 0.3, 0.3, 0.34, 0.38, 0.34)),
    ("fur", (-0.4, 0.4, -0.25, 0.45, 0.26, 0.22)),
    ("shade", (0.2, 0.6, 0.6, 0.62, 0.1, 0.08)),
)
STANDING = ((0.56, -0.44),)  # drawn as in the demo
POSES = (STANDING, SITTING, LYING, FACING, CURLED)


def posed_body(x, y, rng, label):
    """A pet of class `label` that sits, lies, faces the camera or curls up, or stands.

    Args:
        x, y: coordinates whose origin is the centre of the head.

    Returns:
        the parts, and the coordinates of the body.
    """
    place, *groups = POSES[rng.integers(len(POSES))]
    x, y = x + place[0], y + place[1]
    if not groups:
        return (cat_body, dog_body)[label](x, y, rng), x, y
    wide, leg = rng.uniform(0.85, 1.2), rng.uniform(0.85, 1.15) * (0.95, 1.2)[label]
    root, way = (-0.45 if place[0] else 0.0, 0.5), -1 if place[0] else rng.choice((-1.0, 1.0))
    if label == 0:
        tip = (root[0] + way * rng.uniform(-0.2, 0.5), rng.uniform(-0.3, 0.65))
        tail = curve(x, y, np.array(root), (root[0] + way * 0.6, 0.8), tip, rng.uniform(0.05, 0.07))
    else:
        tip = (root[0] + way * rng.uniform(0.3, 0.5), rng.uniform(0.1, 0.6))
        tail = capsule(x, y, root, tip, (0.1, 0.05))
    parts = [(tail, "fur")]
    for name, *limbs in groups:
        shape = None
        for *ends, first, second in limbs:
            thick = leg if first < 0.15 else wide
            ends = [end + float(rng.normal(0, 0.02)) for end in ends]
            limb = capsule(x, y, ends[:2], ends[2:], (first * thick, second * thick))
            shape = limb if shape is None else blend(shape, limb, 0.15)
        parts.append((shape, name))
    return parts, x, y


def frontal_ears(x, y, rng, label):
    """Pointed ears for a cat; hanging, folded or pricked ones for a dog."""
    kind, size = rng.integers(3), rng.uniform(0.85, 1.15)
    x, lean = np.abs(x), rng.uniform(5, 30)
    if label == 0:
        corners = [(0.05, -0.2), (rng.uniform(0.2, 0.3), -0.46 * size), (0.29, -0.06)]
    elif kind == 0:
        return ellipse(x, y, (0.26, 0.04), (0.1 * size, 0.27 * size), -lean)
    elif kind == 1:
        corners = [(0.06, -0.2), (0.33, -0.28 * size), (0.35, 0.0)]
    else:
        corners = [(0.07, -0.2), (0.22, -0.56 * size), (0.28, -0.1)]
    return triangle(x, y, corners, 0.02)


def frontal_head(x, y, rng, label):
    """A head that faces the camera, or is turned from it by up to about 45 degrees."""
    turn, eye = rng.uniform(0, 0.5), rng.uniform(0.85, 1.15) * (0.065, 0.05)[label]
    ears, shift = frontal_ears(x + 0.05 * turn, y, rng, label), 0.16 * turn
    if label == 0:
        face = ellipse(x, y, (0, 0), (rng.uniform(0.29, 0.35), rng.uniform(0.25, 0.3)))
        end, radius = (1.3 * shift, 0.12), rng.uniform(0.08, 0.1)
        nose = ellipse(x, y, (end[0], 0.07), (0.04, 0.03))
    else:
        face = rounded_box(x, y, (0, -0.03), (rng.uniform(0.23, 0.28), 0.25), 0.2)
        end, radius = (0.38 * turn, rng.uniform(0.1, 0.2)), rng.uniform(0.11, 0.15)
        nose = ellipse(x, y, (end[0], end[1] - 0.05), (0.07, 0.055))
    muzzle = capsule(x, y, (0.5 * end[0], 0.06), end, (1.2 * radius, radius))
    face, apart, lid = blend(face, muzzle), rng.uniform(0.11, 0.15), rng.uniform(0.3, 1)
    eyes = [(shift + way * apart * (1 - 0.3 * turn), -0.07) for way in (-1, 1)]
    iris = union(*(ellipse(x, y, at, (eye, eye * lid)) for at in eyes))
    slit = (eye * rng.uniform(0.3, 0.9), eye * lid)
    pupil = union(*(ellipse(x, y, at, slit) for at in eyes))
    glint = union(*(ellipse(x, y, (u + 0.02, v - 0.02), (0.015, 0.015)) for u, v in eyes))
    mouth = (end[0], end[1] + 0.7 * radius)
    mouth = ellipse(x, y, mouth, (0.6 * radius, rng.uniform(0.01, 0.03)))
    parts = [(muzzle, "light"), (iris, "iris"), (pupil, "dark"), (glint, "glint")]
    parts = [(face, "fur"), *parts, (mouth, "dark"), (nose, "nose")]
    if label == 0 or rng.random() < 0.4:
        return [(ears, "point"), (ears + 0.05, "pink"), *parts]
    return [*parts, (ears, "point")]


def coat(rng, x, y, side):
    """The paints of a pet by name; its coat has stripes, patches, spots or a gradient."""
    share = rng.random((3, 1))
    colours = PALETTE[rng.integers(len(PALETTE), size=(2, 3))]  # (2, 3, RGB)
    main, second, third = colours[0] * share + colours[1] * (1 - share) + rng.normal(0, 8, (3, 3))
    pattern = (
        lambda: stripes(rng, x + 0.15 * smooth_noise(rng, side, 5), y, rng.uniform(2, 5)) ** 2,
        lambda: np.clip(rng.uniform(2, 12) * smooth_noise(rng, side, rng.integers(2, 8)), 0, 1),
        lambda: np.clip(8 * smooth_noise(rng, side, rng.integers(12, 25)) - 2, 0, 1),
        lambda: np.clip(0.5 + rng.uniform(-2, 2) * y + 0.3 * smooth_noise(rng, side, 6), 0, 1),
    )[rng.integers(4)]()
    hair = sum(rng.uniform(5, 22) * smooth_noise(rng, side, cells) for cells in (side // 3, 8))
    fur = mix(main, second, pattern * rng.uniform(0, 1), hair)
    light, third = rng.uniform(0, 0.9), third.astype(np.float32)
    return {
        "fur": fur,
        "shade": fur * rng.uniform(0.55, 0.9),
        "light": fur * (1 - light) + light * (0.5 * third + 115),
        "point": fur * (1 - light) + light * third,
        "pink": 0.4 * fur + np.float32((110, 70, 70)),
        "iris": np.float32(((200, 170, 60), (110, 150, 80), (90, 140, 190), DARK)[rng.integers(4)]),
        "nose": DARK + rng.integers(2) * np.float32((90, 50, 45)),
        **EYES,
    }


def surface(rng, x, y, side, where=...):
    """float32 (H, W, 3), the part `where` of a wall, lawn, board, cloth or fur."""
    if rng.random() < 0.25:
        return fur(rng, x, y, side, where)
    colours = rng.uniform(20, 235, (2, 1)) + rng.uniform(0, 60) * rng.standard_normal((2, 3))
    if rng.random() < 0.4:
        pattern = np.clip(rng.uniform(1, 8) * (stripes(rng, x, y, rng.uniform(1, 8)) - 0.5), 0, 1)
    else:
        contrast, cells = rng.uniform(0.5, 3), rng.integers(2, 9)
        pattern = np.clip(0.5 + contrast * smooth_noise(rng, side, cells), 0, 1)
    grain = sum(rng.uniform(0, 20) * smooth_noise(rng, side, side // n) for n in (2, 4, 10))
    return mix(*colours, (pattern * rng.uniform(0, 1))[where], grain[where])


def scenery(rng, x, y, side):
    """float32 (H, W, 3): a wall, usually a floor, up to six objects, often out of focus."""
    image = surface(rng, x, y, side)
    if rng.random() < 0.8:
        edge = rng.uniform(-0.8, 1) - y + rng.normal(0, 0.1) * x
        paint(image, edge, lambda where: surface(rng, x, y, side, where), side / 3, 1)
    for _ in range(rng.integers(7)):
        distance, rim = clutter(rng, x, y), rng.uniform(0.6, 1)
        paint(image, distance, lambda where: surface(rng, x, y, side, where), side / 3, rim)
    return blur(image, max(0, rng.uniform(-0.015, 0.03)) * side)


def blur(image, radius):
    """float32 (H, W, 3) of a scene out of focus by `radius` pixels."""
    picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), np.float32)


def photograph(rng, image, x, y, side):
    """uint8 photograph of a float scene: light, a cast shadow, contrast, colour, focus, noise."""
    along, _ = rotate(x, y, rng.uniform(0, 360))
    light = rng.uniform(0.7, 1.25) + rng.uniform(0, 0.3) * along
    light = light + 0.15 * smooth_noise(rng, side, 2)
    if rng.random() < 0.4:
        soft = rng.uniform(0.02, 0.4)
        light = light * (1 - rng.uniform(0.2, 0.6) * np.clip(0.5 - clutter(rng, x, y) / soft, 0, 1))
    image = image * (light[..., None] * rng.uniform(0.88, 1.12, 3).astype(np.float32))
    grey = image.mean(2, keepdims=True)
    image = grey + rng.uniform(0.4, 1.3) * (image - grey)
    image = 120 + rng.uniform(0.6, 1.25) * (image - 120)
    image = blur(image, max(0, rng.uniform(-0.006, 0.01)) * side)
    image = image + rng.uniform(1, 10) * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def place_varied(rng, side, label):
    """A pet of random size and pose, the centre of whose head is in the picture.

    Returns:
        parts of the body, parts of the head and their index, pixels per unit, and the coordinates
        x and y (side, side) of the body.
    """
    scale = side * float(np.exp(rng.uniform(np.log(0.25), np.log(0.95))))
    at = side * rng.uniform(0.2, 0.8), side * rng.uniform(0.2, 0.7)  # of the head
    pixels = np.arange(side, dtype=np.float32) + 0.5
    x, y = np.meshgrid((pixels - at[0]) / scale, (pixels - at[1]) / scale)
    x = x if at[0] > side * rng.uniform(0.3, 0.7) else -x  # it mostly looks at the nearer edge
    x, y = rotate(x, y, rng.uniform(-15, 15))
    x, y = (z + rng.uniform(0, 0.06) * smooth_noise(rng, side, 4) for z in (x, y))
    u, v = rotate(x * rng.uniform(0.9, 1.1), y * rng.uniform(0.9, 1.1), rng.uniform(-15, 15))
    near = window(np.hypot(u, v) < HEAD_REACH)
    draw_head = (cat_head, dog_head)[label] if rng.random() < 0.35 else frontal_head
    head = draw_head(u[near], v[near], rng, label)
    body, x, y = posed_body(x, y, rng, label)
    fluff = rng.uniform(0, 0.04) * smooth_noise(rng, side, side // 3)
    outer = ("fur", "point", "shade")
    body = [(distance + fluff, name) for distance, name in body]
    head = [(d + fluff[near] if name in outer else d, name) for d, name in head]
    return body, head, near, scale, x, y


def draw_varied(rng, side, label):
    """One pet of class `label`, of any size and pose; returns what `draw_demo` does.

    It is drawn again until at least about half of its head is visible.
    """
    x, y = grid(side, np.float32)
    image = scenery(rng, x, y, side)
    visible = 0
    while visible < 0.15:  # a whole head covers about 0.3 square units
        body, head, near, scale, u, v = place_varied(rng, side, label)
        hidden = np.zeros((side, side), bool)
        if rng.random() < 0.35:
            thing = clutter(rng, u, v)
            hidden = thing < 0
        in_pet, in_head = (shape & ~hidden for shape in silhouettes(body, head, near, side))
        visible = in_head.sum() / scale**2
    ground = np.clip(1.2 - np.hypot(u, (v - 0.68) / 0.3), 0, 1)[..., None]
    image *= 1 - rng.uniform(0, 0.6) * ground  # its shadow
    paint_pet(image, body, head, near, coat(rng, u, v, side), scale, rng.uniform(0.65, 1))
    if hidden.any():
        paint(image, thing, lambda where: surface(rng, x, y, side, where), scale, 0.9)
    return photograph(rng, image, x, y, side), in_pet, in_head


STYLES = {"demo": draw_demo, "varied": draw_varied}


def draw_sample(seed, split, index, side, style="demo"):
    """Sample `index` of split number 0, 1 or 2, determined by the arguments alone.

    Returns:
        image uint8 (side, side, 3), mask uint8 (side, side, 1) in {0, 1}, the box (4,) of the head
        with its ears: xmin, ymin, xmax, ymax in pixels, right and lower edge exclusive; and the
        class, 0 cat or 1 dog, in turn.
    """
    rng = np.random.default_rng([seed, split, index])
    image, mask, head = STYLES[style](rng, side, index % 2)
    rows, columns = window(head)
    box = (columns.start, rows.start, columns.stop, rows.stop)
    return image, mask[..., None].astype(np.uint8), box, index % 2


# The data set.


def draw_chunk(seed, split, start, stop, side, style):
    """Samples `start` to `stop` of a split: images, masks, boxes and labels with a leading N."""
    samples = [draw_sample(seed, split, index, side, style) for index in range(start, stop)]
    return [np.stack(arrays) for arrays in zip(*samples, strict=True)]


def start_worker():
    """Leave Ctrl-C to the process that started this worker, and end when that one does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def draw_chunks(tasks, workers):
    """Yield `draw_chunk` of every task, in order, drawn by `workers` processes."""
    if workers == 1:
        yield from (draw_chunk(*task) for task in tasks)
        return
    with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
        yield from pool.map(draw_chunk, *zip(*tasks, strict=True))  # closing it cancels the rest


def count_cores():
    """The number of processor cores that this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def make_demo(folder, side=128, counts=(640, 96, 96), seed=0, style="demo"):
    """Draw pets and write them to `folder`/{train,val,test} in the layout of dataload.py.

    The same arguments give the same pixels; sample i of a split does not depend on the counts or
    on how many processes draw. A split is held in memory while it is drawn. Where Python starts
    processes by spawn, a script that calls this needs `if __name__ == "__main__":`, as for every
    pool of processes; a notebook needs nothing.

    Args:
        folder: created if missing; must not hold a split yet.
        side: height and width of the pictures in pixels, at least 32.
        counts: number of samples in train, val and test, at least 1 each.
        seed: a whole number from 0.
        style: "demo" or "varied", see the module docstring.

    Raises:
        DataError: `folder` already holds a split, the disk is full, or a process died.
        OSError: `folder` cannot be made.
        ValueError: there is no such style.
    """
    from dataload import SPLITS, DataError, write_split  # here, since no worker needs PyTorch

    folder, is_new = Path(folder), not Path(folder).exists()
    found = [split for split in SPLITS if (folder / split).exists()]
    if found:
        raise DataError(f"{folder}: expected no split there yet, found {', '.join(found)}")
    if style not in STYLES:
        raise ValueError(f"style: expected one of {', '.join(STYLES)}, found {style!r}")
    provenance = {"source": "tools/make_demo.py", "side": side, "seed": seed, "style": style}
    tasks = [
        (seed, number, start, min(start + CHUNK, count), side, style)
        for number, count in enumerate(counts)
        for start in range(0, count, CHUNK)
    ]
    is_large = sum(counts) * side**2 >= POOLED_PIXELS
    chunks = draw_chunks(tasks, min(count_cores(), len(tasks)) if is_large else 1)
    bar = tqdm(total=sum(counts), desc="drawing", unit="pet", disable=None, delay=1, leave=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished, closing(chunks), bar:
            for split, count in zip(SPLITS, counts, strict=True):  # a kill leaves no half split
                arrays = collect(chunks, count, side, bar)
                target = Path(unfinished) / split
                write_split(target, *arrays, class_names=CLASS_NAMES, provenance=provenance)
            for split in SPLITS:
                (Path(unfinished) / split).rename(folder / split)
    except BrokenExecutor as error:
        raise DataError(f"{folder}: a process that drew pets has died ({error})") from error
    finally:
        if is_new and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def collect(chunks, count, side, bar):
    """Images, masks, boxes and labels of the next `count` samples, as `write_split` takes them."""
    shapes = {(side, side, 3): np.uint8, (side, side, 1): np.uint8, (4,): np.float32, (): np.int8}
    arrays = [np.empty((count, *shape), dtype) for shape, dtype in shapes.items()]
    filled = 0
    while filled < count:
        chunk = next(chunks)
        for array, values in zip(arrays, chunk, strict=True):
            array[filled : filled + len(values)] = values
        filled += len(chunk[0])
        bar.update(len(chunk[0]))
    return arrays
