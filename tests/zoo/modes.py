"""What depends on the mode, on what is given, on what a value is: networks that one run of a tracer sees half of."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.model import OUTPUT, Head, ZooModel, conv, image, noise, together


class FunctionsOfTheMode(nn.Module):
    """Dropouts, a norm and attention as functions that are told the mode."""

    mean: torch.Tensor
    var: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x):
        x = F.dropout(self.a(x).relu(), p=0.5, training=self.training)
        x = F.alpha_dropout(self.b(x), 0.3, self.training)
        x = F.batch_norm(x.flatten(0, 1), self.mean, self.var.abs() + 0.5, training=self.training).view(x.shape)
        h = x.unflatten(-1, (2, -1)).transpose(1, 2)
        h = F.scaled_dot_product_attention(h, h, h, dropout_p=0.5 if self.training else 0.0)
        return self.out(F.dropout1d(h.transpose(1, 2).flatten(2), 0.2, self.training))


class AuxiliaryHead(nn.Module):
    """Another type of output in training, with layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.extra = conv(3, 6), conv(6, 4), conv(6, 5)
        self.norm, self.head, self.aux = nn.BatchNorm2d(5), Head(4), Head(5)

    def forward(self, x):
        x = F.relu(self.a(x))
        y = self.head(F.relu(self.b(x)))
        if self.training:
            return {"out": y, "aux": self.aux(F.relu(self.norm(self.extra(x))))}
        return y


class OneWayEach(nn.Module):
    """A branch for each mode, each with a norm, and what only training adds in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.slow, self.fast, self.head = conv(3, 6), conv(6, 6), conv(6, 6, 1), Head(6)
        self.first, self.second = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x):
        x = F.relu(self.a(x))
        y = self.second(self.slow(x)) if self.training else self.first(self.fast(x))
        if self.training:
            y[:, :, 0] += torch.rand_like(y[:, :, 0])
        return self.head(F.relu(y))


class NormOfEachMode(nn.Module):
    """A norm by two functions, as exported graphs have it: the one of training moves the statistics that both share."""

    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), Head(4)
        self.scale, self.shift = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("variance", torch.ones(6))

    def forward(self, x):
        x, variance = self.a(x), self.variance.abs() + 0.5
        if self.training:
            x = torch.batch_norm(x, self.scale, self.shift, self.mean, variance, True, 0.5, 1e-5, False)
        else:
            x = F.batch_norm(x, self.mean, variance, self.scale, self.shift)
        return self.head(F.relu(self.b(F.relu(x))))


class UnreadNorm(nn.Module):
    """A norm whose result nobody reads: training moves its statistics all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), Head(4)
        self.unread, self.measured = nn.BatchNorm2d(6), nn.BatchNorm2d(4)

    def forward(self, x):
        x = F.relu(self.a(x))
        self.unread(x)
        y = F.relu(self.b(x))
        if self.training:
            self.measured(y)
        return self.head(y)


class Frozen(nn.Module):
    """A norm that stays as it is in training, by the model's own ``train``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.moving, self.head = (
            conv(3, 6),
            nn.BatchNorm2d(6),
            conv(6, 4),
            nn.BatchNorm2d(4),
            Head(4),
        )

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.head(F.relu(self.moving(self.b(F.relu(self.norm(self.a(x)))))))


class AsksForTensors(nn.Module):
    """An optional skip connection that is used where it is a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.other, self.head = conv(3, 6), conv(6, 6), conv(6, 4), Head(6)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = self.b(x) if isinstance(x, torch.Tensor) else self.other(x)
        return self.head(F.relu(x) if torch.is_tensor(x) else x)


class OptionalArguments(nn.Module):
    """Arguments that are left out keep their defaults, by position, by keyword and loose."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.adapt, self.head = conv(3, 6), conv(6, 6), conv(6, 6, 1), Head(6)

    def forward(self, x, scale=None, *, domain=None, **more):
        x = F.relu(self.a(x))
        x = x if scale is None else x * scale
        x = x if domain is None else self.adapt(x)
        return self.head(F.relu(self.b(x)) if not more else x)


class Caches(nn.Module):
    """What ``forward`` keeps on the model: a mean in the right type, a grid for the last size, a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), Head(4)
        self.mean = torch.full((1, 3, 1, 1), 0.5)
        self.seen: list[torch.Tensor] = []
        self.known: dict[str, torch.Size] = {}

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        x = F.relu(self.a(x - self.mean))
        self.seen.append(x)
        self.known["last"] = x.shape
        return self.head(F.relu(self.b(x)))


class OwnStatistics(nn.Module):
    """A norm of the user's own, whose mean moves in place and without gradients, and a count of its steps."""

    mean: torch.Tensor
    steps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), Head(4)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        x = F.relu(self.a(x))
        if self.training:
            self.steps += 1
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean((0, 2, 3)), alpha=0.1)
        x = x - self.mean[:, None, None]
        return self.head(F.relu(self.b(x)) / (1 + self.steps))


