"""Synthetic rooms with boxes in them, seen by a known pinhole camera: image, and the exact class,
depth and surface normal of every pixel.

Lengths are in metres. In the room and in the camera, x points right, y down and z ahead. Depth is
the distance along z, as a depth camera measures it, not along the ray. Normals point to the side
that is seen. The classes are the 13 of NYUv2, in their order.

A camera may be mirrored, rolled, zoomed and off its axis. Such a view is rendered with its own
rays, not warped, so tests can check the augmentation of image, depth and normals against it.
"""

from typing import NamedTuple

import numpy as np

CLASS_NAMES = (
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa"),
    *("table", "tv", "wall", "window"),
)
STANDING = {  # smallest and largest width, height and depth of what stands on the floor
    "bed": ((1.3, 0.4, 1.7), (1.9, 0.6, 2.1)),
    "books": ((0.2, 0.2, 0.2), (0.4, 0.5, 0.3)),
    "chair": ((0.4, 0.7, 0.4), (0.6, 1.0, 0.6)),
    "furniture": ((0.6, 1.2, 0.4), (1.4, 2.0, 0.7)),
    "objects": ((0.2, 0.2, 0.2), (0.5, 0.5, 0.5)),
    "sofa": ((1.4, 0.6, 0.8), (2.2, 0.9, 1.0)),
    "table": ((0.8, 0.6, 0.6), (1.6, 0.8, 1.0)),
}
HANGING = {  # smallest and largest length and height of what hangs on a wall
    "picture": ((0.4, 0.3), (0.9, 0.7)),
    "tv": ((0.7, 0.4), (1.2, 0.7)),
    "window": ((0.8, 0.8), (1.6, 1.2)),
}
THICKNESS = 0.06  # of what hangs on a wall
FOCAL = 0.8  # focal length as a share of the width, about that of the camera of NYUv2
LIGHT = np.array([0.35, -0.8, -0.45])  # towards the lamp, in the room
HUES = np.random.default_rng(13).uniform(50, 230, (len(CLASS_NAMES), 3))  # a colour of each class


class Box(NamedTuple):
    """An axis-aligned box, or the room itself, seen from inside."""

    low: np.ndarray  # (3,) smallest x, y, z
    high: np.ndarray  # (3,)
    label: int  # number of its class
    colour: np.ndarray  # (3,) RGB, 0-255


class Room(NamedTuple):
    """A room and the boxes in it."""

    low: np.ndarray  # (3,) of the inner faces
    high: np.ndarray  # (3,)
    colours: np.ndarray  # (13, 3) RGB, 0-255; those of wall, floor and ceiling are used
    boxes: list


class Camera(NamedTuple):
    """A pinhole camera; the pixel in row i and column j looks through (j + 0.5, i + 0.5)."""

    side: tuple  # (H, W) in pixels
    focal: float  # focal length in pixels
    place: np.ndarray  # (3,) in the room
    axes: np.ndarray  # (3, 3) rows: its x, y and z in the room, unit vectors at right angles
    centre: np.ndarray = np.zeros(2)  # x and y of its axis, in pixels from the image's centre
    zoom: float = 1.0  # the depth is divided by it


class View(NamedTuple):
    """A picture, and class, depth and normal of each pixel."""

    image: np.ndarray  # uint8 (H, W, 3)
    classes: np.ndarray  # int64 (H, W), 0-12; -1 = unknown
    depth: np.ndarray  # float64 (H, W) in metres; 0 = unknown
    normals: np.ndarray  # float64 (H, W, 3), unit vectors; the zero vector = unknown


def rays(camera):
    """(H, W, 3) directions in the room, of length 1 along the camera's z."""
    height, width = camera.side
    x = (np.arange(width) + 0.5 - width / 2 - camera.centre[0]) / camera.focal
    y = (np.arange(height) + 0.5 - height / 2 - camera.centre[1]) / camera.focal
    x, y = np.meshgrid(x, y)
    return np.stack([x, y, np.ones_like(x)], axis=-1) @ camera.axes


def crossings(low, high, place, directions):
    """Where rays (H, W, 3) from `place` (3,) cross the faces of a box.

    Returns:
        distance and axis (0-2) of the face through which each enters, of that through which it
        leaves, each (H, W); a ray that misses the box leaves before it enters.
    """
    with np.errstate(divide="ignore"):  # a ray along a face crosses it at infinity
        first, second = ((corner - place) / directions for corner in (low, high))
    near, far = np.minimum(first, second), np.maximum(first, second)
    return near.max(-1), near.argmax(-1), far.min(-1), far.argmin(-1)


def render(room, camera):
    """The View of a room by a camera inside it and outside all boxes."""
    directions = rays(camera)
    _, _, depth, axis = crossings(room.low, room.high, camera.place, directions)
    ceiling, floor, wall = map(CLASS_NAMES.index, ("ceiling", "floor", "wall"))
    labels = np.where(axis != 1, wall, np.where(directions[..., 1] > 0, floor, ceiling))
    colours = room.colours[labels]
    for box in room.boxes:
        enter, face, leave, _ = crossings(box.low, box.high, camera.place, directions)
        seen = (enter > 0) & (enter < leave) & (enter < depth)
        depth, axis = np.where(seen, enter, depth), np.where(seen, face, axis)
        labels, colours[seen] = np.where(seen, box.label, labels), box.colour
    normals = np.eye(3)[axis]
    normals = -np.sign((normals * directions).sum(-1, keepdims=True)) * normals  # against the ray
    points = camera.place + depth[..., None] * directions
    image = paint(colours, points, normals)
    return View(image, labels, depth / camera.zoom, normals @ camera.axes.T)


