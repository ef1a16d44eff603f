"""Shapes, options and complaints of the building blocks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parts.errors import SettingError
from ResBlock import (
    BottleneckUnit,
    BoxHead,
    ClassHead,
    Decoder,
    Encoder,
    ResidualBlock,
    ResidualUnit,
    foreground_weights,
    weighted_mean,
)


@pytest.mark.parametrize("mode", ["normal", "bottleneck"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_block_changes_channels_and_resolution(mode, size):
    x = torch.randn(2, 8, 6, 4)
    down = ResidualBlock(8, 16, size=size, sampling="down", mode=mode)
    up = ResidualBlock(8, 4, size=size, sampling="up", mode=mode)
    assert down(x).shape == (2, 16, 3, 2)
    assert up(x).shape == (2, 4, 12, 8)
    assert len(down.units) == len(up.units) == size
    convolutions = [m for m in down.modules() if isinstance(m, torch.nn.Conv2d)]
    per_unit = 2 if mode == "normal" else 3
    assert len(convolutions) == per_unit * size + 1  # one in the shortcut


@pytest.mark.parametrize("mode", ["normal", "bottleneck"])
def test_a_unit_begins_as_its_shortcut(mode):
    block = ResidualBlock(4, 4, size=2, sampling="up", mode=mode).eval()
    x = torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(block(x), torch.relu(block.up(x)))
    skip = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(block(x, skip), torch.relu(block.up(x) + skip))
    down = ResidualBlock(4, 6, size=1, mode=mode).eval()
    _, convolution, norm = down.units[0].shortcut
    pooled = norm(convolution(F.avg_pool2d(x, 2)))
    torch.testing.assert_close(down(x), torch.relu(pooled))


def test_a_bottleneck_works_at_a_quarter_of_the_channels_and_halves_the_side_in_the_middle():
    unit = ResidualBlock(8, 16, size=1, mode="bottleneck").units[0]
    found = [(m.weight.shape, m.stride) for m in unit.residual if isinstance(m, nn.Conv2d)]
    expected = [((4, 8, 1, 1), (1, 1)), ((4, 4, 3, 3), (2, 2)), ((16, 4, 1, 1), (1, 1))]
    assert found == expected


@pytest.mark.parametrize(
    ("mode", "kind"), [("normal", ResidualUnit), ("bottleneck", BottleneckUnit)]
)
@pytest.mark.parametrize("part", [Encoder, Decoder])
def test_every_level_has_the_units_that_are_asked_for(part, mode, kind):
    modules = part((4, 8, 12), 3, mode=mode).modules()
    found = [type(m) for m in modules if isinstance(m, ResidualUnit)]
    assert found == [kind] * 2 * 3


def test_kernels_begin_at_the_size_that_keeps_gradients():
    """He's initialisation by the outputs: a variance of 2 / (9 x 64)."""
    kernel = ResidualBlock(16, 64, size=1).units[0].residual[0].weight
    assert kernel.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "left"}, "sampling: expected 'down' or 'up', found 'left'"),
        ({"mode": "wide"}, "mode: expected 'normal' or 'bottleneck', found 'wide'"),
        ({"size": 0}, "size: expected at least one residual unit, found 0"),
    ],
)
def test_complaints(options, message):
    with pytest.raises(SettingError, match=message):
        ResidualBlock(4, 4, **options)


