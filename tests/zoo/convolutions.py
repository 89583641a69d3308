"""Kinds of convolution: depthwise, grouped, transposed, of one channel, of one and three dimensions, functional."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.model import OUTPUT, Head, ZooModel, conv, image, noise, together


class Depthwise(nn.Module):
    def __init__(self, multiplier: int = 1) -> None:
        super().__init__()
        wide = 4 * multiplier
        self.a, self.bn = conv(3, 4, bias=False), nn.BatchNorm2d(4)
        self.dw, self.bn_dw = conv(4, wide, groups=4, bias=False), nn.BatchNorm2d(wide)
        self.b, self.head = conv(wide, 6, 1), Head(6)

    def forward(self, x):
        x = F.relu6(self.bn(self.a(x)))
        return self.head(F.relu6(self.b(F.relu6(self.bn_dw(self.dw(x))))))


class DepthwiseOnInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dw, self.b, self.head = conv(3, 6, groups=3), conv(6, 5, 1), Head(5)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.dw(x)))))


class DepthwiseChainResidual(nn.Module):
    """Multiplier 2 added to a plain convolution of the same width, then depthwise again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.dw, self.side, self.dw2, self.head = (
            conv(3, 4),
            conv(4, 8, groups=4),
            conv(3, 8),
            conv(8, 8, groups=8),
            Head(8),
        )

    def forward(self, x):
        return self.head(self.dw2(F.relu(self.dw(F.relu(self.a(x))) + self.side(x))))


class Grouped(nn.Module):
    """ResNeXt's block: a grouped convolution, group sizes in and out differ, between two dense ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.g, self.b = conv(3, 8, 1), nn.BatchNorm2d(8), conv(8, 12, groups=4), conv(12, 8, 1)
        self.shortcut, self.head = conv(3, 8, 1), Head(8)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.g(F.relu(self.bn(self.a(x)))))) + self.shortcut(x)))


class GroupedTwice(nn.Module):
    """Two grouped convolutions with group counts of which one divides the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.h, self.b, self.head = (
            conv(3, 8),
            conv(8, 8, groups=4),
            conv(8, 16, groups=2),
            conv(16, 6),
            Head(6),
        )

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.h(F.relu(self.g(F.relu(self.a(x)))))))))


class OneChannel(nn.Module):
    """Convolutions to and from one channel: not depthwise, though groups == in_channels == 1."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.squeeze, self.expand, self.head = conv(1, 4), conv(4, 1), conv(1, 6), Head(6)

    def forward(self, x):
        return self.head(F.relu(self.expand(F.relu(self.squeeze(F.relu(self.a(x)))))))


class SpatialMask(nn.Module):
    """A [B, 1, H, W] mask broadcast over all channels, made of their mean and maximum too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mask, self.attend, self.b, self.head = conv(3, 6), conv(3, 1), conv(2, 1, 7), conv(6, 4), Head(4)

    def forward(self, x):
        y = F.relu(self.a(x)) * self.mask(x).sigmoid()
        pooled = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
        return self.head(F.relu(self.b(y * self.attend(pooled).sigmoid())))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.bn, self.dw = conv(3, 6), nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), nn.BatchNorm2d(4), None
        self.grouped = nn.ConvTranspose2d(4, 8, 2, 2, groups=2)
        self.depthwise, self.b = nn.ConvTranspose2d(8, 8, 2, 2, groups=8), conv(8, 3)

    def forward(self, x):
        x = F.relu(self.bn(self.up(F.relu(self.a(x)))))
        return self.b(F.relu(self.depthwise(F.relu(self.grouped(x)))))


class Decoder(nn.Module):
    """A generator: linear, view to a literal size, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.fc = nn.Linear(4, 6), nn.Linear(6, 6 * 2 * 2)
        self.up, self.bn, self.out = (
            nn.ConvTranspose2d(6, 4, 4, 2, 1),
            nn.BatchNorm2d(4),
            nn.ConvTranspose2d(4, 1, 4, 2, 1),
        )

    def forward(self, z):
        x = F.relu(self.fc(F.relu(self.hidden(z)))).view(-1, 6, 2, 2)
        return torch.tanh(self.out(F.relu(self.bn(self.up(x)))))


class Spatial(nn.Module):
    """Convolution, pooling, flatten with spatial extent, linear; the size of the flatten may be a literal."""

    def __init__(self, literal: bool = False) -> None:
        super().__init__()
        self.literal = literal
        self.a, self.b, self.fc1, self.fc2 = conv(3, 4), conv(4, 6), nn.Linear(6 * 4, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        x = F.adaptive_avg_pool2d(F.relu(self.b(x)), 2)
        x = x.view(-1, 24) if self.literal else torch.flatten(x, 1)
        return self.fc2(F.relu(self.fc1(x)))


class Conv1d(nn.Module):
    """WaveNet's gated unit on sequences, with a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.dw = (
            nn.Conv1d(2, 6, 3, padding=1),
            nn.BatchNorm1d(6),
            nn.Conv1d(6, 6, 3, padding=2, dilation=2, groups=6),
        )
        self.filter, self.gate, self.res, self.fc = (
            nn.Conv1d(6, 4, 1),
            nn.Conv1d(6, 4, 1),
            nn.Conv1d(4, 6, 1),
            nn.Linear(6, 3),
        )

    def forward(self, x):
        x = F.relu(self.bn(self.a(x)))
        y = self.dw(x)
        return self.fc((x + self.res(torch.tanh(self.filter(y)) * self.gate(y).sigmoid())).amax(2))