def paint(colours, points, normals):
    """uint8 (H, W, 3): lit from one side, with a pattern of squares of 20 cm on every surface."""
    light = 0.7 + 0.3 * (normals @ LIGHT)[..., None]
    waves = np.where(normals != 0, 1.0, np.sin(2 * np.pi * points / 0.4))  # along the surface
    pattern = 1 + 0.12 * np.sign(waves.prod(-1, keepdims=True))
    return np.clip(colours * light * pattern, 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------ random scenes


def draw_room(rng):
    """A Room whose corner with the smallest x and z is (0, 0, 0); its floor is at y = 0."""
    size = rng.uniform((3.0, 2.3, 4.0), (5.5, 2.9, 6.5))
    low, high = np.array([0.0, -size[1], 0.0]), np.array([size[0], 0.0, size[2]])
    colours = np.clip(HUES + rng.normal(0, 15, HUES.shape), 20, 250)
    boxes = [stand(rng, name, high) for name in rng.choice(list(STANDING), rng.integers(4, 8))]
    boxes += [hang(rng, name, low, high) for name in rng.choice(list(HANGING), rng.integers(2, 5))]
    return Room(low, high, colours, [box for box in boxes if (box.low >= low).all()])


def make_box(rng, name, corner, size):
    """A Box of a class with its smallest x, y, z at `corner`, in a random shade of its colour."""
    label = CLASS_NAMES.index(name)
    return Box(corner, corner + size, label, np.clip(HUES[label] + rng.normal(0, 15, 3), 20, 250))


def stand(rng, name, high):
    """A Box that stands on the floor, beyond the part of the room in which the camera is."""
    size = rng.uniform(*STANDING[name])
    left, front = rng.uniform(0, high[0] - size[0]), rng.uniform(1.6, high[2] - size[2])
    return make_box(rng, name, np.array([left, -size[1], front]), size)


def hang(rng, name, low, high):
    """A Box on the left, right or far wall."""
    length, height = rng.uniform(*HANGING[name])
    top = rng.uniform(low[1] + 0.2, -0.8 - height)
    wall = rng.choice(["left", "right", "far"])
    if wall == "far":
        corner = np.array([rng.uniform(0, high[0] - length), top, high[2] - THICKNESS])
        size = np.array([length, height, THICKNESS])
    else:
        x = 0.0 if wall == "left" else high[0] - THICKNESS
        corner = np.array([x, top, rng.uniform(1.0, high[2] - length)])
        size = np.array([THICKNESS, height, length])
    return make_box(rng, name, corner, size)


def draw_camera(rng, room, side):
    """A Camera near the front of the room that looks ahead, a little to one side and down."""
    x, y, z = rng.uniform((0.3, -1.7, 0.3), (0.7, -1.2, 1.2))
    place = np.array([x * room.high[0], y, z])
    yaw, pitch = np.radians(rng.uniform((-35, -5), (35, 25)))
    ahead = [np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)]
    right = [np.cos(yaw), 0.0, -np.sin(yaw)]
    axes = np.stack([right, np.cross(ahead, right), ahead])
    return Camera(tuple(side), FOCAL * side[1], place, axes)


def hide(rng, view):
    """The View with a rectangle of unknown pixels of each kind, about every second time, and with
    nothing known of a kind one time in ten.
    """
    height, width = view.depth.shape
    kinds = {"classes": view.classes, "depth": view.depth, "normals": view.normals}
    for name, unknown in (("classes", -1), ("depth", 0.0), ("normals", 0.0)):
        kinds[name], chance = kinds[name].copy(), rng.random()
        top, left = rng.integers(height), rng.integers(width)
        if chance < 0.1:
            kinds[name][:] = unknown
        elif chance < 0.5:
            kinds[name][top : top + height // 4, left : left + width // 4] = unknown
    return view._replace(**kinds)


def draw_view(seed, number, side):
    """The View number `number` of the scenes of this seed, with unknown pixels."""
    rng = np.random.default_rng([seed, number])
    room = draw_room(rng)
    view = hide(rng, render(room, draw_camera(rng, room, side)))
    noise = rng.normal(0, 4, view.image.shape)
    return view._replace(image=np.clip(view.image + noise, 0, 255).astype(np.uint8))


# ----------------------------------------------------------------------------------- data sets


def scenes(count, seed, side=(64, 96)):
    """Arrays of `count` samples, as examples/nyuv2.py reads them.

    Returns:
        {"images": uint8 (N, H, W, 3), "segments": uint8 (N, H, W), 255 unknown, "depth": float32
        (N, H, W), NaN unknown, "normals": float32 (N, H, W, 3), NaN unknown}.
    """
    views = [draw_view(seed, number, side) for number in range(count)]
    classes, depth = np.stack([v.classes for v in views]), np.stack([v.depth for v in views])
    normals = np.stack([v.normals for v in views])
    return {
        "images": np.stack([v.image for v in views]),
        "segments": np.where(classes < 0, 255, classes).astype(np.uint8),
        "depth": np.where(depth == 0, np.nan, depth).astype(np.float32),
        "normals": np.where((normals == 0).all(-1, keepdims=True), np.nan, normals).astype("f4"),
    }
