"""Operations on images that join, cut and reorder channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.generator.images import divisor
from tests.generator.program import MOST_CHANNELS, Kind, Op, Shape, Step
from tests.zoo.model import noise


def same(a: Shape, b: Shape) -> bool:
    return a == b


def same_place(a: Shape, b: Shape) -> bool:
    return len(b) == 4 and a[2:] == b[2:]


def same_or_one(a: Shape, b: Shape) -> bool:
    return len(b) == 4 and a[2:] == b[2:] and b[1] in (1, a[1])


def fewer(a: Shape, b: Shape) -> bool:
    """Fewer channels at the same place, or at twice the resolution."""
    return len(b) == 4 and b[1] < a[1] and b[2] in (a[2], 2 * a[2])


def half(a: Shape, b: Shape) -> bool:
    return len(b) == 4 and 2 * b[2] == a[2]


def add(op: Op, shape: Shape, other: Shape) -> nn.Module:
    ways = (
        lambda s, x, y: x + y,
        lambda s, x, y: F.relu(x + y),
        lambda s, x, y: torch.maximum(x, y),
        lambda s, x, y: x * 0.5 - y,
    )
    return Step(ways[op.variant])


def multiply(op: Op, shape: Shape, other: Shape) -> nn.Module:
    ways = (
        lambda s, x, y: x * y.sigmoid(),
        lambda s, x, y: torch.where(y > 0.1, x, 0.5 * x),
        lambda s, x, y: torch.lerp(x, y, 0.25),
        lambda s, x, y: torch.stack([x, y], 0).sum(0) if op.size % 2 else torch.stack([x, y], 2).amax(2),
    )
    return Step(ways[op.variant])


def project(op: Op, shape: Shape, other: Shape) -> nn.Module:
    """A shortcut that is convolved to fit."""
    return Step(lambda s, x, y: F.relu(x + s.conv(y)), conv=nn.Conv2d(other[1], shape[1], 1))


def option_a(op: Op, shape: Shape, other: Shape) -> nn.Module:
    """A shortcut that is padded with zeros to fit."""
    missing = shape[1] - other[1]
    before = (missing // 2, 0, missing, missing // 2)[op.variant]
    stride = other[2] // shape[2]
    return Step(lambda s, x, y: x + F.pad(y[:, :, ::stride, ::stride], (0, 0, 0, 0, before, missing - before)))


def concatenate(op: Op, shape: Shape, other: Shape) -> nn.Module | None:
    ways = (
        (lambda s, x, y: torch.cat([x, y], 1), shape[1] + other[1]),
        (lambda s, x, y: torch.cat((y, x), dim=1), shape[1] + other[1]),
        (lambda s, x, y: torch.cat([x, x], 1), 2 * shape[1]),
        (lambda s, x, y: torch.cat([x, y, x], -3), 2 * shape[1] + other[1]),
    )
    way, width = ways[op.variant]
    return Step(way) if width <= MOST_CHANNELS else None


def merge(op: Op, shape: Shape, other: Shape) -> nn.Module | None:
    """A pyramid's or a U-Net's way up: the smaller map is enlarged and joined, or convolved and added."""
    if op.variant % 2:
        return Step(lambda s, x, y: x + F.interpolate(s.conv(y), scale_factor=2), conv=nn.Conv2d(other[1], shape[1], 1))
    if shape[1] + other[1] > MOST_CHANNELS:
        return None
    return Step(lambda s, x, y: torch.cat([x, F.interpolate(y, size=x.shape[-2:], mode="bilinear")], 1))


def dense(op: Op, shape: Shape) -> nn.Module | None:
    """DenseNet's layer: what is new is joined to what was there."""
    if shape[1] + 4 > MOST_CHANNELS:
        return None
    return Step(
        lambda s, x: torch.cat([x, s.conv(F.relu(s.norm(x)))], 1),
        norm=nn.BatchNorm2d(shape[1]),
        conv=nn.Conv2d(shape[1], 4, 3, padding=1),
    )


def chunk(op: Op, shape: Shape) -> nn.Module | None:
    parts = 2 if op.size % 2 or shape[1] % 4 else 4
    if shape[1] % parts:
        return None
    if op.variant == 0:
        return Step(lambda s, x: tuple(x.chunk(parts, 1)[k] for k in range(parts)))
    if op.variant == 1:
        width = shape[1] // 2
        return Step(c2f, conv=nn.Conv2d(width, width, 3, padding=1)) if 3 * width <= MOST_CHANNELS else None
    if op.variant == 2:
        return Step(lambda s, x: F.glu(x, 1))
    return Step(lambda s, x: x.chunk(2, dim=1)[0] * x.chunk(2, dim=1)[1].sigmoid())


def c2f(s: Any, x: torch.Tensor) -> torch.Tensor:
    a, b = torch.chunk(x, 2, 1)
    return torch.cat([a, b, b + s.conv(b)], 1)


