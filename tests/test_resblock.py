"""Shapes, options and complaints of the building blocks."""

import pytest
import torch

from parts.errors import SettingError
from ResBlock import (
    BoxHead,
    ClassHead,
    Decoder,
    Encoder,
    ResidualBlock,
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


def test_a_unit_begins_as_its_shortcut():
    block = ResidualBlock(4, 4, size=2, sampling="up").eval()
    x = torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(block(x), torch.relu(block.up(x)))
    skip = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(block(x, skip), torch.relu(block.up(x) + skip))


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


def test_foreground_weights_are_mean_probabilities_of_cells():
    logits = torch.tensor([-100.0, 100.0, 0.0, 0.0]).repeat(4, 1)[None, None]  # (1, 1, 4, 4)
    found = foreground_weights(logits, torch.zeros(1, 8, 2, 2))
    torch.testing.assert_close(found, torch.full((1, 1, 2, 2), 0.5))
    found = foreground_weights(logits, torch.zeros(1, 8, 2, 4))
    assert found[0, 0, 0].tolist() == [0.0, 1.0, 0.5, 0.5]


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
