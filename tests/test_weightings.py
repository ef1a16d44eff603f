"""Loss weightings that read the losses, by hand."""

import math

import pytest
import torch

from MTL_Utils import (
    DynamicWeightAverage,
    FixedWeights,
    InverseLossWeights,
    RandomWeights,
    UncertaintyWeights,
)
from parts.errors import SettingError

NAN = math.nan


def scalars(**values):
    return {task: torch.tensor(float(value)) for task, value in values.items()}


def told(weighting):
    return {task: torch.as_tensor(weight).item() for task, weight in weighting.weights().items()}


def test_fixed_weights():
    weighting = FixedWeights({"seg": 1.0, "bin": 0.5})
    assert weighting(scalars(seg=2, bin=3), scalars(seg=1, bin=1)).item() == 3.5
    assert not weighting.needs_gradients


def test_uncertainty_weights_settle_at_one_over_the_loss():
    weighting, known = UncertaintyWeights({"seg": 1.0, "bin": 0.5}), scalars(seg=1, bin=1)
    total = weighting(scalars(seg=2, bin=3), known)
    assert total.item() == pytest.approx(2 + 1.5 - math.log(0.5))
    optimiser = torch.optim.SGD(weighting.parameters(), lr=0.3)
    for _ in range(300):
        optimiser.zero_grad()
        weighting(scalars(seg=2, bin=4), known).backward()
        optimiser.step()
    assert told(weighting) == pytest.approx({"seg": 0.5, "bin": 0.25}, rel=1e-3)


def test_uncertainty_weights_learn_nothing_of_a_task_that_is_unknown_in_the_batch():
    weighting = UncertaintyWeights({"seg": 1.0, "bin": 0.5})
    total = weighting(scalars(seg=2, bin=0), scalars(seg=1, bin=0))
    assert total.item() == 2
    total.backward()
    assert weighting.log_variance["bin"].grad.item() == 0
    assert weighting.log_variance["seg"].grad.item() == 1 - 2


@pytest.mark.parametrize("weight", [0, -1.0, NAN])
def test_uncertainty_weights_cannot_start_at_what_has_no_logarithm(weight):
    expected = "loss-weights: expected numbers above 0 with uncertainty weighting, found {'seg'"
    with pytest.raises(SettingError, match=expected):
        UncertaintyWeights({"seg": 1, "bin": weight})


def test_dynamic_weight_average_favours_the_slower_task():
    weighting = DynamicWeightAverage({"seg": 1.0, "bin": 0.5})
    weighting.epoch_end({"seg": 2.0, "bin": 1.0})
    total = weighting(scalars(seg=2, bin=1), scalars(seg=1, bin=1))
    assert total.item() == pytest.approx(2.5)
    weighting.epoch_end({"seg": 1.0, "bin": 1.0})
    fast, slow = math.exp(0.5 / 2), math.exp(1 / 2)
    expected = {"seg": 2 * fast / (fast + slow), "bin": 0.5 * 2 * slow / (fast + slow)}
    assert told(weighting) == pytest.approx(expected)


def test_dynamic_weight_average_of_an_unknown_epoch_keeps_the_factor_and_the_last_mean():
    weighting = DynamicWeightAverage({"a": 1.0, "b": 1.0, "c": 1.0}, temperature=1.0)
    weighting.epoch_end({"a": 2.0, "b": 4.0, "c": NAN})
    weighting.epoch_end({"a": 1.0, "b": 4.0, "c": NAN})
    fast, slow = math.exp(0.5), math.exp(1)
    a, b = 2 * fast / (fast + slow), 2 * slow / (fast + slow)
    assert told(weighting) == pytest.approx({"a": a, "b": b, "c": 1.0})
    weighting.epoch_end({"a": 1.0, "b": NAN, "c": 3.0})  # a alone has two means
    assert told(weighting) == pytest.approx({"a": a, "b": b, "c": 1.0})
    weighting.epoch_end({"a": NAN, "b": 2.0, "c": 3.0})  # b against its mean of two epochs ago
    share = [x / (fast + slow) for x in (fast, slow)]
    expected = {"a": a, "b": (b + 1) * share[0], "c": (b + 1) * share[1]}
    assert told(weighting) == pytest.approx(expected)


