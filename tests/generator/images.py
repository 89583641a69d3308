"""Operations on images [B, C, H, W] that convolve, normalize, gate and resample."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tests.generator.program import MOST_CHANNELS, Kind, Op, Shape, Step
from tests.zoo.model import noise


def divisor(op: Op, channels: int) -> int:
    """Choose a divisor of the channels, at least 2 where there is one."""
    divisors = [d for d in range(2, channels + 1) if channels % d == 0] or [1]
    return divisors[op.size % len(divisors)]


def convolution(op: Op, shape: Shape) -> nn.Module:
    kernel = (3, 1)[op.variant % 2]
    conv = nn.Conv2d(shape[1], op.channels, kernel, padding=kernel // 2, bias=op.variant < 2)
    return Step(lambda s, x: s.conv(x), conv=conv)


def bottleneck(op: Op, shape: Shape) -> nn.Module:
    """The residual block of every network: it keeps its channels."""
    inner = op.channels
    a, bn, b = (
        nn.Conv2d(shape[1], inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.Conv2d(inner, shape[1], 3, padding=1),
    )
    return Step(lambda s, x: x + s.b(F.relu(s.bn(s.a(x)))), a=a, bn=bn, b=b)


def inverted(op: Op, shape: Shape) -> nn.Module:
    """MobileNet's block."""
    inner = 2 * shape[1]
    if inner > MOST_CHANNELS:
        return bottleneck(op, shape)
    depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
    return Step(
        lambda s, x: x + s.b(F.relu6(s.bn(s.depthwise(F.relu6(s.a(x)))))),
        a=nn.Conv2d(shape[1], inner, 1),
        depthwise=depthwise,
        bn=nn.BatchNorm2d(inner),
        b=nn.Conv2d(inner, shape[1], 1),
    )


def strided(op: Op, shape: Shape) -> nn.Module | None:
    if shape[2] < 4:
        return None
    return Step(lambda s, x: s.conv(x), conv=nn.Conv2d(shape[1], op.channels, 3, 2, 1))


def depthwise(op: Op, shape: Shape) -> nn.Module | None:
    out = shape[1] * (1, 2, 1, 3)[op.variant % 4]
    if out > MOST_CHANNELS:
        return None
    return Step(lambda s, x: s.conv(x), conv=nn.Conv2d(shape[1], out, 3, padding=1, groups=shape[1]))


def grouped(op: Op, shape: Shape) -> nn.Module | None:
    groups = divisor(op, shape[1])
    out = shape[1] if op.variant % 2 else groups * (1 + op.variant)
    return Step(lambda s, x: s.conv(x), conv=nn.Conv2d(shape[1], out, 1, groups=groups))


def functional(op: Op, shape: Shape) -> nn.Module:
    """A convolution on raw parameters; standardized, or summed with einsum."""
    weight, bias = noise(op.channels, shape[1], 1, 1), noise(op.channels)
    if op.variant == 0:
        return Step(lambda s, x: F.conv2d(x, s.weight, s.bias), weight=weight, bias=bias)
    if op.variant == 1:
        return Step(lambda s, x: F.conv2d(x, standardized(s.weight), s.bias), weight=weight, bias=bias)
    if op.variant == 2:
        return Step(lambda s, x: torch.einsum("bchw,cd->bdhw", x, s.table), table=weight[:, :, 0, 0].t())
    return Step(lambda s, x: s.conv(x), conv=weight_norm(nn.Conv2d(shape[1], op.channels, 1)))


def standardized(weight: torch.Tensor) -> torch.Tensor:
    mean = weight.mean((1, 2, 3), keepdim=True)
    return (weight - mean) * torch.rsqrt((weight - mean).square().mean((1, 2, 3), keepdim=True) + 1e-5)


def transposed(op: Op, shape: Shape) -> nn.Module:
    groups = divisor(op, shape[1]) if op.variant % 2 else 1
    out = groups * 2 if op.variant % 2 else op.channels
    return Step(lambda s, x: s.conv(x), conv=nn.ConvTranspose2d(shape[1], out, 2, 2, groups=groups))


def norm(op: Op, shape: Shape) -> nn.Module:
    channels = shape[1]
    if op.variant == 1:
        return Step(lambda s, x: s.norm(x), norm=nn.GroupNorm(divisor(op, channels), channels))
    if op.variant == 2 and shape[2] > 2:
        return Step(lambda s, x: s.norm(x), norm=nn.InstanceNorm2d(channels, affine=True))
    if op.variant == 3:
        return Step(lambda s, x: s.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(channels))
    return Step(lambda s, x: s.norm(x), norm=nn.BatchNorm2d(channels))


def norm_by_hand(op: Op, shape: Shape) -> nn.Module:
    """RMS, layer norm over channels from its formula, unit length, centring."""
    scale, shift = noise(1, shape[1], 1, 1), noise(shape[1])
    if op.variant == 0:
        return Step(lambda s, x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-3) * s.scale, scale=scale)
    if op.variant == 1:
        return Step(by_formula, scale=scale[0, :, 0, 0], shift=shift)
    if op.variant == 2:
        return Step(lambda s, x: F.normalize(x, dim=1, eps=1e-3))
    return Step(lambda s, x: x - x.mean(1, keepdim=True) + s.scale, scale=scale)


def by_formula(s: Any, x: torch.Tensor) -> torch.Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    unit: torch.Tensor = s.scale[:, None, None] * ((x - mean) / torch.sqrt(variance + 1e-3))
    return torch.add(unit, s.shift[:, None, None])


