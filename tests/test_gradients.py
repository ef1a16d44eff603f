"""The weightings that look at gradients against torchjd, which puts the same papers into code, or
against what the paper says of the solution.

torchjd takes means over the tasks where the factors here are sums, hence K times its weights.
"""

import functools
import itertools
import math

import pytest
import torch
from torchjd.aggregation import (
    AlignedMTLWeighting,
    IMTLGWeighting,
    MGDAWeighting,
    PCGradWeighting,
    UPGradWeighting,
)
from torchjd.linalg import QuadprogProjector

from parts.gradients import (
    GradientWeights,
    aligned_mtl,
    cagrad,
    equal_norms,
    imtl_g,
    mgda,
    pcgrad,
    upgrad,
)

NAN = math.nan
METHODS = [pcgrad, mgda, cagrad, upgrad, imtl_g, aligned_mtl, equal_norms]


def told(weighting):
    return {task: torch.as_tensor(weight).item() for task, weight in weighting.weights().items()}


def gradients(kind):
    """Matrices (K, 6) of gradients: random ones, with a row of zeros, with nearly parallel rows."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for k in (1, 2, 3, 3, 4, 5):
        rows = normal(k, 6) * normal(k, 1).exp()
        if kind == "zero":
            rows[k // 2] = 0
        elif kind != "random" and k > 1:
            sign = 1 if kind == "parallel" else -1
            rows[-1] = sign * (rows[0] + 0.01 * rows[0].norm() * normal(6))
        yield rows


def each(*kinds):
    return pytest.mark.parametrize(
        "rows", [rows for kind in kinds for rows in gradients(kind)], ids=lambda r: str(len(r))
    )


def ridged(rows):
    """M as `upgrad` and `imtl_g` see it."""
    matrix = rows @ rows.T
    return matrix + 1e-6 * matrix.diagonal().diag()


everything = each("random", "zero", "parallel", "opposite")


@everything
def test_upgrad_is_torchjds(rows):
    oracle = UPGradWeighting(projector=QuadprogProjector(norm_eps=1e-12, reg_eps=1e-12))
    expected = len(rows) * oracle(ridged(rows))
    torch.testing.assert_close(upgrad(rows @ rows.T), expected, rtol=1e-4, atol=1e-6)


@everything
def test_imtl_g_is_torchjds(rows):
    expected = len(rows) * IMTLGWeighting()(ridged(rows))
    torch.testing.assert_close(imtl_g(rows @ rows.T), expected, rtol=1e-6, atol=1e-9)


@everything
def test_aligned_mtl_is_torchjds(rows):
    """As far as fp32 can tell the rank, which is what torchjd then goes by as well."""
    matrix = (rows @ rows.T).float()
    expected = len(rows) * AlignedMTLWeighting()(matrix)
    torch.testing.assert_close(aligned_mtl(matrix.double()).float(), expected, rtol=0.02, atol=1e-3)


@everything
def test_pcgrad_is_the_mean_of_torchjds_over_all_orders(rows, monkeypatch):
    orders = list(itertools.permutations(range(len(rows))))
    expected = 0
    for order in orders:
        monkeypatch.setattr(torch, "randperm", lambda k, order=order: torch.tensor(order))
        expected = expected + PCGradWeighting()(rows @ rows.T) / len(orders)
    torch.testing.assert_close(pcgrad(rows @ rows.T), expected, rtol=1e-6, atol=1e-9)


@everything
def test_mgda_is_the_shortest_of_the_convex_combinations(rows):
    """The shortest one has at least its own square as its product with each gradient; torchjd's
    iterations come close to it, and never below.
    """
    matrix, point = rows @ rows.T, mgda(rows @ rows.T) / len(rows)
    square = point @ matrix @ point
    assert (point >= 0).all()
    assert point.sum().item() == pytest.approx(1)
    assert (matrix @ point >= square - 1e-9 * matrix.trace()).all()
    other = MGDAWeighting(epsilon=1e-9, max_iters=500)(matrix)
    other = other @ matrix @ other
    assert square <= other + 1e-12 * matrix.trace()
    torch.testing.assert_close(square, other, rtol=0.02, atol=1e-3 * matrix.trace().item())


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
@everything
def test_cagrad_is_best_for_the_worst_task_within_its_ball(rows, c):
    """min_i <g_i, d> of the step d is at most g_w . mean + c |mean| |g_w| for any w of the simplex
    (the paper's dual); they are equal for the w that the factors tell, so both are optimal.
    """
    factors, mean = cagrad(rows @ rows.T, c), rows.mean(0)
    step, radius = rows.T @ factors / len(rows), c * mean.norm()
    if (factors == 1).all():  # w combines the gradients to 0, which a zero among them allows
        assert (rows == 0).all(1).any()
        return
    assert (step - mean).norm().item() == pytest.approx(radius.item(), rel=1e-6)
    combined = rows.T @ (factors - 1) / (factors - 1).sum()
    bound = combined @ mean + radius * combined.norm()
    assert (factors >= 1).all()
    assert (rows @ step).min().item() == pytest.approx(bound.item(), rel=1e-6, abs=1e-9)


def test_cagrad_by_hand():
    """No step helps both (1, 0) and (-1, 0): the mean. Of (1, 0) and (-2, 0) the mean is (-1/2, 0),
    which harms the first: the step is shorter by c = 1/2 of it.
    """
    for length in (1.0, 2.0):
        rows = torch.tensor([[1.0, 0.0], [-length, 0.0], [0.0, 3.0]]).double()
        assert cagrad(rows @ rows.T).tolist() == [1, 1, 1]
    rows = torch.tensor([[1.0, 0.0], [-2.0, 0.0]]).double()
    assert cagrad(rows @ rows.T).tolist() == pytest.approx([1.5, 1])


@pytest.mark.parametrize("method", METHODS)
def test_orthogonal_gradients_of_one_length_are_added_up(method):
    for k in (1, 2, 3, 6):
        expected = torch.full((k,), 1.5 if method is cagrad else 1.0, dtype=torch.float64)
        torch.testing.assert_close(method(4e-6 * torch.eye(k, dtype=torch.float64)), expected)


@pytest.mark.parametrize("method", METHODS)
def test_factors_are_the_same_for_equal_gradients_and_at_any_scale_and_finite_for_zeros(method):
    rows = next(gradients("random")).new_tensor([[1, 0, 0], [1, 0, 0], [-0.5, 2, 0], [-1, 1, 3]])
    factors = method(rows @ rows.T)
    torch.testing.assert_close(factors[0], factors[1])
    for scale in (1e-12, 1e12):
        torch.testing.assert_close(method(scale * rows @ rows.T), factors, rtol=1e-6, atol=1e-9)
    assert method(torch.zeros(3, 3, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("method", [method for method in METHODS if method is not imtl_g])
def test_the_rounding_of_fp32_changes_no_step(method):
    """Of four gradients in a plane, whose lengths differ by up to 10,000. IMTL-G has no step there:
    no vector of a plane has equal projections on four.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        rows = torch.randn(4, 2, generator=generator) @ torch.randn(2, 9999, generator=generator)
        rows *= 10 ** (4 * torch.rand(4, 1, generator=generator) - 2)
        exact = rows.double() @ rows.double().T
        factors, rounded = method(exact), method((rows @ rows.T).double())
        step, error = (v @ exact @ v for v in (factors, rounded - factors))  # squares
        assert error.sqrt() < 1e-3 * max(step, exact.trace()).sqrt()


def test_equal_norms_by_hand():
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).double()
    assert equal_norms(rows @ rows.T).tolist() == pytest.approx([1, 2, 0])
    for rows in gradients("random"):
        lengths = equal_norms(rows @ rows.T) * rows.norm(dim=1)
        torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths))