@pytest.mark.parametrize("side", [(32, 32), (64, 96)])
def test_encoder_and_decoder_fit_every_multiple_of_the_stride(side):
    widths = (4, 8, 12, 16)
    encoder, decoder = Encoder(widths, 1), Decoder(widths, 1)
    features = encoder(torch.randint(0, 256, (2, 3, *side), dtype=torch.uint8))
    for level, (width, feature) in enumerate(zip(widths, features, strict=True)):
        stride = 4 * 2**level
        assert feature.shape == (2, width, side[0] // stride, side[1] // stride)
    assert encoder.stride == 32
    assert decoder(features).shape == (2, 1, *side)


@pytest.mark.parametrize("stem", [2, 4])
def test_the_stem_sets_the_finest_stride(stem):
    encoder, decoder = Encoder((4, 8, 12), 1, stem), Decoder((4, 8, 12), 1, stem)
    features = encoder(torch.zeros(2, 3, 64, 32))
    assert encoder.stride == 4 * stem
    assert features[0].shape == (2, 4, 64 // stem, 32 // stem)
    assert decoder(features).shape == (2, 1, 64, 32)


def test_the_network_sees_colours_from_minus_2_to_2():
    encoder = Encoder((4, 8), 1, stem=1)
    encoder.stem, encoder.blocks = nn.Identity(), nn.ModuleList()
    image = torch.tensor([0, 128, 192, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    assert encoder(image)[0].flatten().tolist() == [-2, 0, 1, 255 / 64 - 2]


@pytest.mark.parametrize("channels", [1, 3, 37])
def test_a_decoder_gives_as_many_numbers_per_pixel_as_asked_for(channels):
    features = Encoder((4, 8), 1)(torch.zeros(2, 3, 32, 16))
    one, other = (Decoder((4, 8), 1, channels=channels) for _ in "ab")
    assert one(features).shape == (2, channels, 32, 16)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():  # the 16 numbers of a channel lie side by side
        other.logits[0].bias[-16:] += 1
    difference = other(features) - one(features)
    assert difference[:, -1].sub(1).abs().max() < 1e-5 and not difference[:, :-1].any()


def test_a_stem_out_of_range_is_named():
    with pytest.raises(SettingError, match="stem: expected a whole number above 0, found 0"):
        Encoder((4, 8), 1, 0)


def test_another_side_is_refused_with_the_multiple():
    with pytest.raises(ValueError, match="expected a multiple of 8, found 32 x 36"):
        Encoder((4, 8), 1)(torch.zeros(1, 3, 32, 36))


def test_every_skip_reaches_the_logits():
    widths = (4, 8, 12)
    features = [
        torch.randn(1, w, 16 // 2**i, 16 // 2**i, requires_grad=True) for i, w in enumerate(widths)
    ]
    Decoder(widths, 1)(features).square().sum().backward()
    assert all(feature.grad.abs().sum() > 0 for feature in features)


def test_a_class_head_looks_under_each_map_and_teaches_the_maps_nothing():
    head = ClassHead(8 + 4, 0.0)
    coarse, fine = torch.randn(3, 8, 4, 4), torch.randn(3, 4, 8, 8)
    maps = torch.rand(3, 1, 4, 4, requires_grad=True), torch.rand(3, 1, 8, 8, requires_grad=True)
    logits = head((coarse, maps[0]), (fine, maps[1]))
    assert logits.shape == (3,)
    pooled = [weighted_mean(coarse, maps[0]), weighted_mean(fine, maps[1])]
    torch.testing.assert_close(logits, head.logits(torch.cat(pooled, dim=1))[:, 0])
    logits.sum().backward()
    assert maps[0].grad is None and maps[1].grad is None


def test_a_class_head_has_a_logit_for_each_of_many_classes():
    head, pair = ClassHead(4, 0.0, classes=37), (torch.randn(3, 4, 2, 2), torch.ones(3, 1, 2, 2))
    means = pair[0].mean((2, 3))
    torch.testing.assert_close(head(pair), head.logits(means))
    assert head(pair).shape == (3, 37)


def test_a_weighted_mean_by_hand():
    x = torch.tensor([[[[1.0, 5.0], [3.0, 7.0]]]])
    weight = torch.tensor([[[[1.0, 3.0], [0.0, 0.0]]]])
    assert weighted_mean(x, 1000 * weight).item() == pytest.approx((1 + 15) / 4, abs=0.01)
    assert weighted_mean(x, torch.zeros_like(weight)).item() == pytest.approx(4.0)
    # .001 is added to each weight, and every sample has weights of its own, the same for its maps
    x, weight = torch.cat([x, 10 * x]).repeat(1, 2, 1, 1), torch.cat([weight.flip(3), 2 * weight])
    first = (3.001 * 1 + 1.001 * 5 + 0.001 * 10) / 4.004
    second = 10 * (2.001 * 1 + 6.001 * 5 + 0.001 * 10) / 8.004
    expected = torch.tensor([[first] * 2, [second] * 2])
    torch.testing.assert_close(weighted_mean(x, weight), expected)


def test_foreground_weights_are_mean_probabilities_of_cells():
    logits = torch.tensor([-100.0, 100.0, 0.0, 0.0]).repeat(4, 1)[None, None]  # (1, 1, 4, 4)
    found = foreground_weights(logits, torch.zeros(1, 8, 2, 2))
    torch.testing.assert_close(found, torch.full((1, 1, 2, 2), 0.5))
    found = foreground_weights(logits, torch.zeros(1, 8, 2, 4))
    assert found[0, 0, 0].tolist() == [0.0, 1.0, 0.5, 0.5]


def test_a_new_box_head_votes_for_a_fifth_of_the_side_in_each_direction():
    reach = math.log1p(math.exp(-1.5)) + 1e-3  # .202
    found = BoxHead(8)(torch.randn(2, 8, 1, 1))
    expected = torch.tensor([0.5 - reach] * 2 + [0.5 + reach] * 2).expand(2, 4)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_boxes_are_always_valid(scale):
    head = BoxHead(8)
    torch.nn.init.normal_(head.votes.weight, std=max(scale, 1e-3))
    boxes = head(scale * torch.randn(50, 8, 4, 4))
    assert boxes.shape == (50, 4)
    assert (boxes >= 0).all() and (boxes <= 1).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()


def test_a_box_follows_the_position_that_is_attended():
    head = BoxHead(8).eval()
    with torch.no_grad():
        head.votes.bias[1:] = -4.0  # softplus(-4) = 0.018
        head.votes.weight[0] = 1000.0
        head.hidden[0].weight.zero_()
        head.hidden[0].weight[:, :, 1, 1] = 1.0
    x = torch.zeros(1, 8, 4, 4)
    x[0, :, 2, 3] = 1.0
    x0, y0, x1, y1 = head(x)[0].tolist()
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((3.5 / 4, 2.5 / 4), abs=1e-3)
