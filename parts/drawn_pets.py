"""The shapes of cats and dogs: bodies, heads and poses.

The species differ in shape (ears, head, muzzle, trunk, tail), never in colour. A pet is a list of
parts (distance, name of a paint) in painting order, in units of the pet's own size; x points in the
direction it looks, y down, and (0, 0) is the centre of the trunk or of the head.
"""

import numpy as np

from parts.drawing import (
    blend,
    capsule,
    curve,
    ellipse,
    paint,
    rotate,
    rounded_box,
    smooth_noise,
    triangle,
    union,
    window,
)

HEAD_REACH = 0.8  # no part of a head is farther from its centre


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


def place_pet(rng, side):
    """Coordinates (H, W) in the frame of a pet that fits the picture, and its pixels per unit."""
    scale = side * rng.uniform(0.29, 0.4)
    centre = side / 2 + rng.uniform(-1, 1, 2) * (side / 2 - scale)
    pixels = np.arange(side) + 0.5
    x, y = np.meshgrid((pixels - centre[0]) / scale, (pixels - centre[1]) / scale)
    return *rotate(x * rng.choice((-1, 1)), y, rng.uniform(-12, 12)), scale


def place_varied(rng, side, label):
    """A pet of random size and pose, with the centre of its head in the picture.

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


def silhouettes(body, head, near, side):
    """The areas of pet and head, bool (side, side) each; the parts are as in `paint_pet`."""
    in_head = np.zeros((side, side), bool)
    in_head[near] = union(*(distance for distance, _ in head)) < 0
    return in_head | (union(*(distance for distance, _ in body)) < 0), in_head


def paint_pet(image, body, head, near, paints, scale, rim=0.62):
    """Paint the parts of a body, and those of a head at the index `near`, in place."""
    for distance, name in body:
        paint(image, distance, paints[name], scale, rim)
    for distance, name in head:
        colour = paints[name][near] if paints[name].ndim == 3 else paints[name]
        paint(image[near], distance, colour, scale, rim)
