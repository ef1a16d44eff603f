"""Drawing with signed distances: shapes, patterns, and painting on a picture.

A shape is its signed distance (H, W) at coordinates x and y (H, W): negative inside, positive
outside.
"""

import numpy as np
from PIL import Image, ImageFilter

# Shapes.


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
    """Union of shapes, with sharp seams."""
    return np.minimum.reduce(shapes)


def blend(first, second, softness=0.12):
    """Union of two shapes that flow into each other over about `softness`."""
    overlap = np.maximum(softness - np.abs(first - second), 0) / softness
    return np.minimum(first, second) - overlap * overlap * (softness / 4)


# The picture.


def grid(side, dtype):
    """x and y (side, side) of the pixel centres, from -1.5 to 1.5 across the picture."""
    pixels = (np.arange(side, dtype=np.float32) + 0.5) / side * 3 - 1.5
    return np.meshgrid(pixels.astype(dtype), pixels.astype(dtype))


def window(inside):
    """The slices (rows, columns) around the True part of (H, W); empty if there is none."""
    found = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    return tuple(slice(at[0], at[-1] + 1) if at.size else slice(0, 0) for at in found)


def smooth_noise(rng, side, cells):
    """(side, side) float32 noise of mean 0, about -1 to 1, with features of side / cells pixels."""
    coarse = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def stripes(rng, x, y, waves):
    """(H, W) in [0, 1]: soft stripes in a random direction, `waves` of them per unit of length."""
    along, _ = rotate(x, y, rng.uniform(0, 180))
    return 0.5 + 0.5 * np.sin(2 * np.pi * waves * along + rng.uniform(0, 7))


def mix(main, second, share, grain):
    """float32 (H, W, 3): two colours (3,) with `share` (H, W) of the second, plus `grain` (H, W).

    It is stored plane by plane, because NumPy is slow at loops over three colours.
    """
    main, second = main[:, None, None], second[:, None, None]
    planes = (main + share * (second - main) + grain).astype(np.float32)
    return np.moveaxis(planes, 0, -1)


def paint(image, distance, colour, scale, rim=0.62):
    """Paint a shape on `image` in place, darker by `rim` at its rim so that parts stand out.

    Args:
        image: (H, W, 3).
        distance: (H, W) in units of `scale` pixels.
        colour: (H, W, 3) or (3,), or a function that returns its part at an index.
    """
    where = window(distance * scale < 0.5)  # elsewhere the coverage is 0
    image, distance = image[where], distance[where]
    colour = colour(where) if callable(colour) else colour[where] if colour.ndim == 3 else colour
    coverage = np.clip(0.5 - distance * scale, 0, 1)[..., None]  # one pixel of anti-aliasing
    shade = np.clip(rim - 5 * distance, rim, 1)[..., None]
    image += coverage * (colour * shade - image)


def blur(image, radius):
    """float32 (H, W, 3) of a scene out of focus by `radius` pixels."""
    picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), np.float32)