class NamedInputs(nn.Module):
    """A dict of tensors, and a nested one, taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.v, self.b, self.head = conv(3, 6), nn.Linear(5, 6), conv(6, 4), Head(4)

    def forward(self, batch):
        total = sum(self.v(value) for _, value in sorted(batch["vectors"].items()))
        x = F.relu(self.a(batch["image"])) * total[:, :, None, None]
        return self.head(F.relu(self.b(x)))


class RandomSlopes(nn.Module):
    """A leaky ReLU whose slope is drawn in training, as a module and as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b, self.head = conv(3, 6), nn.RReLU(), conv(6, 4), Head(4)

    def forward(self, x):
        return self.head(F.rrelu(self.b(self.act(self.a(x))), training=self.training))


class Branches(nn.Module):
    """A chain of kernels and a skip in training; in evaluation one kernel that they are merged into at every call."""

    def __init__(self, inputs: int, outputs: int, copied: bool) -> None:
        super().__init__()
        self.copied = copied
        self.skip: Any = nn.Conv2d(inputs, outputs, 1)
        self.a: Any = nn.Conv2d(inputs, 5, 1)
        self.b: Any = nn.Conv2d(5, outputs, 3)
        self.merged: Any = conv(inputs, outputs)

    def forward(self, x):
        if self.training:
            return self.b(self.a(F.pad(x, (1, 1, 1, 1)))) + self.skip(x)
        a, b, skip = (layer.weight.data for layer in (self.a, self.b, self.skip))
        turned = F.conv2d(a.permute(1, 0, 2, 3), b.flip(2, 3), padding=2)
        weight = turned.flip(2, 3).permute(1, 0, 2, 3) + F.pad(skip, [1, 1, 1, 1])
        bias = (b * self.a.bias.data.reshape(1, -1, 1, 1)).sum((1, 2, 3)) + self.b.bias.data + self.skip.bias.data
        if self.copied:
            with torch.no_grad():
                self.merged.weight.copy_(weight)
                self.merged.bias.data.copy_(bias)
        else:
            self.merged.weight.data = weight.contiguous()
            self.merged.bias.data = bias
        return self.merged(x)


class MergedBranches(nn.Module):
    def __init__(self, copied: bool = False) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = conv(3, 4), Branches(4, 6, copied), Branches(6, 4, copied), Head(4)

    def forward(self, x):
        return self.head(F.relu(self.two(F.relu(self.one(self.stem(x))))))


_MERGED = ("stem", "one.a", "one.b", "two.a", "two.b")
MODELS = {
    "merged_branches": ZooModel(MergedBranches, (image(),), _MERGED, {}, together("one.b", "one.skip")),
    "merged_by_copy": ZooModel(lambda: MergedBranches(copied=True), (image(),), _MERGED),
    "random_slopes": ZooModel(RandomSlopes, (image(),), ("a", "b"), {"head.fc": OUTPUT}),
    "functions_of_the_mode": ZooModel(FunctionsOfTheMode, (noise(2, 4, 6),), ("a", "b"), {"out": OUTPUT}),
    "auxiliary_head": ZooModel(AuxiliaryHead, (image(),), ("a", "b", "extra"), {"head.fc": OUTPUT, "aux.fc": OUTPUT}),
    "one_way_each": ZooModel(
        OneWayEach, (image(),), ("a", "slow", "fast"), {"head.fc": OUTPUT}, together("slow", "fast")
    ),
    "norm_of_each_mode": ZooModel(NormOfEachMode, (image(),), ("a", "b"), {"head.fc": OUTPUT}),
    "unread_norm": ZooModel(UnreadNorm, (image(),), ("a", "b"), {"head.fc": OUTPUT}),
    "frozen_norm": ZooModel(Frozen, (image(),), ("a", "b"), {"head.fc": OUTPUT}),
    "asks_for_tensors": ZooModel(AsksForTensors, (image(),), ("a", "b"), {"head.fc": OUTPUT}),
    "optional_arguments": ZooModel(OptionalArguments, (image(),), ("a", "b"), {"head.fc": OUTPUT}),
    "caches": ZooModel(Caches, (image(),), ("a", "b"), {"head.fc": OUTPUT}),
    "own_statistics": ZooModel(OwnStatistics, (image(),), ("a", "b"), {"head.fc": OUTPUT}),
    "named_inputs": ZooModel(
        NamedInputs,
        ({"image": image(), "vectors": {"s": noise(2, 5), "t": noise(2, 5, seed=1)}},),
        ("a", "b"),
        {"head.fc": OUTPUT},
        together("a", "v"),
    ),
}
