"""Draw 120 long and round fish: pictures, masks, and a table of head boxes and classes.

    python -m examples.draw_fish
    python tools/prepare_folder.py --images fish --masks fish_masks --table fish.csv \\
        --size 128 --out data/fish
    python -m examples.fine_tune --h5-save-path data/fish
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def main():
    """Write fish/, fish_masks/ and fish.csv to the current folder."""
    random = np.random.default_rng(0)
    rows = ["name,xmin,ymin,xmax,ymax,class,split"]
    for folder in ("fish", "fish_masks"):
        Path(folder).mkdir(exist_ok=True)
    for number in range(120):
        noise = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8))
        picture, mask = noise.resize((128, 128), Image.BICUBIC), Image.new("L", (128, 128))
        for _ in range(6):  # stones, which have no mask
            x, y, r = *random.integers(0, 128, 2), random.integers(5, 20)
            colour = tuple(map(int, random.integers(0, 256, 3)))
            ImageDraw.Draw(picture).ellipse((x - r, y - r, x + r, y + r), fill=colour)
        long, back = number % 2, random.choice([-1, 1])  # its shape, and on which side its tail is
        size, angle = random.uniform(18, 30), random.uniform(-0.6, 0.6)
        height, (cx, cy) = size * (0.35 if long else 0.7), random.uniform(44, 84, 2)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        around = np.linspace(0, 2 * math.pi, 40)
        body = np.stack([size * np.cos(around), height * np.sin(around)], axis=1)
        tail = np.array([[0.8, 0], [1.5, -0.5], [1.5, 0.5]]) * size * [back, 1]
        colour = tuple(map(int, random.integers(0, 256, 3)))
        for points in (body, tail):
            polygon = [tuple(point) for point in points @ turn.T + (cx, cy)]
            ImageDraw.Draw(picture).polygon(polygon, fill=colour)
            ImageDraw.Draw(mask).polygon(polygon, fill=1)
        x, y = turn @ (-back * 0.7 * size, 0) + (cx, cy)  # the head
        box = ",".join(f"{v:.0f}" for v in (x - height, y - height, x + height, y + height))
        picture.filter(ImageFilter.GaussianBlur(1)).save(f"fish/{number:03}.png")
        mask.save(f"fish_masks/{number:03}.png")
        split = "train" if number < 40 else "val" if number < 80 else "test"
        rows.append(f"{number:03},{box},{('round', 'long')[long]},{split}")
    Path("fish.csv").write_text("\n".join(rows))


if __name__ == "__main__":
    main()