def test_a_conflict_of_two_by_hand():
    """Gradients (1, 0) and (-1, 1): each loses its part against the other."""
    matrix = torch.tensor([[1.0, -1.0], [-1.0, 2.0]]).double()
    expected = [1 + 1, 0.5 + 1]  # (1, 0) + (-1, 1) / 2 and (-1, 1) + (1, 0)
    assert pcgrad(matrix).tolist() == pytest.approx(expected)
    assert upgrad(matrix).tolist() == pytest.approx(expected)
    assert mgda(matrix).tolist() == pytest.approx([2 * 0.6, 2 * 0.4])  # (0.2, 0.4) is the shortest


def test_gradient_weights_see_the_weighted_losses():
    weighting = GradientWeights({"a": 2.0, "b": 0.5}, equal_norms)
    assert weighting.needs_gradients
    assert told(weighting) == {"a": 2.0, "b": 0.5}
    weights = weighting.from_gradients(torch.eye(2), torch.ones(2))  # weighted norms 2 and 0.5
    assert weights.tolist() == pytest.approx([2 * 0.4, 0.5 * 1.6])
    assert told(weighting) == pytest.approx({"a": 0.8, "b": 0.8})
    one = torch.tensor(1.0)
    total = weighting({"b": 10 * one, "a": one}, {"b": one, "a": one})
    assert total.item() == pytest.approx(0.8 * 11)


