"""Pictures of cats and dogs drawn from formulas, with exact masks, head boxes and classes.

Fur, background and clutter take their colours from one palette for both species. Picture, mask and
head box are computed from the same distances, so they always agree.

The style "demo" shows a whole pet in profile. The style "varied" draws pets that stand, sit, lie,
curl up or face the camera, near or far, cropped, behind objects, with many coats, backgrounds and
lights. Mask and box cover only the visible part, not what lies behind an object or outside the
picture.

Training on pictures drawn by formulas was introduced by Kataoka et al., Pre-training without
Natural Images (arXiv:2101.08515), and for segmentation by Shinoda et al., SegRCDB
(arXiv:2309.17083).
"""

import numpy as np

from parts.drawing import (
    blur,
    capsule,
    ellipse,
    grid,
    mix,
    paint,
    rotate,
    rounded_box,
    smooth_noise,
    stripes,
    triangle,
    window,
)
from parts.drawn_pets import (
    HEAD_REACH,
    cat_body,
    cat_head,
    dog_body,
    dog_head,
    paint_pet,
    place_pet,
    place_varied,
    silhouettes,
)

COLOURS = ("black", "grey", "silver", "white", "cream", "ginger", "brown", "chocolate")
PALETTE = np.array(  # their RGB, 0-255
    [
        *[(52, 50, 54), (112, 112, 118), (168, 168, 170), (232, 228, 220)],
        *[(222, 190, 148), (204, 130, 66), (148, 100, 62), (92, 62, 46)],
    ],
    np.float32,
)
DARK = np.array((28, 24, 26), np.float32)  # eyes and nose of both species
EYES = {"dark": DARK, "glint": np.array((245, 245, 245), np.float32)}
PLAIN = 0.75  # least share of a plain coat that its commonest colour covers
BREED_NAMES = tuple(
    f"{coat} {colour} {species}"
    for species in ("cat", "dog")
    for colour in COLOURS
    for coat in ("plain", "patterned")
)


# The style "demo".


def fur(rng, x, y, side, where=...):
    """float32 (H, W, 3) coat of two colours of the palette, as stripes or patches, with fine hair.

    Only its part `where`, an index of (H, W), is computed and returned.
    """
    main, second = PALETTE[rng.integers(len(PALETTE), size=2)] + rng.normal(0, 10, (2, 3))
    if rng.random() < 0.5:
        pattern = stripes(rng, x[where], y[where], rng.uniform(2.5, 5)) ** 2
    else:
        pattern = np.clip(4 * smooth_noise(rng, side, int(rng.integers(4, 9)))[where], 0, 1)
    pattern = pattern * rng.uniform(0, 0.7)
    hair = 14 * smooth_noise(rng, side, side // 3)[where]
    return mix(main, second, pattern, hair)


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


def expose(rng, image, side):
    """uint8 photograph of a float (H, W, 3) scene: uneven light, a tint and sensor noise."""
    light = rng.uniform(0.8, 1.15) + 0.15 * smooth_noise(rng, side, 2)
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(2, 8)
    image = image * light[..., None] * rng.uniform(0.93, 1.07, 3) + noise
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def draw_demo(rng, side, label):
    """One whole pet of class `label` in profile on its background, with nothing in front of it.

    Returns:
        image uint8 (side, side, 3); the areas of mask and head, bool (side, side) each; and the
        coat (side, side, 3), which continues where there is no pet.
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
    return expose(rng, image, side), *silhouettes(body, head, near, side), coat


# The style "varied". Its coordinates are float32, which halves the time.


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


def draw_varied(rng, side, label):
    """One pet of class `label`, of any size and pose; returns what `draw_demo` does.

    It is placed again until at least about half of its head is visible.
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
    paints = coat(rng, u, v, side)
    paint_pet(image, body, head, near, paints, scale, rng.uniform(0.65, 1))
    if hidden.any():
        paint(image, thing, lambda where: surface(rng, x, y, side, where), scale, 0.9)
    return photograph(rng, image, x, y, side), in_pet, in_head, paints["fur"]


STYLES = {"demo": draw_demo, "varied": draw_varied}


def breed(coat, in_pet, label):
    """The number in BREED_NAMES of a pet of class `label` whose visible part has this coat.

    Args:
        coat: (H, W, 3) RGB, before light falls on it.
        in_pet: bool (H, W).
    """
    distances = np.square(coat[in_pet][:, None] - PALETTE).sum(2)  # (pixels, colours)
    counts = np.bincount(distances.argmin(1), minlength=len(COLOURS))
    is_patterned = counts.max() < PLAIN * counts.sum()
    return (label * len(COLOURS) + int(counts.argmax())) * 2 + int(is_patterned)


def draw_sample(seed, split, index, side, style="demo"):
    """Sample `index` of split number 0, 1 or 2, which depends on the arguments alone.

    Returns:
        image uint8 (side, side, 3); mask uint8 (side, side, 1) in {0, 1}; the box (4,) of the head
        with its ears: xmin, ymin, xmax, ymax in pixels, right and lower edge exclusive; the class,
        0 cat or 1 dog, in turn; and the number of the breed in BREED_NAMES.
    """
    rng = np.random.default_rng([seed, split, index])
    label = index % 2
    image, mask, head, coat = STYLES[style](rng, side, label)
    rows, columns = window(head)
    box = (columns.start, rows.start, columns.stop, rows.stop)
    return image, mask[..., None].astype(np.uint8), box, label, breed(coat, mask, label)
