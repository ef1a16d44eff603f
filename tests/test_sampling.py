"""Which samples a training step sees, and at which side, by hand."""

from collections import Counter
from itertools import chain

import torch

from parts.sampling import epoch_batches, training_side


def test_sides_by_hand():
    shares = (0.5, 0.75, 1.0)
    square = [training_side(shares, e, 6, (128, 128), 32) for e in range(1, 7)]
    assert square == [(64, 64)] * 2 + [(96, 96)] * 2 + [(128, 128)] * 2
    wide = [training_side(shares, e, 6, (96, 160), 32) for e in range(1, 7)]
    assert wide == [(64, 96)] * 4 + [(96, 160)] * 2
    assert training_side(shares, 1, 1, (128, 128), 32) == (128, 128)
    assert training_side(shares, 2, 2, (128, 128), 32) == (128, 128)
    assert training_side((0.1,), 1, 2, (64, 64), 32) == (32, 32)


def test_fewer_samples_than_a_batch_are_a_batch():
    known = torch.ones(3, dtype=torch.bool)
    assert [len(batch) for batch in epoch_batches(known, known, 4, 0, 1)] == [3]


def test_rare_targets_are_in_every_batch():
    """4 of 40 are known; they fill half of each batch of 8, and the number of steps stays."""
    known = torch.zeros(40, dtype=torch.bool)
    known[::10] = True
    useful = torch.ones(40, dtype=torch.bool)
    batches = epoch_batches(known, useful, 8, seed=0, epoch=1)
    assert [len(batch) for batch in batches] == [8] * 5
    assert [sum(i % 10 == 0 for i in batch) for batch in batches] == [4] * 5
    others = [i for batch in batches for i in batch if i % 10]
    assert len(others) == len(set(others)) == 20
    assert {i for batch in batches for i in batch if i % 10 == 0} == {0, 10, 20, 30}
    assert len({tuple(i for i in batch if i % 10 == 0) for batch in batches}) > 2  # in any order
    assert epoch_batches(known, useful, 8, 0, 1) == batches
    assert epoch_batches(known, useful, 8, 0, 2) != batches
    known[:20] = True  # more than half: as if all were known
    assert epoch_batches(known, useful, 8, 0, 1) == epoch_batches(useful, useful, 8, 0, 1)


def test_rare_is_less_than_half_and_half_of_an_odd_batch_is_rounded_up():
    """19 of 40 are known, and then 20."""
    known, useful = torch.arange(40) < 19, torch.ones(40, dtype=torch.bool)
    batches = epoch_batches(known, useful, 7, seed=0, epoch=1)
    assert [sum(i < 19 for i in batch) for batch in batches] == [4] * 5
    known[19] = True
    assert epoch_batches(known, useful, 7, 0, 1) == epoch_batches(useful, useful, 7, 0, 1)


def test_a_sample_of_which_nothing_is_known_is_never_drawn():
    """10 of 40 are of use: 5 batches of 8 draw each of them four times."""
    known = torch.zeros(40, dtype=torch.bool)
    known[::4] = True
    batches = epoch_batches(known, known, 8, seed=0, epoch=1)
    assert [len(batch) for batch in batches] == [8] * 5
    assert Counter(chain.from_iterable(batches)) == dict.fromkeys(range(0, 40, 4), 4)


def test_rare_targets_are_half_of_what_is_drawn():
    """Of 40 samples, 2 have a first target and 10 more another one: 4 and 4 fill each batch."""
    known, useful = torch.zeros(2, 40, dtype=torch.bool)
    known[:2], useful[:12] = True, True
    batches = epoch_batches(known, useful, 8, seed=0, epoch=1)
    assert [sum(i < 2 for i in batch) for batch in batches] == [4] * 5
    assert Counter(chain.from_iterable(batches)) == {0: 10, 1: 10} | dict.fromkeys(range(2, 12), 2)