@pytest.mark.parametrize("method", METHODS)
def test_a_task_without_a_known_target_has_no_vote(method):
    weighting = GradientWeights({"a": 1.0, "b": 1.0, "c": 1.0}, method)
    rows = torch.tensor([[1.0, 0.0], [5.0, -7.0], [-1.0, 1.0]])
    weights = weighting.from_gradients(rows @ rows.T, torch.tensor([1.0, 0.0, 1.0]))
    alone = method((rows[::2] @ rows[::2].T).double()).float()
    torch.testing.assert_close(weights, torch.stack([alone[0], torch.tensor(0.0), alone[1]]))
    nothing = weighting.from_gradients(torch.zeros(3, 3), torch.zeros(3))
    assert nothing.tolist() == [0, 0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_gradients_that_are_not_finite_leave_the_given_weights(method):
    """So the loss that the engine reports is the true one, and no solver ends in a traceback."""
    weighting = GradientWeights({"a": 1.0, "b": 0.5}, method)
    weights = weighting.from_gradients(torch.tensor([[1.0, NAN], [NAN, NAN]]), torch.ones(2))
    assert weights.tolist() == [1, 0.5]


def test_a_negative_factor_is_zero_so_that_no_head_unlearns():
    rows = torch.tensor([[1.0, 0.5, 0.0], [1.0, -0.5, 0.0], [1.0, 0.0, 0.1]]).double()
    factors = imtl_g(rows @ rows.T)
    assert (factors < 0).tolist() == [False, False, True]
    weighting = GradientWeights({"a": 1.0, "b": 1.0, "c": 1.0}, imtl_g)
    weights = weighting.from_gradients(rows @ rows.T, torch.ones(3))
    assert weights.tolist() == pytest.approx([*factors[:2].tolist(), 0])


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_of_zero_has_no_vote_and_keeps_its_weight(method):
    """MGDA, for one, would otherwise stop the other tasks where one has nothing left to learn."""
    weighting = GradientWeights({"a": 1.0, "b": 0.3, "c": 1.0}, method)
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]])
    weights = weighting.from_gradients(rows @ rows.T, torch.ones(3))
    alone = method((rows[::2] @ rows[::2].T).double()).float()
    torch.testing.assert_close(weights, torch.stack([alone[0], torch.tensor(0.3), alone[1]]))


def test_a_method_may_have_settings():
    weighting = GradientWeights({"a": 1.0, "b": 1.0}, functools.partial(cagrad, c=0.0))
    weights = weighting.from_gradients(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]), torch.ones(2))
    assert weights.tolist() == [1, 1]
