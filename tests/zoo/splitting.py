"""Ops that cut or reorder channels: chunks, cascades, shuffles, pixel shuffles, slices of space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.model import Head, ZooModel, conv, image, noise, together


class C2f(nn.Module):
    """Both halves of a chunk are kept, the second feeds a chain of bottlenecks, all of it is joined."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8, 1)
        self.layers = nn.ModuleList(nn.Sequential(conv(4, 4), nn.SiLU(), conv(4, 4)) for _ in range(2))
        self.b, self.head = conv(16, 6, 1), Head(6)

    def forward(self, x):
        y = list(self.a(x).chunk(2, 1))
        for layer in self.layers:
            y.append(y[-1] + layer(y[-1]))
        return self.head(F.silu(self.b(torch.cat(y, 1))))


class SplitSections(nn.Module):
    """A split with literal sections; each goes its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), conv(3, 4), conv(5, 4), Head(4)

    def forward(self, x):
        left, right = torch.split(F.relu(self.a(x)), [3, 5], dim=1)
        return self.head(F.relu(self.b(left)) + self.c(right))


class Res2Net(nn.Module):
    """Pieces of a literal size, each convolved after the one before was added."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 12, 1)
        self.layers = nn.ModuleList(conv(3, 3) for _ in range(3))
        self.b, self.shortcut, self.head = conv(12, 8, 1), conv(3, 8, 1), Head(8)

    def forward(self, x):
        pieces = torch.split(F.relu(self.a(x)), 3, 1)
        outs = [pieces[0]]
        for k, layer in enumerate(self.layers):
            outs.append(F.relu(layer(pieces[k + 1] if k == 0 else pieces[k + 1] + outs[-1])))
        return self.head(F.relu(self.b(torch.cat(outs, 1)) + self.shortcut(x)))


class SplitInHalf(nn.Module):
    """GhostNet: a primary half, a cheap half made of it, and an output cut to a literal size."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap, self.b, self.head = conv(3, 4, 1), conv(4, 4, groups=4), conv(7, 6), Head(6)

    def forward(self, x):
        primary = F.relu(self.primary(x))
        both = torch.cat([primary, F.relu(self.cheap(primary))], 1)
        return self.head(F.relu(self.b(both[:, :7])))


class GatedLinear(nn.Module):
    """One half gates the other: by glu, and by chunk and sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 12), conv(6, 8), Head(4)

    def forward(self, x):
        value, gate = torch.chunk(self.b(F.glu(self.a(x), 1)), 2, dim=1)
        return self.head(value * gate.sigmoid())


class ShuffleUnit(nn.Module):
    """A branch of half the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(4, 4, 1), conv(4, 4, groups=4), conv(4, 4, 1)

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        return torch.cat([left, F.relu(self.c(self.b(F.relu(self.a(right)))))], 1)


class ChannelShuffle(nn.Module):
    """ShuffleNet v2: units whose output is shuffled by view, transpose, view, or by the module."""

    def __init__(self, module: bool = False) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.d, self.head = (
            conv(3, 8),
            ShuffleUnit(),
            ShuffleUnit(),
            conv(8, 8, 1),
            Head(8),
        )
        self.shuffle = nn.ChannelShuffle(2) if module else lambda x: shuffle(x, 2)

    def forward(self, x):
        x = self.shuffle(self.one(F.relu(self.stem(x))))
        x = self.shuffle(self.two(x))
        return self.head(F.relu(self.d(x)))


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


class GroupedShuffle(nn.Module):
    """ShuffleNet v1: a shuffle between two grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 8), conv(8, 12, 1, groups=2), conv(12, 8, 1, groups=2), Head(8)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(x + self.b(shuffle(F.relu(self.a(x)), 2))))


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.up, self.c = conv(3, 6), conv(6, 16), nn.PixelShuffle(2), conv(4, 3)

    def forward(self, x):
        return self.c(F.relu(self.up(self.b(F.relu(self.a(x))))))


class NormsBehindPixelShuffle(nn.Module):
    """NAFNet's decoder: norms by hand over the channels that a shuffle makes, whose places other channels take in turn.

    What is left of such a mean, norm or largest is a map of places; no width makes it longer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.b, self.up = conv(3, 4), nn.Conv2d(4, 8, 2, 2), conv(8, 16), nn.PixelShuffle(2)
        self.scale, self.c = nn.Parameter(torch.rand(4)), conv(4, 6, 1)
        self.marks, self.head = conv(4, 6, 1), Head(6)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = x + self.up(self.b(F.relu(self.down(x))))
        centered = x - x.mean(1, keepdim=True)
        normed = centered / (centered.square().mean(1, keepdim=True) + 0.1).sqrt() * self.scale.view(1, -1, 1, 1)
        marked = self.marks(F.pixel_unshuffle(x.amax(1, keepdim=True), 2))
        x = self.c(F.relu(normed) + F.normalize(self.up(self.b(self.down(x))), dim=1))
        return self.head(F.max_pool2d(x, 2) + marked)


class PixelUnshuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.b, self.head = conv(3, 3), nn.PixelUnshuffle(2), conv(12, 6), Head(6)

    def forward(self, x):
        return self.head(F.relu(self.b(F.pixel_unshuffle(F.relu(self.a(x)), 2))) + 1)


class SpaceToDepth(nn.Module):
    """YOLO's focus layer and Swin's patch merging: slices of space joined as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 4), conv(16, 6), Head(6)

    def forward(self, x):
        x = F.relu(self.a(x))
        pieces = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.head(F.relu(self.b(torch.cat(pieces, 1))))


