"""The optimiser against torch's own, and its state."""

import copy

import pytest
import torch
from torch import nn

from parts.optimiser import POLYNOMIALS, Optimiser, inverse_root


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.Conv2d(24, 2, 1)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def learn(net, optimiser, steps=3):
    images = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        net.zero_grad()
        net(images).square().mean().backward()
        optimiser.step()


def polar(matrix, *_):
    """The orthogonal matrix nearest to it, in place of torch's iteration."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def exact_root(gram):
    values, vectors = torch.linalg.eigh(gram)
    return vectors @ (values.clamp(min=1e-12).rsqrt()[..., None] * vectors.mT)


def kernels():
    """Of two numbers of rows, wide and tall, in channels_last memory and not."""
    generator = torch.Generator().manual_seed(3)
    shapes = (24, 16, 3, 3), (24, 16, 3, 3), (32, 16), (16, 40), (16, 40), (40, 24)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    return [nn.Parameter(tensor) for tensor in tensors]


def as_matrix(tensor):
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).flatten(1)


def torchs_muon(parameters, rate=0.01 / 25):  # where the one-cycle schedule begins
    twins = [nn.Parameter(as_matrix(p.detach()).clone()) for p in parameters]
    return torch.optim.Muon(twins, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), twins


def test_muon_is_torchs_where_both_orthogonalise_exactly(monkeypatch):
    monkeypatch.setattr("parts.optimiser.native_bf16", lambda device: False)
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", polar)
    monkeypatch.setattr("parts.optimiser.inverse_root", exact_root)
    mine, generator = kernels(), torch.Generator().manual_seed(4)
    optimiser = Optimiser({1.0: mine}, 0.01, 0.1, total_steps=100)
    muon, theirs = torchs_muon(mine)
    for _ in range(3):
        muon.param_groups[0]["lr"] = optimiser.adamw.param_groups[0]["lr"]
        for kernel, twin in zip(mine, theirs, strict=True):
            kernel.grad = torch.randn(kernel.shape, generator=generator).to(
                memory_format=torch.channels_last if kernel.ndim == 4 else torch.contiguous_format
            )
            twin.grad = as_matrix(kernel.grad).clone()
        optimiser.step()
        muon.step()
    before = kernels()
    for kernel, twin, old in zip(mine, theirs, before, strict=True):
        moved, expected = as_matrix(kernel - old), twin - as_matrix(old)
        assert expected.norm() > 1e-3
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bf16", [False, True])
def test_an_update_is_close_to_torchs_own(bf16, monkeypatch):
    """torch's five steps of Newton-Schulz leave singular values from 0.68 to 1.2, in bf16."""
    monkeypatch.setattr("parts.optimiser.native_bf16", lambda device: bf16)
    mine = kernels()
    before = [as_matrix(kernel.detach()).clone() for kernel in mine]
    optimiser = Optimiser({1.0: mine}, 0.01, 0.1, total_steps=100)
    muon, theirs = torchs_muon(mine)
    generator = torch.Generator().manual_seed(5)
    for kernel, twin in zip(mine, theirs, strict=True):
        kernel.grad = torch.randn(kernel.shape, generator=generator)
        twin.grad = as_matrix(kernel.grad).clone()
    optimiser.step()
    muon.step()
    for kernel, twin, old in zip(mine, theirs, before, strict=True):
        a, b = (as_matrix(kernel) - old).flatten(), (twin - old).flatten()
        assert torch.cosine_similarity(a, b, dim=0) > 0.97
        assert 0.9 < a.norm() / b.norm() < 1.3


def of_singular_values(values, columns=96):
    """Two random matrices (2, rows, columns) of these singular values, in fp64."""
    generator = torch.Generator().manual_seed(6)

    def orthogonal(side):
        return torch.linalg.qr(
            torch.randn(2, side, side, generator=generator, dtype=torch.float64)
        )[0]

    return orthogonal(len(values)) * values @ orthogonal(columns)[:, : len(values)]


def orthogonalised(matrices, dtype=torch.float32):
    matrices = matrices.to(dtype)
    return inverse_root(matrices @ matrices.mT) @ matrices


@pytest.mark.parametrize("size", [1e-5, 1.0, 1e4])
def test_singular_values_come_close_to_1(size):
    values = torch.logspace(0, -1.3, 32, dtype=torch.float64)  # down to 0.05
    reached = torch.linalg.svdvals(orthogonalised(size * of_singular_values(values)).double())
    assert reached.min() > 0.95 and reached.max() < 1.05


