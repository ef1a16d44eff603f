"""Things that look like a pet or hide one: cushions, people, clothes, furniture.

Each function returns a list of (distance, name of a material) in painting order, as for the parts
of a pet, in the coordinates x and y of its body: it is about 1.2 wide, stands on y = 0.7, and its
trunk is at (0, 0).
"""

import numpy as np

from parts.drawing import blend, capsule, ellipse, rotate, rounded_box, smooth_noise, union


def rough(rng, distance):
    """A distance (side, side) with a wavy outline, as of something soft."""
    return distance + rng.uniform(0.02, 0.1) * smooth_noise(rng, len(distance), 5)


def cushions(rng, x, y):
    """One to three cushions behind a pet, or a blanket that it lies on."""
    if rng.random() < 0.4:
        radii = rng.uniform(0.8, 2.5), rng.uniform(0.2, 0.6)
        return [(rough(rng, ellipse(x, y, (rng.uniform(-0.5, 0.5), 0.7), radii)), "soft")]
    parts = []
    for _ in range(rng.integers(1, 4)):
        u, v = rotate(x - rng.uniform(-1.2, 1.2), y - rng.uniform(-0.4, 0.5), rng.uniform(0, 90))
        half = rng.uniform(0.35, 0.9, 2).tolist()
        box = rounded_box(u, v, (0, 0), half, 0.6 * min(half))
        parts.append((rough(rng, box), "soft"))
    return parts


def hand(x, y, at, way, size, rng):
    """Distance to a hand at a point, whose fingers point along the unit vector `way`."""
    u = (x - at[0]) * way[0] + (y - at[1]) * way[1]
    v = (y - at[1]) * way[0] - (x - at[0]) * way[1]
    spread, length = rng.uniform(0.2, 0.45), rng.uniform(1.1, 1.5) * size
    tips = [(length, spread * k * size) for k in (-1.5, -0.5, 0.5, 1.5)]
    starts = [(0.4 * size, 0.3 * k * size) for k in (-1.5, -0.5, 0.5, 1.5)]
    radii = (0.19 * size, 0.13 * size)
    fingers = [capsule(u, v, start, tip, radii) for start, tip in zip(starts, tips, strict=True)]
    thumb = capsule(u, v, (0, 0.4 * size), (0.6 * size, 0.85 * size), radii)
    return union(ellipse(u, v, (0.1 * size, 0), (0.65 * size, 0.55 * size)), thumb, *fingers)


def arm(rng, x, y):
    """An arm from far away whose hand lies on the pet or beside it, bare or in a sleeve."""
    angle, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.3)
    way = float(np.cos(angle)), float(np.sin(angle))  # from the shoulder to the hand
    at = rng.uniform(-0.6, 0.6), rng.uniform(-0.3, 0.5)
    elbow = [at[i] - way[i] * 1.2 + rng.normal(0, 0.25) for i in (0, 1)]
    far = [elbow[i] - way[i] * 3 for i in (0, 1)]
    lower = capsule(x, y, elbow, at, (0.8 * size, 0.5 * size))
    upper = capsule(x, y, far, elbow, (1.1 * size, 0.9 * size))
    skin = blend(lower, hand(x, y, at, way, size, rng), 0.5 * size)
    sleeve = union(upper, ellipse(x, y, elbow, (0.95 * size, 0.95 * size)))
    if rng.random() < 0.6:
        wrist = [elbow[i] + 0.7 * (at[i] - elbow[i]) for i in (0, 1)]
        sleeve = union(upper, capsule(x, y, elbow, wrist, (0.95 * size, 0.75 * size)))
    return [(skin, "skin"), (sleeve, "cloth")]


def standing_legs(rng, x, y):
    """Two legs beside the pet, in trousers or bare, with shoes."""
    place, apart = rng.uniform(-1.3, 1.3), rng.uniform(0.25, 0.5)
    radii, ground = (rng.uniform(0.25, 0.45), rng.uniform(0.15, 0.25)), rng.uniform(0.3, 0.7)
    feet = [place + way * apart for way in (-1, 1)]
    legs = [capsule(x, y, (0.5 * (f + place), -4), (f, ground), radii) for f in feet]
    shoes = [ellipse(x, y, (f, ground + 0.08), (0.25, 0.14)) for f in feet]
    return [(union(*shoes), "cloth"), (union(*legs), rng.choice(("cloth", "cloth", "skin")))]


def sitting(rng, x, y):
    """A person on whose lap the pet is: thighs, trunk, and a face where the picture reaches it."""
    place, wide = rng.uniform(-0.6, 0.6), rng.uniform(0.5, 0.9)
    lap = capsule(x, y, (place - 1.2, 0.8), (place + 1.2, rng.uniform(0.6, 0.9)), (0.35, 0.4))
    trunk = rounded_box(x, y, (place, -0.5), (wide, 1.3), 0.4)
    at = place, rng.uniform(-2.1, -1.6)
    face = ellipse(x, y, at, (0.35, 0.45))
    neck = capsule(x, y, at, (place, -1.2), (0.2, 0.2))
    hair = ellipse(x, y, (place, at[1] - 0.12), (0.42, 0.5))
    return [(hair, "cloth"), (union(face, neck), "skin"), (trunk, "cloth"), (lap, "cloth")]


def person(rng, x, y):
    """Someone behind the pet."""
    return (arm, standing_legs, sitting)[rng.integers(3)](rng, x, y)


def furniture(rng, x, y):
    """The edge of a table, the legs of a chair or the bars of a fence, in front of the pet."""
    kind = rng.integers(3)
    if kind == 0:
        edge = rng.uniform(0.25, 0.6)
        return [(edge - y + rng.normal(0, 0.1) * x, "wood")]
    apart = rng.uniform(0.9, 1.6) if kind == 1 else rng.uniform(0.25, 0.5)
    radius, first = rng.uniform(0.03, 0.09) * (1.5 if kind == 1 else 0.7), rng.uniform(0, apart)
    along = np.abs((x - first + apart / 2) % apart - apart / 2) - radius  # repeats every `apart`
    rail = np.abs(y - rng.uniform(-0.7, 0.5)) - radius
    return [(union(along, rail), "wood")]


def cover(rng, x, y):
    """What is in front of the pet: furniture, a blanket over it, or an arm."""
    kind = rng.random()
    if kind < 0.4:
        return furniture(rng, x, y)
    if kind < 0.7:
        turned, _ = rotate(y, x, rng.uniform(-40, 40))
        return [(rough(rng, rng.uniform(-0.1, 0.5) - turned), "soft")]
    return arm(rng, x, y)


def clothes(rng, x, y, body, head):
    """A collar, or a coat around the trunk; inside the pet's outline, so that the mask stays right.

    Args:
        body: the parts of the body.
        head: (2,) the centre of the head.
    """
    shape = union(*(distance for distance, _ in body))
    way = np.array((0, 0.1)) - head
    way = way / max(float(np.hypot(*way)), 1e-6)  # from the head to the trunk
    along = (x - float(head[0])) * float(way[0]) + (y - float(head[1])) * float(way[1])
    start, wide = rng.uniform(0.28, 0.36), rng.uniform(0.04, 0.1)
    if rng.random() < 0.5:
        wide, shape = rng.uniform(0.3, 0.8), np.maximum(shape, y - rng.uniform(0.25, 0.5))
    band = np.abs(along - start - wide / 2) - wide / 2
    return [(np.maximum(shape, band), "clothes")]