class Conv3d(nn.Module):
    """A factorized video block: space, then time."""

    def __init__(self) -> None:
        super().__init__()
        self.space, self.bn = nn.Conv3d(2, 6, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(6)
        self.time, self.up = nn.Conv3d(6, 4, (3, 1, 1), padding=(1, 0, 0)), nn.ConvTranspose3d(4, 4, 2, 2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = F.max_pool3d(F.relu(self.bn(self.space(x))), 2)
        return self.fc(F.adaptive_avg_pool3d(F.relu(self.up(F.relu(self.time(x)))), 1).flatten(1))


class Functional(nn.Module):
    """Convolution, linear and batch norm as functions on raw parameters and buffers."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.kernel_bias = nn.Parameter(torch.zeros(6, 3, 3, 3)), nn.Parameter(torch.zeros(6))
        self.depthwise = nn.Parameter(torch.zeros(6, 1, 3, 3))
        self.gamma, self.beta = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(6))
        self.register_buffer("running_mean", torch.zeros(6))
        self.register_buffer("running_var", torch.ones(6))
        self.matrix, self.out = nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(3, 4))

    def forward(self, x):
        x = F.conv2d(x, self.kernel, self.kernel_bias, padding=1)
        x = F.relu(F.batch_norm(x, self.running_mean, self.running_var, self.gamma, self.beta, self.training))
        x = F.conv2d(x, self.depthwise, padding=1, groups=6).mean((2, 3))
        return F.linear(F.relu(F.linear(x, self.matrix)), self.out)


class DivisiveNorm(nn.Module):
    """GDN: channels over the root of a convolution of their squares, whose weight is bounded and squared itself."""

    def __init__(self, inverse: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.head, self.inverse = conv(3, 6), conv(6, 4), Head(4), inverse
        self.beta, self.gamma = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6, 6))
        self.register_buffer("bound", torch.full((1,), 0.1))

    def forward(self, x):
        x = self.a(x)
        gamma = torch.max(self.gamma, self.get_buffer("bound")) ** 2 - 1e-3
        norm = F.conv2d(x**2, gamma.reshape(x.shape[1], x.shape[1], 1, 1), self.beta.abs() + 0.1)
        return self.head(F.relu(self.b(x * (norm.sqrt() if self.inverse else norm.rsqrt()))))


class ChangedInPlace(nn.Module):
    """Weights that are copied and changed in place, entry by entry, before they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(F.linear(self.a(x), self.b.weight.clone().add_(0.5), self.b.bias))
        return self.out(F.linear(x, torch.stack([F.softplus(self.c.weight)]).squeeze(0), self.c.bias))


MODELS = {
    "divisive_norm": ZooModel(DivisiveNorm, (image(),), ("a", "gamma", "b"), together=together("a", "gamma")),
    "divisive_norm_inverse": ZooModel(lambda: DivisiveNorm(True), (image(),), ("a", "gamma", "b")),
    "changed_in_place": ZooModel(ChangedInPlace, (noise(2, 4),), ("a", "b"), {"out": OUTPUT}),
    "depthwise": ZooModel(Depthwise, (image(),), ("a", "dw", "b"), {"head.fc": OUTPUT}, together("a", "dw")),
    "depthwise_multiplier": ZooModel(lambda: Depthwise(2), (image(),), ("a", "dw", "b"), {"head.fc": OUTPUT}),
    "depthwise_on_input": ZooModel(DepthwiseOnInput, (image(),), ("b",)),
    "depthwise_residual": ZooModel(DepthwiseChainResidual, (image(),), ("a", "dw", "side", "dw2")),
    "grouped": ZooModel(Grouped, (image(),), ("a", "g", "b", "shortcut"), together=together("b", "shortcut")),
    "grouped_twice": ZooModel(GroupedTwice, (image(),), ("a", "g", "h", "b")),
    "one_channel": ZooModel(OneChannel, (image(1),), ("a", "squeeze", "expand")),
    "spatial_mask": ZooModel(SpatialMask, (image(),), ("a", "b")),
    "transposed": ZooModel(Transposed, (image(size=4),), ("a", "up", "grouped", "depthwise"), {"b": OUTPUT}),
    "linear_view_transposed": ZooModel(Decoder, (noise(2, 4),), ("hidden", "fc", "up"), {"out": OUTPUT}),
    "flatten_linear": ZooModel(Spatial, (image(),), ("a", "b", "fc1"), {"fc2": OUTPUT}),
    "flatten_linear_literal": ZooModel(lambda: Spatial(True), (image(),), ("a", "b", "fc1")),
    "conv1d": ZooModel(Conv1d, (noise(2, 2, 12),), ("a", "dw", "filter", "gate", "res")),
    "conv3d": ZooModel(Conv3d, (noise(2, 2, 4, 8, 8),), ("space", "time", "up")),
    "functional": ZooModel(Functional, (image(),), ("kernel", "depthwise", "matrix"), {"out": OUTPUT}),
}
