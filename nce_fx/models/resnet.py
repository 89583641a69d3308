"""ResNet-18 and ResNet-50 for ImageNet-sized images (He et al. 2015, arXiv 1512.03385).

The stride of a bottleneck is on its 3x3 convolution, as torchvision has it ("v1.5"): 4.09 G multiply-accumulates rather
than 3.86 G. Parameter names are torchvision's, so its weights load. Two things differ, and neither has parameters:
every ReLU is a module of its own and none works in place, so that each activation is one named node of the graph.
"""

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, inputs, H, W) -> (N, width, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(branch + shortcut)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu2(out + shortcut)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times the width: (N, inputs, H, W) -> (N, 4 * width, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = downsample
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(branch + shortcut)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu3(out + shortcut)  # type: ignore[no-any-return]


def projection(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """Return the shortcut of a block: 1x1 convolution and BatchNorm, or None where the shapes already agree."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def stage(
    block: type[BasicBlock] | type[Bottleneck], depth: int, inputs: int, width: int, stride: int = 1
) -> nn.Sequential:
    """Return ``depth`` blocks, the first with the stride and, where the shape changes, a projection."""
    outputs = width * block.expansion
    first = block(inputs, width, stride, projection(inputs, outputs, stride))
    return nn.Sequential(first, *(block(outputs, width) for _ in range(depth - 1)))


def initialize(model: nn.Module) -> None:
    """Draw convolution weights from He's normal distribution, fan-out, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialize_head(head: nn.Sequential) -> None:
    """Draw small weights for linear layers; biases are zero."""
    for module in head:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)


class ResNet(nn.Module):
    """Stem, four stages at 1, 2, 4, 8 times the width (times four for bottlenecks), pooling, classifier.

    (N, in_channels, H, W) -> (N, num_classes), any H and W of at least 32.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int,
        in_channels: int,
        width: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(block, depths[0], width, width)
        self.layer2 = stage(block, depths[1], width * block.expansion, 2 * width, stride=2)
        self.layer3 = stage(block, depths[2], 2 * width * block.expansion, 4 * width, stride=2)
        self.layer4 = stage(block, depths[3], 4 * width * block.expansion, 8 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width * block.expansion, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def resnet18(num_classes: int = 1000, in_channels: int = 3, width: int = 64) -> nn.Module:
    """Return ResNet-18: 11,689,512 parameters and 1,814,073,344 multiply-accumulates at 3x224x224 and width 64."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, width)


def resnet50(num_classes: int = 1000, in_channels: int = 3, width: int = 64) -> nn.Module:
    """Return ResNet-50: 25,557,032 parameters and 4,089,184,256 multiply-accumulates at 3x224x224 and width 64."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, width)