def split(op: Op, shape: Shape) -> nn.Module | None:
    channels = shape[1]
    if channels < 3:
        return None
    cut = 1 + op.size % (channels - 1)
    if op.variant == 0:
        return Step(lambda s, x: tuple(torch.split(x, [cut, channels - cut], 1)[k] for k in range(2)))
    if op.variant == 1:
        return Step(lambda s, x: (x[:, :cut], x[:, cut:]))
    if op.variant == 2:
        return Step(lambda s, x: torch.cat([x[:, cut:], x[:, :cut]], 1))
    if channels % 3:
        return None
    width = channels // 3
    return Step(res2net, a=nn.Conv2d(width, width, 3, padding=1), b=nn.Conv2d(width, width, 3, padding=1), width=width)


def res2net(s: Any, x: torch.Tensor) -> torch.Tensor:
    pieces = torch.split(x, s.width, 1)
    second = s.a(pieces[1])
    return torch.cat([pieces[0], second, s.b(pieces[2] + second)], 1)


def reorder(op: Op, shape: Shape) -> nn.Module | None:
    channels = shape[1]
    if op.variant == 0:
        return Step(lambda s, x: x.flip(1))
    if op.variant == 1:
        return Step(lambda s, x: torch.roll(x, 1 + op.size % 3, 1))
    if op.variant == 2:
        return Step(lambda s, x: x[:, ::2])
    picked = [(3 * k + 1) % channels for k in range(min(4, channels))]
    return Step(lambda s, x: x[:, picked])


def shuffle(op: Op, shape: Shape) -> nn.Module | None:
    groups = divisor(op, shape[1])
    if op.variant == 0:
        return Step(lambda s, x: s.shuffle(x), shuffle=nn.ChannelShuffle(groups))
    batch, channels, height, width = shape
    per = channels // groups
    if op.variant == 1:
        return Step(
            lambda s, x: (
                x.view(x.size(0), groups, x.size(1) // groups, x.size(2), x.size(3))
                .transpose(1, 2)
                .contiguous()
                .view(x.size(0), -1, x.size(2), x.size(3))
            )
        )
    if op.variant == 2:
        return Step(lambda s, x: x.reshape(batch, groups, per, height, width).permute(0, 2, 1, 3, 4).reshape(shape))
    return Step(lambda s, x: x.unflatten(1, (groups, per)).transpose(1, 2).flatten(1, 2))


def pixels(op: Op, shape: Shape) -> nn.Module | None:
    """Space to depth and back."""
    if op.variant == 0:
        return Step(lambda s, x: s.up(x), up=nn.PixelShuffle(2)) if shape[1] % 4 == 0 else None
    if shape[2] < 4 or 4 * shape[1] > MOST_CHANNELS:
        return None
    if op.variant == 1:
        return Step(lambda s, x: F.pixel_unshuffle(x, 2))
    if op.variant == 2:
        return Step(
            lambda s, x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        )
    _batch, channels, side, _ = shape
    return Step(
        lambda s, x: (
            x.view(-1, channels, side // 2, 2, side // 2, 2)
            .permute(0, 3, 5, 1, 2, 4)
            .reshape(-1, 4 * channels, side // 2, side // 2)
        )
    )


def fold(op: Op, shape: Shape) -> nn.Module | None:
    """Views and permutations that come back to where they were, or nearly."""
    batch, channels, height, width = shape
    if op.variant == 0:
        return Step(lambda s, x: x.flatten(2).view(batch, channels, width, height).transpose(2, 3))
    if op.variant == 1:
        return Step(
            lambda s, x: x.permute(0, 2, 3, 1).reshape(-1, channels).view(batch, height, width, -1).permute(0, 3, 1, 2)
        )
    if op.variant == 2 and channels % 2 == 0:
        return Step(
            lambda s, x: x.view(batch * 2, channels // 2, height, width).mul(0.5).view(batch, channels, height, width)
        )
    return Step(lambda s, x: x.unsqueeze(2).squeeze(2).transpose(-1, -2))


def groups_apart(op: Op, shape: Shape) -> nn.Module | None:
    """Statistics or a choice over groups of channels."""
    channels = shape[1]
    groups = divisor(op, channels)
    if op.variant == 0:
        return Step(lambda s, x: x.unflatten(1, (groups, -1)).amax(2))
    if op.variant == 1:
        return Step(lambda s, x: x.reshape(2, groups, channels // groups, x.shape[2], x.shape[3]).sum(1))
    if op.variant == 2:
        return Step(lambda s, x: x * x.mean((2, 3), keepdim=True).softmax(1))
    return Step(lambda s, x: x * s.scale.repeat_interleave(channels // groups).view(1, -1, 1, 1), scale=noise(groups))


ORDER = {
    "add": Kind("image", add, same_or_one),
    "multiply": Kind("image", multiply, same),
    "project": Kind("image", project, same_place),
    "option_a": Kind("image", option_a, fewer),
    "concatenate": Kind("image", concatenate, same_place),
    "merge": Kind("image", merge, half),
    **{
        name: Kind("image", make)
        for name, make in {
            "dense": dense,
            "chunk": chunk,
            "split": split,
            "reorder": reorder,
            "shuffle": shuffle,
            "pixels": pixels,
            "fold": fold,
            "groups_apart": groups_apart,
        }.items()
    },
}
