"""The residual block (He et al. 2016, arXiv:1512.03385), the encoder and decoder
built from it, and the heads.

B is the batch size, (H, W) the size of the image in pixels, multiples of `Encoder.stride`.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from parts.errors import SettingError


class ResidualBlock(nn.Module):
    """`size` residual units after (up) or beginning with (down) a change of resolution.

    Shape: (B, in_channels, h, w) -> (B, out_channels, h / 2, w / 2) for "down", (.., 2 h, 2 w) for
    "up". "down" needs even h and w. "up" reduces the channels before it upsamples, to save work
    at the finer resolution; `skip`, in the shape of the result, is added before the units.

    Args:
        in_channels, out_channels: channels of the input and the output.
        size: number of residual units, at least 1.
        sampling: "down" or "up", by a factor of 2.
        mode: "normal" (two 3 x 3 convolutions per unit) or "bottleneck" (1 x 1 to a quarter of
            the channels, 3 x 3, 1 x 1 back).

    Raises:
        SettingError: unknown sampling or mode, or a size below 1.
    """

    def __init__(self, in_channels, out_channels, size=2, sampling="down", mode="normal"):
        super().__init__()
        if sampling not in ("down", "up"):
            raise SettingError(f"sampling: expected 'down' or 'up', found {sampling!r}")
        if mode not in ("normal", "bottleneck"):
            raise SettingError(f"mode: expected 'normal' or 'bottleneck', found {mode!r}")
        if size < 1:
            raise SettingError(f"size: expected at least one residual unit, found {size}")
        unit = ResidualUnit if mode == "normal" else BottleneckUnit
        self.up, first = nn.Identity(), unit(in_channels, out_channels, stride=2)
        if sampling == "up":
            upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            self.up = nn.Sequential(*conv_norm(in_channels, out_channels, 1), upsample)
            first = unit(out_channels, out_channels)
        rest = (unit(out_channels, out_channels) for _ in range(size - 1))
        self.units = nn.Sequential(first, *rest)

    def forward(self, x, skip=None):
        x = self.up(x)
        return self.units(x if skip is None else x + skip)


class ResidualUnit(nn.Module):
    """relu(shortcut(x) + f(x)) with two 3 x 3 convolutions in f, whose last norm starts at zero."""

    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.residual = nn.Sequential(
            *conv_norm(in_channels, out_channels, 3, stride),
            nn.ReLU(inplace=True),
            *conv_norm(out_channels, out_channels, 3),
        )
        self.shortcut = shortcut(in_channels, out_channels, stride)
        nn.init.zeros_(self.residual[-1].weight)  # the unit starts as its shortcut

    def forward(self, x):
        return F.relu(self.shortcut(x) + self.residual(x), inplace=True)


class BottleneckUnit(ResidualUnit):
    """The same with 1 x 1 to a quarter of the channels, 3 x 3, and 1 x 1 back in f."""

    def __init__(self, in_channels, out_channels, stride=1):
        nn.Module.__init__(self)
        inner = max(1, out_channels // 4)
        self.residual = nn.Sequential(
            *conv_norm(in_channels, inner, 1),
            nn.ReLU(inplace=True),
            *conv_norm(inner, inner, 3, stride),
            nn.ReLU(inplace=True),
            *conv_norm(inner, out_channels, 1),
        )
        self.shortcut = shortcut(in_channels, out_channels, stride)
        nn.init.zeros_(self.residual[-1].weight)


def conv_norm(in_channels, out_channels, kernel, stride=1):
    """A convolution without bias and its batch norm, as a tuple of two modules."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution, nn.BatchNorm2d(out_channels)


