"""The search for pictures that two splits share."""

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import uniform_filter

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


def detail(thumbnail):
    """A thumbnail minus the means of the 7 x 7 pixels around each, as far as there are any."""
    size, known = (1, 7, 7), np.ones(thumbnail.shape)
    means = uniform_filter(thumbnail, size, mode="constant")
    return thumbnail - means / uniform_filter(known, size, mode="constant")


def test_pictures_are_the_same_from_a_correlation_of_seven_tenths_on():
    """Blends of two pictures against the first one, and their mirror images."""
    coarse = np.random.default_rng(0).normal(0, 1, (2, 3, 6, 6))  # structures of four pixels
    one, other = coarse.repeat(4, axis=2).repeat(4, axis=3)
    shares = np.linspace(0, 1, 201)[:, None, None, None]
    blends = 128 + 30 * ((1 - shares) * one + shares * other)
    blends = np.concatenate([blends, blends[..., ::-1]]).round().astype(np.uint8)
    pairs = [(detail(blends[0] * 1.0).ravel(), detail(blend * 1.0).ravel()) for blend in blends]
    alike = np.array([np.corrcoef(a, b)[0, 1] for a, b in pairs])
    expected = [*np.flatnonzero(alike[:201] >= 0.7)]
    assert 0.69 < alike[expected[-1] + 1] < 0.7 < alike[expected[-1]] < 0.71
    expected += [201 + i for i in expected]
    found = near_duplicates(torch.from_numpy(blends[:1]), torch.from_numpy(blends))
    assert [*found] == [(0, j) for j in expected]
