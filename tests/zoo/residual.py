"""Residual networks: what an addition ties, and what it pins."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.model import OUTPUT, Head, ZooModel, conv, image, together


class ResidualAdd(nn.Module):
    """Two basic blocks; the second has a projection on its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = conv(3, 6, bias=False), nn.BatchNorm2d(6)
        self.a, self.bn_a, self.b = conv(6, 5, bias=False), nn.BatchNorm2d(5), conv(5, 6)
        self.c, self.d, self.shortcut = conv(6, 4, stride=2), conv(4, 8), nn.Conv2d(6, 8, 1, stride=2)
        self.head = Head(8)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.b(F.relu(self.bn_a(self.a(x)))))
        x = F.relu(self.d(F.relu(self.c(x))) + self.shortcut(x))
        return self.head(x)


class AddWithInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 3), Head(3)

    def forward(self, x):
        return self.head(x + self.b(F.relu(self.a(x))))


class AddWithOutput(nn.Module):
    """The trunk is an output of the model: nothing that is added to it can change."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 6), conv(6, 4), conv(4, 6)

    def forward(self, x):
        x = self.stem(x)
        return x + self.b(F.relu(self.a(x)))


class OptionA(nn.Module):
    """Shortcuts padded with zero channels at both sides, as in ResNets for CIFAR."""

    def __init__(self, pad: tuple[int, int] = (2, 2)) -> None:
        super().__init__()
        self.pad = pad
        self.stem, self.a, self.b = conv(3, 4), conv(4, 6, stride=2), conv(6, 4 + sum(pad))
        self.c, self.head = conv(4 + sum(pad), 5), Head(5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, *self.pad))
        x = F.relu(self.b(F.relu(self.a(x))) + short)
        return self.head(F.relu(self.c(x)))


class OptionAByCat(nn.Module):
    """The zero channels joined by ``cat``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = conv(3, 4), conv(4, 8), Head(8)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.a(x) + torch.cat([x, torch.zeros_like(x)], 1)))


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.a, self.bn_b, self.b = (
            conv(3, 6),
            nn.BatchNorm2d(6),
            conv(6, 4),
            nn.BatchNorm2d(4),
            conv(4, 6),
        )
        self.head = Head(6)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.b(F.relu(self.bn_b(self.a(F.relu(self.bn(x)))))))


class StochasticDepth(nn.Module):
    """A branch dropped per sample in training mode, scaled by what survives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.drop, self.head = conv(3, 6), conv(6, 4), conv(4, 6), DropPath(0.3), Head(6)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(x + self.drop(self.b(F.relu(self.a(x)))))


class DropPath(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class Dropouts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 6), conv(6, 6), nn.Linear(6, 5)
        self.drop, self.drop2d, self.alpha = nn.Dropout(0.2), nn.Dropout2d(0.2), nn.AlphaDropout(0.1)

    def forward(self, x):
        x = self.alpha(F.selu(self.a(x)))
        x = self.drop2d(F.relu(self.b(x)) + x).mean((2, 3))
        return self.fc(F.dropout(self.drop(x), 0.1, training=self.training))


class BranchesSubtractedAndMaximized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(3, 6), conv(3, 6), Head(6)

    def forward(self, x):
        return self.head(torch.maximum(self.a(x) - self.b(x), torch.where(x[:, :1] > 0, self.c(x), 0.0)))


class AddInPart(nn.Module):
    """MViTv2's residual pooling: added to all pixels but the first row, in place; the last row is overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 6), conv(6, 6), conv(6, 6), Head(6)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.a(x) * 1.0
        y[:, :, 1:] += self.b(x)[:, :, 1:]
        y[:, :, 7:] = x[:, :, 7:]
        return self.head(y)


MODELS = {
    "add_in_part": ZooModel(AddInPart, (image(),), ("stem", "a", "b"), together=together("stem", "a", "b")),
    "residual_add": ZooModel(
        ResidualAdd,
        (image(),),
        ("stem", "a", "b", "c", "d", "shortcut"),
        {"head.fc": OUTPUT},
        (*together("stem", "b"), *together("d", "shortcut")),
    ),
    "add_with_input": ZooModel(AddWithInput, (image(),), ("a",), {"b": "input", "head.fc": OUTPUT}),
    "add_with_output": ZooModel(
        AddWithOutput, (image(),), ("a",), {"stem": OUTPUT, "b": OUTPUT}, together("stem", "b")
    ),
    "option_a": ZooModel(OptionA, (image(),), ("stem", "a", "b", "c"), together=together("stem", "b")),
    "option_a_behind": ZooModel(lambda: OptionA((0, 4)), (image(),), ("stem", "a", "b", "c")),
    "option_a_by_cat": ZooModel(OptionAByCat, (image(),), ("stem", "a"), together=together("stem", "a")),
    "pre_activation": ZooModel(PreActivation, (image(),), ("stem", "a", "b"), together=together("stem", "b")),
    "stochastic_depth": ZooModel(StochasticDepth, (image(),), ("stem", "a", "b"), together=together("stem", "b")),
    "dropouts": ZooModel(Dropouts, (image(),), ("a", "b"), together=together("a", "b")),
    "subtract_maximum_where": ZooModel(
        BranchesSubtractedAndMaximized, (image(),), ("a", "b", "c"), together=together("a", "b", "c")
    ),
}
