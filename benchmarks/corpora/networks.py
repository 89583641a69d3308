"""Networks of the evidence that are not built into nce-fx, for small images: MobileNetV2, gates, a transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nce_fx.models.mobilenet_v2 import InvertedResidual, convolution

STAGES = ((1, 16, 1), (6, 24, 1), (6, 32, 2), (6, 64, 2), (6, 96, 1))
"""Expansion t, output channels c, number of blocks n: table 2 of the MobileNetV2 paper with fewer blocks."""
HEAD = 320
STRIDES = {"small": (1, 1, 1, 2, 2, 1), "28x28": (1, 1, 2, 2, 2, 1), "imagenet": (2, 1, 2, 2, 2, 1)}
"""Of the stem and of each stage's first block: for 32x32 images, for 28x28 (4x4 in the end), and the paper's."""


class SmallMobileNetV2(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes), any H and W of at least 8; channels times ``multiplier``."""

    def __init__(self, num_classes: int, in_channels: int, multiplier: float, strides: tuple[int, ...]) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(1, round(channels * multiplier))

        inputs = scaled(32)
        layers: list[nn.Module] = [convolution(in_channels, inputs, 3, strides[0])]
        for (expansion, channels, count), first_stride in zip(STAGES, strides[1:], strict=True):
            for index in range(count):
                layers.append(InvertedResidual(inputs, scaled(channels), first_stride if not index else 1, expansion))
                inputs = scaled(channels)
        layers.append(convolution(inputs, scaled(HEAD), 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(scaled(HEAD), num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def small_mobilenet_v2(
    num_classes: int = 10, in_channels: int = 3, multiplier: float = 0.25, strides: str = "small"
) -> nn.Module:
    """Return MobileNetV2, narrow by default, with the strides of small images or those of ImageNet."""
    return SmallMobileNetV2(num_classes, in_channels, multiplier, STRIDES[strides])


class SqueezeExcite(nn.Module):
    """(N, C, H, W) -> the same: every channel times a gate that its picture's means decide."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated channels."""
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(means))))


class GatedResidual(nn.Module):
    """EfficientNet's block: expanded, 5x5 depthwise, gated, projected; added to its input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.body = nn.Sequential(
            convolution(inputs, hidden, 1),
            convolution(hidden, hidden, 5, stride, hidden),
            SqueezeExcite(hidden, max(2, inputs // 2)),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.body(x)
        return x + y if self.adds else y


def small_efficientnet(num_classes: int = 10, in_channels: int = 3, width: int = 8) -> nn.Module:
    """Return a small EfficientNet-like network: squeeze-excite, 5x5 depthwise convolutions, 1/8 of the side."""
    stages = ((1, 1, 1), (2, 2, 4), (3, 2, 4), (3, 1, 4), (4, 2, 4))
    layers: list[nn.Module] = [convolution(in_channels, width, 3)]
    inputs = width
    for times, stride, expansion in stages:
        layers.append(GatedResidual(inputs, width * times, stride, expansion))
        inputs = width * times
    layers += [
        convolution(inputs, 4 * inputs, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * inputs, num_classes),
    ]
    return nn.Sequential(*layers)


class Block(nn.Module):
    """A transformer's block, normalised first: (N, T, C) -> (N, T, C)."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.queries, self.keys, self.values = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then transform each token."""
        y = self.before_attention(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.queries, self.keys, self.values)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class SmallVit(nn.Module):
    """(N, in_channels, 28, 28) -> (N, num_classes): patches of 4x4, 49 tokens."""

    def __init__(self, num_classes: int, in_channels: int, channels: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, channels, 4, 4)
        self.places = nn.Parameter(0.02 * torch.randn(1, 49, channels))
        self.blocks = nn.Sequential(*(Block(channels, heads, 2 * channels) for _ in range(blocks)))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def small_vit(
    num_classes: int = 10, in_channels: int = 3, channels: int = 32, heads: int = 4, blocks: int = 3
) -> nn.Module:
    """Return a small vision transformer for 28x28 images."""
    return SmallVit(num_classes, in_channels, channels, heads, blocks)
