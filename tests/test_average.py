"""The average of the weights, by hand and against torch's own."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from engine.setup import apply_start
from parts.average import WeightAverage


def network(device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).to(device)


def change(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    net(torch.randn(5, 2))  # moves the statistics and the counter of the batch norm


def test_it_is_torchs_average_of_the_same_decay():
    def own(averaged, current, count):
        return torch.lerp(
            averaged.float(), current.float(), 1 - min(0.5, (1 + count) / (10 + count))
        )

    net = network()
    ours, theirs = WeightAverage(net, 0.5), AveragedModel(net, avg_fn=own)
    for _ in range(20):  # the decay is 0.5 from the ninth on
        change(net)
        ours.update_parameters(net)
        theirs.update_parameters(net)
    for a, b in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert ours.module[1].num_batches_tracked == net[1].num_batches_tracked == 20
    assert not torch.equal(ours.module[1].running_mean, net[1].running_mean)


def test_what_start_does_to_a_network_is_where_its_average_starts():
    net = network()
    trainer = SimpleNamespace(network=net, average=WeightAverage(net, 0.9))
    apply_start(
        SimpleNamespace(start=lambda network: nn.init.constant_(network[0].bias, 7)), trainer
    )
    before = trainer.average.module.state_dict()
    assert net[0].bias.tolist() == [7] * 3 == before["0.bias"].tolist()
    apply_start(SimpleNamespace(), trainer)  # of a script without it
    assert all(map(torch.equal, net.state_dict().values(), before.values()))
