"""The search for pictures that two splits share."""

import numpy as np
import torch
from PIL import Image

from parts.duplicates import near_duplicates, thumbnails


def photo(seed, side=200):
    """Something with large and small structures, as photos have: uint8 (side, side, 3)."""
    random = np.random.default_rng(seed)
    picture = np.zeros((side, side, 3))
    for cells in (3, 6, 12, 24, 50):
        noise = random.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        picture += np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))
    return (picture / 5).astype(np.uint8)


def small(pictures):
    pictures = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]
    return torch.cat([thumbnails(picture[None]) for picture in pictures])


def test_copies_are_near_duplicates_and_other_photos_are_not(tmp_path):
    photos = [Image.fromarray(photo(seed)) for seed in range(60)]
    copies = [
        photos[7].resize((130, 90)),
        photos[50].transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        photos[1].point(lambda value: value * 0.7 + 20),
        photos[3].crop((4, 2, 199, 198)).resize((64, 64)),
    ]
    photos[4].save(tmp_path / "copy.jpg", quality=30)
    copies.append(Image.open(tmp_path / "copy.jpg"))
    found = list(near_duplicates(small(photos).repeat(6, 1, 1, 1), small(copies)))
    expected = [(1, 2), (3, 3), (4, 4), (7, 0), (50, 1)]
    assert found == [(60 * n + i, j) for n in range(6) for i, j in expected]
    blank = torch.full((2, 3, 24, 24), 9, dtype=torch.uint8)
    assert list(near_duplicates(blank, blank)) == []
