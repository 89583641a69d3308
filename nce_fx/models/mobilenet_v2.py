"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381): inverted residuals around depthwise convolutions.

Parameter names are torchvision's, so its weights load. ReLU6 never works in place, so that each activation is one node.
"""

import math

from torch import Tensor, nn

from nce_fx.errors import InputError
from nce_fx.models.resnet import initialize, initialize_head

# Expansion t, output channels c, number of blocks n, stride s of the first: table 2 of the paper.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return convolution, BatchNorm, ReLU6, padded to keep the size at stride 1."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """1x1 up, 3x3 depthwise, linear 1x1 down; with a shortcut where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [] if expansion == 1 else [convolution(inputs, hidden, 1)]
        self.conv = nn.Sequential(
            *expand,
            convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return x + self.conv(x) if self.residual else self.conv(x)  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    """The network of table 2, its channels times ``multiplier``: (N, in_channels, H, W) -> (N, num_classes)."""

    def __init__(self, num_classes: int, in_channels: int, dropout: float, multiplier: float) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(1, round(channels * multiplier))

        if not 0 < multiplier < math.inf:
            raise InputError(f"MobileNetV2: multiplier is {multiplier}; it must be above 0")
        inputs, head = scaled(32), scaled(1280)
        layers: list[nn.Module] = [convolution(in_channels, inputs, 3, stride=2)]
        for expansion, outputs, count, first_stride in STAGES:
            for index in range(count):
                stride = first_stride if index == 0 else 1
                layers.append(InvertedResidual(inputs, scaled(outputs), stride, expansion))
                inputs = scaled(outputs)
        layers.append(convolution(inputs, head, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(head, num_classes))
        initialize(self)
        initialize_head(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))  # type: ignore[no-any-return]


def mobilenet_v2(
    num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.2, multiplier: float = 1.0
) -> nn.Module:
    """Return MobileNetV2: 3,504,872 parameters and 300,774,272 multiply-accumulates at 3x224x224, multiplier 1."""
    return MobileNetV2(num_classes, in_channels, dropout, multiplier)