class Flipped(nn.Module):
    """Channels turned round, rolled, and picked by a list of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(6, 6), conv(3, 4), Head(4)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x)).flip(1)).roll(1, 1))
        return self.head(F.relu(self.c(x[:, [0, 2, 4]])))


class LearnedGroups(nn.Module):
    """CondenseNet: grouped convolutions of channels that a buffer names: before training, all the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.grouped = conv(3, 8), nn.BatchNorm2d(8), conv(8, 8, 1, groups=2, bias=False)
        self.pick, self.a, self.b = nn.BatchNorm2d(4), conv(4, 4), conv(3, 4)
        self.first: torch.Tensor
        self.some: torch.Tensor
        self.register_buffer("first", torch.zeros(8, dtype=torch.int64))
        self.register_buffer("some", torch.tensor([5, 1, 1, 14]))
        self.register_buffer("same", torch.tensor([2, 2, 2]))
        self.head = Head(24)

    def forward(self, x):
        stem = self.stem(x)
        x = torch.cat((stem, self.grouped(F.relu(self.norm(stem.index_select(1, self.first))))), 1)
        x = torch.cat((x, self.a(F.relu(self.pick(torch.index_select(x, 1, self.some)))), self.b(x[:, self.same])), 1)
        return self.head(F.relu(x))


class OnlyChannel(nn.Module):
    """Maps of one channel: a slice takes its copies too, an index would lose them, a cumulative sum add them up."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 1), conv(3, 1), conv(3, 1)
        self.d, self.e, self.f, self.head = conv(1, 4), conv(1, 4), conv(1, 4), Head(4)

    def forward(self, x):
        a, b, c = (torch.tanh(layer(x)) for layer in (self.a, self.b, self.c))
        return self.head(F.relu(self.d(a[:, :1]) + self.e(b[:, [0]]) + self.f(c.cumsum(1))))


class Unfold(nn.Module):
    """Involution's read: patches as channels, without overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.out = conv(3, 4), nn.Linear(16, 6), nn.Linear(6, 5)

    def forward(self, x):
        patches = F.unfold(F.relu(self.a(x)), 2, stride=2)
        return self.out(F.relu(self.fc(patches.transpose(1, 2))).mean(1))


UNITS = ("one.a", "one.b", "one.c", "two.a", "two.b", "two.c")
CHUNKED = ("layers.0.0", "layers.0.2", "layers.1.0", "layers.1.2")


class RowsAsSamples(nn.Module):
    """HDemucs: the rows of a map, here one, are samples of a residual convolution over time, gated by half of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 8, (4, 1)), nn.Conv1d(8, 6, 3, padding=1), nn.Conv1d(6, 16, 1)
        self.norm, self.scale = nn.GroupNorm(1, 16), nn.Parameter(torch.ones(8, 1))
        self.d, self.head = nn.Conv2d(8, 12, 1), Head(6)

    def forward(self, x):
        x = F.gelu(self.a(x))
        rows = x.permute(0, 2, 1, 3).reshape(-1, 8, 5)
        rows = rows + self.scale * F.glu(self.norm(self.c(F.gelu(self.b(rows)))), 1)
        return self.head(F.glu(self.d(rows.view(x.shape[0], 1, 8, 5).permute(0, 2, 1, 3)), 1))


MODELS = {
    "rows_as_samples": ZooModel(RowsAsSamples, (noise(1, 2, 4, 5),), ("a", "b", "c", "d")),
    "c2f": ZooModel(C2f, (image(),), ("a", *CHUNKED, "b")),
    "split_sections": ZooModel(SplitSections, (image(),), ("a", "b", "c"), together=together("b", "c")),
    "res2net": ZooModel(Res2Net, (image(),), ("a", "layers.0", "layers.1", "layers.2", "b", "shortcut")),
    "ghost": ZooModel(SplitInHalf, (image(),), ("primary", "cheap", "b")),
    "gated_linear": ZooModel(GatedLinear, (image(),), ("a", "b")),
    "channel_shuffle": ZooModel(ChannelShuffle, (image(),), ("stem", *UNITS, "d")),
    "channel_shuffle_module": ZooModel(lambda: ChannelShuffle(True), (image(),), ("stem", *UNITS, "d")),
    "grouped_shuffle": ZooModel(GroupedShuffle, (image(),), ("stem", "a", "b"), together=together("stem", "b")),
    "pixel_shuffle": ZooModel(PixelShuffle, (image(),), ("a", "b")),
    "norms_behind_pixel_shuffle": ZooModel(
        NormsBehindPixelShuffle, (image(),), ("a", "down", "b", "c", "marks"), together=together("c", "marks")
    ),
    "pixel_unshuffle": ZooModel(PixelUnshuffle, (image(),), ("a", "b")),
    "space_to_depth": ZooModel(SpaceToDepth, (image(),), ("a", "b")),
    "flipped": ZooModel(Flipped, (image(),), ("a", "c")),
    "learned_groups": ZooModel(LearnedGroups, (image(),), ("stem", "grouped", "a", "b")),
    "only_channel": ZooModel(
        OnlyChannel,
        (image(),),
        ("a", "d", "e", "f"),
        {"b": "some of its channels are missing", "c": "mixed by cumsum"},
    ),
    "unfold": ZooModel(Unfold, (image(),), ("a", "fc")),
}