def shortcut(in_channels, out_channels, stride):
    """Identity, or average pooling and a 1 x 1 convolution where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
    return nn.Sequential(pool, *conv_norm(in_channels, out_channels, 1))


class Encoder(nn.Module):
    """A stem, one convolution, then one ResidualBlock "down" per further width.

    Shape: image (B, 3, H, W) in [0, 255], uint8 or float -> a list of features, from
    (B, widths[0], H / stem, W / stem) to (B, widths[-1], H / stride, W / stride).

    Args:
        widths: channels at stride `stem`, 2 `stem`, 4 `stem`, ...
        units: residual units in every ResidualBlock.
        stem: stride of the stem.
        mode: of every ResidualBlock.

    Raises:
        SettingError: fewer than two widths, a width below 2, or units or stem below 1.
        ValueError: H or W is not a multiple of `stride`.
    """

    def __init__(self, widths, units, stem=4, mode="normal"):
        super().__init__()
        if len(widths) < 2 or not all(isinstance(width, int) and width > 1 for width in widths):
            raise SettingError(
                f"widths: expected two or more whole numbers above 1, found {widths}"
            )
        for name, number in (("units", units), ("stem", stem)):
            if not isinstance(number, int) or number < 1:
                raise SettingError(f"{name}: expected a whole number above 0, found {number}")
        self.stride = stem * 2 ** (len(widths) - 1)
        convolution = conv_norm(3, widths[0], 2 * stem - 1, stem)
        self.stem = nn.Sequential(*convolution, nn.ReLU(inplace=True))
        pairs = pairwise(widths)
        self.blocks = nn.ModuleList(ResidualBlock(a, b, units, "down", mode) for a, b in pairs)

    def forward(self, image):
        height, width = image.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"image side: expected a multiple of {self.stride}, found {height} x {width}"
            )
        features = [self.stem(image / 64 - 2)]  # about [-2, 2]
        for block in self.blocks:
            features.append(block(features[-1]))
        return features


class Decoder(nn.Module):
    """From the encoder's features back to every pixel, with a skip connection per level.

    Shape: features as Encoder returns them -> (B, channels, H, W). The last step is a pixel
    shuffle (Shi et al. 2016, arXiv:1609.05158) of channels x stem x stem numbers per position at
    stride `stem`.

    Args:
        widths, units, stem, mode: as the Encoder's.
        channels: outputs per pixel: 1 logit for two classes, K for more, or C values.
    """

    def __init__(self, widths, units, stem=4, mode="normal", channels=1):
        super().__init__()
        pairs = list(pairwise(reversed(widths)))
        self.blocks = nn.ModuleList(ResidualBlock(a, b, units, "up", mode) for a, b in pairs)
        self.skips = nn.ModuleList(nn.Sequential(*conv_norm(b, b, 1)) for _, b in pairs)
        self.logits = nn.Sequential(
            nn.Conv2d(widths[0], channels * stem**2, 1), nn.PixelShuffle(stem)
        )

    def forward(self, features):
        return self.logits(self.levels(features)[-1])

    def levels(self, features):
        """The decoded features, coarse to fine: (B, widths[-2], 2 H / stride, 2 W / stride) to
        (B, widths[0], H / stem, W / stem)."""
        decoded = [features[-1]]
        for block, skip, feature in zip(self.blocks, self.skips, features[-2::-1], strict=True):
            decoded.append(block(decoded[-1], skip(feature)))
        return decoded[1:]


class ClassHead(nn.Module):
    """Class logits from weighted means of features.

    Shape: pairs of features (B, C, h, w) and weights (B, 1, h, w) >= 0 -> (B,), or (B, classes) for
    more than one logit. The means are concatenated. No gradient flows into the weights.

    Args:
        channels: the sum of the C of all pairs.
        dropout: probability that a mean is dropped in training.
        classes: number of logits.
    """

    def __init__(self, channels, dropout, classes=1):
        super().__init__()
        if not 0 <= dropout < 1:
            raise SettingError(
                f"dropout: expected a number of at least 0 and below 1, found {dropout}"
            )
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(channels, classes)

    def forward(self, *pairs):
        means = [weighted_mean(x, weight.detach()) for x, weight in pairs]
        logits = self.logits(self.dropout(torch.cat(means, dim=1)))
        return logits[:, 0] if logits.shape[1] == 1 else logits


def weighted_mean(x, weight):
    """Mean of features (B, C, h, w) with weights (B, 1, h, w) >= 0: (B, C)."""
    weight = weight.float() + 1e-3  # all-zero weights count as equal ones
    return (x * (weight / weight.sum((2, 3), keepdim=True))).sum((2, 3))


def foreground_weights(logits, like):
    """Mean foreground probability (B, 1, h, w), from mask logits (B, 1, H, W), per feature cell."""
    return F.adaptive_avg_pool2d(logits.sigmoid(), like.shape[-2:])


class BoxHead(nn.Module):
    """One box from features: (B, C, h, w) -> (B, 4) xyxy in [0, 1].

    Every position votes for a box around itself, as in FCOS (Tian et al. 2019, arXiv:1904.01355):
    four positive distances to its sides. A softmax over the positions weights the votes. Corners
    are clamped to the image, so a box is always valid: 0 <= xmin < xmax <= 1, the same for y.
    """

    SMALLEST = 1e-3  # distance from the centre to a side, so that no box is empty

    def __init__(self, channels):
        super().__init__()
        self.hidden = nn.Sequential(*conv_norm(channels, channels // 2, 3), nn.ReLU(inplace=True))
        self.votes = nn.Conv2d(channels // 2, 5, 1)  # attention, left, top, right, bottom
        nn.init.zeros_(self.votes.weight)
        nn.init.constant_(self.votes.bias, -1.5)  # softplus(-1.5) = 0.2 of the side

    def forward(self, x):
        return self.box_and_attention(x)[0]

    def box_and_attention(self, x):
        """Boxes (B, 4), and the weights (B, 1, h, w) of the votes, which sum to 1."""
        votes = self.votes(self.hidden(x)).float().flatten(2)  # (B, 5, h w)
        attention = votes[:, :1].softmax(2)
        centre = grid_centres(*x.shape[-2:], x.device)  # (2, h w)
        reach = F.softplus(votes[:, 1:]) + self.SMALLEST
        low = (centre - reach[:, :2]).clamp(min=0)
        high = (centre + reach[:, 2:]).clamp(max=1)
        boxes = (attention * torch.cat([low, high], dim=1)).sum(2)  # (B, 4)
        return boxes.clamp(0, 1), attention.unflatten(2, x.shape[-2:])  # rounding may exceed 1


def grid_centres(height, width, device):
    """(2, height * width) x and y of the centres of a grid that covers [0, 1] x [0, 1]."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y]).flatten(1)