ACTIVATIONS = (F.relu, F.silu, F.gelu, F.hardswish, torch.tanh, F.elu, F.mish, torch.sigmoid)


def activation(op: Op, shape: Shape) -> nn.Module:
    number = 4 * (op.size % 2) + op.variant
    if op.size == 3:
        return Step(lambda s, x: s.act(x), act=nn.PReLU(shape[1] if op.variant % 2 else 1))
    return Step(lambda s, x: ACTIVATIONS[number % 8](x))


def layer_scale(op: Op, shape: Shape) -> nn.Module:
    """Per-channel parameters: a scale, a scale and a shift, a buffer, one number."""
    if op.variant == 0:
        return Step(lambda s, x: x * s.gamma, gamma=noise(shape[1], 1, 1))
    if op.variant == 1:
        return Step(
            lambda s, x: x * s.gamma.view(1, -1, 1, 1) + s.beta[:, None, None],
            gamma=noise(shape[1]),
            beta=noise(shape[1]),
        )
    if op.variant == 2:
        step = Step(lambda s, x: x - s.mean[None, :, None, None])
        step.register_buffer("mean", noise(shape[1]))
        return step
    return Step(lambda s, x: s.gain * x + s.bias, gain=noise(1), bias=noise(1, 1, 1, 1))


def squeeze_excite(op: Op, shape: Shape) -> nn.Module:
    channels, inner = shape[1], op.channels
    if op.variant == 0:
        return Step(
            lambda s, x: x * torch.sigmoid(s.b(F.relu(s.a(F.adaptive_avg_pool2d(x, 1))))),
            a=nn.Conv2d(channels, inner, 1),
            b=nn.Conv2d(inner, channels, 1),
        )
    a, b = nn.Linear(channels, inner), nn.Linear(inner, channels)
    if op.variant == 1:
        return Step(lambda s, x: x * squeeze(s, x).view(x.size(0), x.size(1), 1, 1), a=a, b=b)
    if op.variant == 2:
        return Step(lambda s, x: x * squeeze(s, x).view(2, channels, 1, 1).expand_as(x), a=a, b=b)
    # ECA: a convolution along the channels, which no width can keep.
    return Step(
        lambda s, x: x * s.conv(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid(),
        conv=nn.Conv1d(1, 1, 3, padding=1),
    )


def squeeze(s: Any, x: torch.Tensor) -> torch.Tensor:
    pooled: torch.Tensor = s.b(F.relu(s.a(x.mean((2, 3)))))
    return pooled.sigmoid()


def mask(op: Op, shape: Shape) -> nn.Module:
    """Maps of one channel, broadcast over all."""
    if op.variant == 0:
        return Step(lambda s, x: x * s.conv(x).sigmoid(), conv=nn.Conv2d(shape[1], 1, 1))
    if op.variant == 1:
        return Step(
            lambda s, x: x * s.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid(),
            conv=nn.Conv2d(2, 1, 3, padding=1),
        )
    if op.variant == 2:
        return Step(lambda s, x: s.conv(x), conv=nn.Conv2d(shape[1], 1, 3, padding=1))
    return Step(lambda s, x: x / (x.abs().sum(1, keepdim=True) + 1.0))


def pool(op: Op, shape: Shape) -> nn.Module | None:
    if shape[2] < 4:
        return Step(lambda s, x: F.max_pool2d(x, 3, 1, 1))
    pools = (
        lambda s, x: F.max_pool2d(x, 2),
        lambda s, x: F.avg_pool2d(x, 3, 2, 1),
        lambda s, x: F.interpolate(F.adaptive_avg_pool2d(x, 2), scale_factor=2),
        lambda s, x: F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 2),
    )
    return Step(pools[op.variant])


def upsample(op: Op, shape: Shape) -> nn.Module:
    if op.variant == 0:
        return Step(lambda s, x: F.interpolate(x, scale_factor=2, mode="nearest"))
    if op.variant == 1:
        return Step(lambda s, x: s.up(x), up=nn.Upsample(scale_factor=2, mode="bilinear"))
    if op.variant == 2:
        return Step(lambda s, x: F.interpolate(x, (8, 8), mode="bilinear", align_corners=False))
    return Step(lambda s, x: F.interpolate(x, size=(x.shape[2] * 2, x.shape[3] * 2), mode="bicubic"))


def dropout(op: Op, shape: Shape) -> nn.Module:
    """What does nothing in eval mode: dropout, stochastic depth, identity."""
    if op.variant == 0:
        return Step(lambda s, x: s.drop(x), drop=nn.Dropout2d(0.5))
    if op.variant == 1:
        return Step(lambda s, x: F.dropout(x, 0.2, s.training))
    if op.variant == 2:
        return Step(lambda s, x: x.clone().contiguous())
    return Step(lambda s, x: F.relu(x + 0, inplace=True))


IMAGES = {
    name: Kind("image", make)
    for name, make in {
        "conv": convolution,
        "bottleneck": bottleneck,
        "inverted": inverted,
        "strided": strided,
        "depthwise": depthwise,
        "grouped": grouped,
        "functional": functional,
        "transposed": transposed,
        "norm": norm,
        "norm_by_hand": norm_by_hand,
        "activation": activation,
        "layer_scale": layer_scale,
        "squeeze_excite": squeeze_excite,
        "mask": mask,
        "pool": pool,
        "upsample": upsample,
        "dropout": dropout,
    }.items()
}