def test_a_resumed_dynamic_weight_average_goes_on_where_it_was():
    first, second = (DynamicWeightAverage({"seg": 1.0, "bin": 0.5}) for _ in range(2))
    for means in ({"seg": 2.0, "bin": 1.0}, {"seg": 1.0, "bin": 0.9}):
        first.epoch_end(means)
    second.load_state_dict(first.state_dict())
    assert told(second) == told(first)
    for weighting in (first, second):
        weighting.epoch_end({"seg": 0.9, "bin": 0.5})
    assert told(second) == told(first)


def test_random_weights_are_new_in_each_batch_and_those_of_the_seed():
    weighting, known = RandomWeights({"seg": 1.0, "bbox": 1.0, "bin": 0.5}), scalars(seg=1)
    rows = []
    for seed in (*range(400), 0):
        weighting.batch_start(torch.Generator().manual_seed(seed))
        total = weighting(scalars(seg=1, bbox=10, bin=100), known)
        weights = told(weighting)
        assert total.item() == pytest.approx(sum(w * 10**i for i, w in enumerate(weights.values())))
        rows.append(list(weights.values()))
    rows = torch.tensor(rows)
    assert torch.equal(rows[0], rows[-1])
    assert rows[:400].unique(dim=0).shape == (400, 3)
    torch.testing.assert_close((rows / torch.tensor([1, 1, 0.5])).sum(1), torch.full((401,), 3.0))
    torch.testing.assert_close(rows.mean(0), torch.tensor([1, 1, 0.5]), rtol=0.1, atol=0)
    z = torch.randn(100_000, 3, generator=torch.Generator().manual_seed(0))  # normal, softmax
    assert rows[:, 0].std().item() == pytest.approx(3 * z.softmax(1)[:, 0].std().item(), rel=0.1)


def test_inverse_loss_weights_by_hand():
    """softmax((1/L) / T) of L = 1 and 2 at T = 0.5 is that of 2 and 1."""
    weighting = InverseLossWeights({"seg": 1.0, "bin": 0.25}, temperature=0.5)
    losses = scalars(bin=2, seg=1)
    for loss in losses.values():
        loss.requires_grad_()
    total = weighting(losses, scalars(seg=1, bin=1))
    seg, bin_ = 2 * math.e / (math.e + 1), 0.25 * 2 / (math.e + 1)
    assert told(weighting) == pytest.approx({"seg": seg, "bin": bin_})
    assert total.item() == pytest.approx(seg + 2 * bin_)
    total.backward()  # a weight is a constant
    assert losses["seg"].grad.item() == pytest.approx(seg)
    assert losses["bin"].grad.item() == pytest.approx(bin_)


def test_inverse_loss_weights_tell_small_losses_apart():
    weighting = InverseLossWeights({"seg": 1.0, "bin": 1.0}, temperature=1e4)
    weighting(scalars(seg=1e-4, bin=5e-5), scalars(seg=1, bin=1))  # softmax of 1 and 2
    assert told(weighting)["bin"] == pytest.approx(2 * math.e / (math.e + 1))


def test_inverse_loss_weights_leave_out_a_task_that_is_unknown_in_the_batch():
    weighting = InverseLossWeights({"seg": 1.0, "bbox": 1.0, "bin": 0.5})
    weighting(scalars(seg=1, bbox=0, bin=1), scalars(seg=1, bbox=0, bin=1))
    assert told(weighting) == pytest.approx({"seg": 1, "bbox": 0, "bin": 0.5})
    total = weighting(scalars(seg=0, bbox=0, bin=0), scalars(seg=0, bbox=0, bin=0))
    assert total.item() == 0
    weighting(scalars(seg=0, bbox=1, bin=1), scalars(seg=1, bbox=1, bin=1))  # a loss of 0, known
    assert told(weighting) == pytest.approx({"seg": 3, "bbox": 0, "bin": 0})
