"""The optimiser against torch's own, and its freezing."""

import copy

import pytest
import torch
from torch import nn

from engine.optimiser import Optimiser


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.Conv2d(24, 2, 1)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def learn(net, optimiser, steps=3):
    images = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimiser.zero_grad()
        net(images).square().mean().backward()
        optimiser.step()


def test_kernels_are_updated_as_matrices_by_muon():
    net = network()
    kernel = net[0].weight
    matrix = nn.Parameter(kernel.detach().permute(0, 2, 3, 1).reshape(24, -1).clone())
    optimiser = Optimiser(net.parameters(), 0.01, 0.1, total_steps=10)
    learn(net, optimiser, steps=1)
    matrix.grad = kernel.grad.permute(0, 2, 3, 1).reshape(24, -1)
    first_rate = 0.01 / 25  # where torch's one-cycle schedule begins
    settings = {"lr": first_rate, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    torch.optim.Muon([matrix], **settings).step()
    updated = kernel.detach().permute(0, 2, 3, 1).reshape(24, -1)
    torch.testing.assert_close(updated, matrix.detach())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_of_any_layout_learn(layout):
    net = network().to(memory_format=layout)
    before = net[0].weight.clone()
    learn(net, Optimiser(net.parameters(), 0.01, 0.1, total_steps=10))
    assert (net[0].weight != before).float().mean() > 0.9


def test_the_rest_is_updated_by_adamw_and_vectors_do_not_decay():
    net, other = network(), network()
    optimiser = Optimiser(net.parameters(), 0.01, 0.1, total_steps=10)
    learn(net, optimiser, steps=1)
    rest = [net[0].bias, net[1].weight, net[1].bias, net[2].weight, net[2].bias]
    twins = [other[0].bias, other[1].weight, other[1].bias, other[2].weight, other[2].bias]
    for mine, twin in zip(rest, twins, strict=True):
        twin.grad = mine.grad
    groups = [{"params": twins[3:4], "weight_decay": 0.1}, {"params": twins[:3] + twins[4:]}]
    torch.optim.AdamW(groups, lr=0.01 / 25, weight_decay=0.0).step()
    for mine, twin in zip(rest, twins, strict=True):
        torch.testing.assert_close(mine, twin)


@pytest.mark.parametrize("steps", range(1, 13))
def test_a_run_may_be_of_any_length(steps):
    net = network()
    learn(net, Optimiser(net.parameters(), 0.01, 0.0, total_steps=steps), steps)
    assert all(weight.isfinite().all() for weight in net.parameters())


def test_the_rate_follows_one_cycle_to_its_end():
    net = network()
    optimiser = Optimiser(net.parameters(), 0.01, 0.0, total_steps=10)
    rates = []
    for _ in range(10):
        rates.append(optimiser.parts["muon"].param_groups[0]["lr"])
        learn(net, optimiser, steps=1)
    assert max(rates) == pytest.approx(0.01) and rates.index(max(rates)) == 1
    assert rates[-1] < 1e-6


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_frozen_weights_stay_for_good(value):
    net = network()
    optimiser = Optimiser(net.parameters(), 0.01, 0.1, total_steps=10)
    learn(net, optimiser)
    before = {name: weight.clone() for name, weight in net.named_parameters()}
    optimiser.zero_grad()
    (net(torch.full((2, 16, 8, 8), value)).square().mean()).backward()
    optimiser.freeze(torch.tensor(True))
    optimiser.step()
    optimiser.freeze(torch.tensor(False))
    learn(net, optimiser, steps=1)
    assert all(torch.equal(weight, before[name]) for name, weight in net.named_parameters())


def test_a_restored_optimiser_goes_on_in_the_same_way():
    net, other = network(), network()
    optimiser = Optimiser(net.parameters(), 0.01, 0.1, total_steps=10)
    learn(net, optimiser)
    restored = Optimiser(other.parameters(), 0.01, 0.1, total_steps=10)
    other.load_state_dict(net.state_dict())
    restored.load_state_dict(copy.deepcopy(optimiser.state_dict()))  # as from a file
    learn(net, optimiser)
    learn(other, restored)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
