"""VGG-16 with BatchNorm (Simonyan and Zisserman 2014, arXiv 1409.1556, configuration D).

Parameter names are torchvision's, so its weights load. No ReLU works in place, so that each activation is one node.
"""

from __future__ import annotations

from torch import Tensor, nn

from nce_fx.models.resnet import initialize

# Widths of the 3x3 convolutions of each block; a 2x2 max-pooling ends each block.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Five convolution blocks and three linear layers: (N, in_channels, H, W) -> (N, num_classes), H and W >= 32."""

    def __init__(self, num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for widths in BLOCKS:
            for width in widths:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        initialize(self)
        for module in self.classifier:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))  # type: ignore[no-any-return]


def vgg16_bn(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> nn.Module:
    """Return VGG-16 with BatchNorm: 138,365,992 parameters, 15,470,264,320 multiply-accumulates at 3x224x224."""
    return VGG(num_classes, in_channels, dropout)