def test_rounding_to_bf16_moves_singular_values_little():
    values = torch.logspace(0, -4, 32, dtype=torch.float64)  # most of them drown
    exact, rounded = (
        torch.linalg.svdvals(orthogonalised(of_singular_values(values), dtype).double())
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.max() < 1.2
    torch.testing.assert_close(rounded[:, :8], exact[:, :8], atol=0.1, rtol=0)


def test_singular_values_are_those_of_the_polynomials():
    """Of the vector (3, 4) the norm is 5, and 5 / 5 = 1 becomes p3(p2(p1(1)))."""
    vector = torch.tensor([[[3.0, 4.0]]])
    x = 1.0
    for a, b, c in POLYNOMIALS:
        x = a * x + b * x**3 + c * x**5
    assert 0.96 < x < 1.04
    torch.testing.assert_close(orthogonalised(vector), x * vector / 5, rtol=0.01, atol=0)


def test_each_polynomial_is_the_best_one_of_its_range():
    """An odd polynomial of degree 5 is closest to 1 if it is off by the same, 4 times in turn."""
    low, high = 0.03, 1.0
    for a, b, c in POLYNOMIALS:
        x = torch.linspace(low, high, 200_001, dtype=torch.float64)
        y = a * x + b * x**3 + c * x**5
        slope = y.diff().sign().diff().nonzero().flatten() + 1
        turns = y[torch.cat([torch.tensor([0]), slope, torch.tensor([len(y) - 1])])]
        off = 1 - turns[0]
        signs = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
        torch.testing.assert_close(1 - turns, off * signs, atol=1e-4, rtol=0)
        low, high = 1 - off.item(), 1 + off.item()
    assert low == pytest.approx(0.9639, abs=1e-4)


def test_a_gradient_of_zeros_changes_nothing_but_by_decay():
    weight = nn.Parameter(torch.ones(16, 32))
    optimiser = Optimiser({1.0: [weight]}, 0.25, 0.1, total_steps=100)  # the first rate is 0.01
    weight.grad = torch.zeros(16, 32)
    optimiser.step()
    torch.testing.assert_close(weight.detach(), torch.full((16, 32), 0.999))


def test_a_kernel_without_a_gradient_stays():
    used, unused = (nn.Parameter(torch.ones(16, 32)) for _ in range(2))
    optimiser = Optimiser({1.0: [used, unused]}, 0.01, 0.1, total_steps=10)
    used.grad = torch.eye(16, 32)
    optimiser.step()
    assert (unused == 1).all() and (used[0, 0] < 1).all()
    used.grad = None
    optimiser.step()


def test_the_rest_is_updated_by_adamw_and_vectors_do_not_decay():
    net, other = network(), network()
    optimiser = Optimiser({1.0: net.parameters()}, 0.01, 0.1, total_steps=10)
    learn(net, optimiser, steps=1)
    rest = [net[0].bias, net[1].weight, net[1].bias, net[2].weight, net[2].bias]
    twins = [other[0].bias, other[1].weight, other[1].bias, other[2].weight, other[2].bias]
    for mine, twin in zip(rest, twins, strict=True):
        twin.grad = mine.grad
    groups = [{"params": twins[3:4], "weight_decay": 0.1}, {"params": twins[:3] + twins[4:]}]
    torch.optim.AdamW(groups, lr=0.01 / 25, weight_decay=0.0).step()
    for mine, twin in zip(rest, twins, strict=True):
        torch.testing.assert_close(mine, twin)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 12])
def test_a_run_may_be_of_any_length(steps):
    net = network()
    learn(net, Optimiser({1.0: net.parameters()}, 0.01, 0.0, total_steps=steps), steps)
    assert all(weight.isfinite().all() for weight in net.parameters())


def test_a_group_learns_at_its_share_of_the_rate():
    """Kernels, matrices too small for Muon, and vectors alike, weight decay included."""
    shapes = (24, 16, 3, 3), (2, 24), (24,)
    moves = []
    for groups in ((1.0,), (0.1,), (1.0, 0.1)):
        given = {f: [nn.Parameter(torch.ones(shape)) for shape in shapes] for f in groups}
        optimiser = Optimiser(given, 0.01, 0.1, total_steps=10)
        for parameters in given.values():
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=torch.manual_seed(0))
        optimiser.step()
        moves.append([[(p - 1).detach() for p in parameters] for parameters in given.values()])
    (whole,), (tenth,), (both_whole, both_tenth) = moves
    for full, part, in_both, part_in_both in zip(whole, tenth, both_whole, both_tenth, strict=True):
        torch.testing.assert_close(part, full / 10, rtol=0.01, atol=1e-7)
        assert torch.equal(in_both, full) and torch.equal(part_in_both, part)


def test_a_part_that_does_not_learn_can_be_restored():
    """As with --backbone-rate 0."""
    net = network()
    groups = {1.0: [net[0].weight], 0.0: [net[2].weight, net[2].bias]}
    optimiser, new = (Optimiser(groups, rate, 0.1, 10) for rate in (0.01, 0.02))
    before = net[2].weight.detach().clone()
    learn(net, optimiser)
    new.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    rates = [[g["lr"] for g in each.adamw.param_groups] for each in (optimiser, new)]
    assert rates[1] == pytest.approx([2 * rate for rate in rates[0]]) and rates[0][2:] == [0, 0]
    learn(net, new)
    assert torch.equal(net[2].weight, before)


@pytest.mark.parametrize("done", [1, 8])
def test_a_restored_optimiser_keeps_its_own_learning_rate(done):
    """While it rises and while it falls; a part of the network has another one."""
    net, other = network(), network()
    optimiser, new = (
        Optimiser({1.0: n[:2].parameters(), 0.1: n[2].parameters()}, rate, 0.1, 30)
        for n, rate in ((net, 0.01), (other, 2e-3))
    )
    learn(net, optimiser, steps=done)
    other.load_state_dict(net.state_dict())
    new.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    before = net[0].weight.detach().clone()
    for step in range(done, 30):
        for group, low in zip(optimiser.adamw.param_groups, new.adamw.param_groups, strict=True):
            assert low["lr"] == pytest.approx(group["lr"] / 5)
            assert low["betas"] == group["betas"]
        if step == done:
            learn(net, optimiser, steps=1)
            learn(other, new, steps=1)
            mine, theirs = (each[0].weight.detach() - before for each in (net, other))
            # both have the same gradient
            assert (mine.norm() / theirs.norm()).item() == pytest.approx(5, rel=1e-3)
        else:
            optimiser.schedule.step()
            new.schedule.step()
