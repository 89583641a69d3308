"""Networks of the evidence that are not built into nce-fx: MobileNetV2 for small images."""

from __future__ import annotations

from torch import Tensor, nn

from nce_fx.models.mobilenet_v2 import InvertedResidual, convolution

STAGES = ((1, 16, 1), (6, 24, 1), (6, 32, 2), (6, 64, 2), (6, 96, 1))
"""Expansion t, output channels c, number of blocks n: table 2 of the MobileNetV2 paper with fewer blocks."""
HEAD = 320
STRIDES = {"small": (1, 1, 1, 2, 2, 1), "imagenet": (2, 1, 2, 2, 2, 1)}
"""Of the stem and of each stage's first block: those usual for 32x32 images, and the paper's."""


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
