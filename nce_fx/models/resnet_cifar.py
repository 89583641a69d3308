"""The small ResNets for 8x8 to 32x32 images (He et al. 2015, arXiv 1512.03385, section 4.2): three stages at w, 2w, 4w.

Depth is 6n + 2 for n blocks a stage. Where a stage changes the width, the shortcut is a 1x1 convolution with BatchNorm
(option B) unless ``shortcut="pad"`` asks for the paper's own (option A: every second pixel, new channels zero): a
convolution lets the stages change their widths independently, which is what this compiler is about. At width 16 and 10
classes:

    resnet20: 272,474 parameters (option A: 269,722)      resnet56: 855,770 (option A: 853,018)
"""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from nce_fx.errors import InputError
from nce_fx.models.resnet import BasicBlock, initialize, stage

Shortcut = Literal["conv", "pad"]


class PaddedShortcut(nn.Module):
    """Option A: (N, C, H, W) -> (N, C + new, H / stride, W / stride), the new channels zero, half on either side."""

    def __init__(self, new: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = new // 2, new - new // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return every ``stride``-th pixel, padded with zero channels."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class ResNetCifar(nn.Module):
    """Stem, three stages of ``depth`` basic blocks at width, 2 * width, 4 * width, pooling, classifier.

    (N, in_channels, H, W) -> (N, num_classes), any H and W of at least 4.

    Raises:
        InputError: an unknown kind of shortcut.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int, width: int, shortcut: Shortcut) -> None:
        if shortcut not in get_args(Shortcut):
            raise InputError(f"shortcut {shortcut!r} is not one of {', '.join(get_args(Shortcut))}")
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = stage(BasicBlock, depth, width, width)
        self.layer2 = stage(BasicBlock, depth, width, 2 * width, stride=2)
        self.layer3 = stage(BasicBlock, depth, 2 * width, 4 * width, stride=2)
        if shortcut == "pad":
            self.layer2[0].downsample = PaddedShortcut(width, stride=2)
            self.layer3[0].downsample = PaddedShortcut(2 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def resnet8(num_classes: int = 10, in_channels: int = 3, width: int = 4, shortcut: Shortcut = "conv") -> nn.Module:
    """Return ResNet-8, of one block a stage: 5,142 parameters at width 4 and one input channel.

    Its default widths 4, 8, 16 are narrow on purpose: on 8x8 digits 2 bits cost this net points, and width gives them
    back.
    """
    return ResNetCifar(1, num_classes, in_channels, width, shortcut)


def resnet20(num_classes: int = 10, in_channels: int = 3, width: int = 16, shortcut: Shortcut = "conv") -> nn.Module:
    """Return ResNet-20, of three blocks a stage: 272,474 parameters at 3x32x32 and width 16."""
    return ResNetCifar(3, num_classes, in_channels, width, shortcut)


def resnet56(num_classes: int = 10, in_channels: int = 3, width: int = 16, shortcut: Shortcut = "conv") -> nn.Module:
    """Return ResNet-56, of nine blocks a stage: 855,770 parameters at 3x32x32 and width 16."""
    return ResNetCifar(9, num_classes, in_channels, width, shortcut)
