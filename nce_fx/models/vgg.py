"""VGG-16 with BatchNorm (Simonyan and Zisserman 2014, arXiv 1409.1556, configuration D).

Parameter names are torchvision's, so its weights load. No ReLU works in place, so that each activation is one node.
"""

from torch import Tensor, nn

from nce_fx.models.resnet import initialize, initialize_head

# Widths of the 3x3 convolutions of each block, as multiples of the first; a 2x2 max-pooling ends each block.
BLOCKS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))


class VGG(nn.Module):
    """Five convolution blocks and three linear layers: (N, in_channels, H, W) -> (N, num_classes), H and W >= 32."""

    def __init__(self, num_classes: int, in_channels: int, dropout: float, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for multiples in BLOCKS:
            for outputs in (multiple * width for multiple in multiples):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 7 * 7, 64 * width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(64 * width, 64 * width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(64 * width, num_classes),
        )
        initialize(self)
        initialize_head(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))  # type: ignore[no-any-return]


def vgg16_bn(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5, width: int = 64) -> nn.Module:
    """Return VGG-16 with BatchNorm: 138,365,992 parameters, 15,470,264,320 multiply-accumulates at 3x224x224."""
    return VGG(num_classes, in_channels, dropout, width)
