"""Operations on tokens [B, N, C] and vectors [B, C], and the ways between them and images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.generator.images import divisor
from tests.generator.order import same
from tests.generator.program import MOST_CHANNELS, Kind, Op, Shape, Step
from tests.zoo.model import noise


def to_tokens(op: Op, shape: Shape) -> nn.Module | None:
    batch, channels, height, width = shape
    if height > 4:
        return Step(lambda s, x: s.patch(x).flatten(2).transpose(1, 2), patch=nn.Conv2d(channels, op.channels, 4, 4))
    if op.variant % 2:
        return Step(lambda s, x: x.permute(0, 2, 3, 1).reshape(batch, height * width, channels))
    return Step(lambda s, x: x.flatten(2).transpose(1, 2))


def to_image(op: Op, shape: Shape) -> nn.Module | None:
    batch, count, channels = shape
    side = round(count**0.5)
    if side * side != count:
        return Step(lambda s, x: x.transpose(1, 2).unsqueeze(-1).mean(2, keepdim=True))
    if op.variant % 2:
        return Step(lambda s, x: x.transpose(1, 2).reshape(batch, channels, side, side))
    return Step(lambda s, x: x.view(x.shape[0], side, side, -1).permute(0, 3, 1, 2))


def to_vector(op: Op, shape: Shape) -> nn.Module | None:
    """Pooled, or flattened into a linear layer."""
    batch, channels, height, width = shape
    linear = nn.Linear(channels * height * width, op.channels)
    if op.variant == 0:
        return Step(lambda s, x: x.mean((2, 3)))
    if op.variant == 1:
        return Step(lambda s, x: s.fc(x.view(batch, -1)), fc=linear)
    if op.variant == 2:
        return Step(lambda s, x: s.fc(x.reshape(-1, channels * height * width)), fc=linear)
    return Step(lambda s, x: s.fc(torch.flatten(x.permute(0, 2, 3, 1), 1)), fc=linear)


def tokens_to_vector(op: Op, shape: Shape) -> nn.Module:
    _batch, count, channels = shape
    if op.variant == 0:
        return Step(lambda s, x: x.mean(1))
    if op.variant == 1:
        return Step(lambda s, x: x[:, 0])
    if op.variant == 2:
        return Step(lambda s, x: s.fc(x.flatten(1)), fc=nn.Linear(count * channels, op.channels))
    return Step(lambda s, x: (x * s.score(x).softmax(1)).sum(1), score=nn.Linear(channels, 1))


def from_vector(op: Op, shape: Shape) -> nn.Module:
    """A generator's start: linear, view, transposed convolution."""
    out, batch = op.channels, shape[0]
    fc, up = nn.Linear(shape[1], 4 * out), nn.ConvTranspose2d(out, 4, 2, 2)
    if op.variant % 2:
        return Step(lambda s, x: s.up(s.fc(x).view(-1, out, 2, 2)), fc=fc, up=up)
    return Step(lambda s, x: s.up(s.fc(x).reshape(batch, out, 2, 2).relu()), fc=fc, up=up)


def linear(op: Op, shape: Shape) -> nn.Module:
    channels, out = shape[-1], op.channels
    if op.variant == 0:
        return Step(lambda s, x: s.fc(x), fc=nn.Linear(channels, out))
    if op.variant == 1:
        return Step(lambda s, x: x + s.b(F.gelu(s.a(x))), a=nn.Linear(channels, out), b=nn.Linear(out, channels))
    if op.variant == 2:
        return Step(lambda s, x: F.linear(x, s.weight, s.bias), weight=noise(out, channels), bias=noise(out))
    return Step(lambda s, x: x @ s.table + s.bias, table=noise(channels, out), bias=noise(out))


def gated(op: Op, shape: Shape) -> nn.Module:
    """SwiGLU of one layer or of two."""
    channels, inner = shape[-1], op.channels
    if op.variant % 2:
        return Step(lambda s, x: x + s.b(gate(s.a(x))), a=nn.Linear(channels, 2 * inner), b=nn.Linear(inner, channels))
    return Step(
        lambda s, x: s.b(F.silu(s.gate(x)) * s.a(x)),
        a=nn.Linear(channels, inner),
        gate=nn.Linear(channels, inner),
        b=nn.Linear(inner, channels),
    )


def gate(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return a * F.silu(b)


def normalized(op: Op, shape: Shape) -> nn.Module:
    channels = shape[-1]
    if op.variant == 0:
        return Step(lambda s, x: s.norm(x), norm=nn.LayerNorm(channels))
    if op.variant == 1:
        return Step(
            lambda s, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * s.scale, scale=noise(channels)
        )
    if op.variant == 2:
        return Step(lambda s, x: F.layer_norm(x, (channels,), s.scale), scale=noise(channels))
    return Step(lambda s, x: s.norm(x), norm=nn.RMSNorm(channels))


def join(op: Op, shape: Shape, other: Shape) -> nn.Module | None:
    ways = (
        lambda s, x, y: x + y,
        lambda s, x, y: torch.cat([x, y], -1),
        lambda s, x, y: x * y.sigmoid(),
        lambda s, x, y: torch.cat([x, y], 1) if len(shape) == 3 else x - y,
    )
    if (op.variant == 1 and 2 * shape[-1] > MOST_CHANNELS) or (op.variant == 3 and shape[1] > 64):
        return None
    return Step(ways[op.variant])


def learned(op: Op, shape: Shape) -> nn.Module:
    """Class token, positions, layer scale, a constant table."""
    _batch, count, channels = shape
    if op.variant == 0:
        return Step(lambda s, x: torch.cat([s.token.expand(x.shape[0], -1, -1), x], 1), token=noise(1, 1, channels))
    if op.variant == 1:
        return Step(lambda s, x: x + s.positions, positions=noise(1, count, channels))
    if op.variant == 2:
        return Step(lambda s, x: s.gamma * x, gamma=noise(channels))
    step = Step(lambda s, x: x + s.table)
    step.register_buffer("table", noise(count, channels))
    return step


def attention(op: Op, shape: Shape) -> nn.Module | None:
    """Fused or separate q, k and v; views with sizes read or written out; scaled_dot_product_attention or by hand."""
    batch, count, channels = shape
    heads = divisor(op, channels)
    depth = channels // heads
    if op.variant == 3:
        return Step(
            lambda s, x: x + s.mha(x, x, x, need_weights=False)[0],
            mha=nn.MultiheadAttention(channels, heads, batch_first=True),
        )

    proj = nn.Linear(channels, channels)
    last = -1 if op.size % 2 else channels

    def out(s: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.add(x, s.proj(y.transpose(1, 2).reshape(batch, count, last)))

    def fused(s: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = s.qkv(x).reshape(x.shape[0], x.shape[1], 3, heads, depth).permute(2, 0, 3, 1, 4).unbind(0)
        return out(s, x, F.scaled_dot_product_attention(q, k, v))

    def by_hand(s: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = s.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.view(batch, count, heads, depth).transpose(1, 2) for part in (q, k, v))
        scores = (q * depth**-0.5) @ k.transpose(-2, -1) + s.bias.unsqueeze(0)
        return out(s, x, scores.softmax(-1) @ v)

    def apart(s: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).view(batch, -1, heads, depth).transpose(1, 2) for layer in (s.q, s.k, s.v))
        return out(s, x, F.scaled_dot_product_attention(s.norm(q), s.norm(k), v))

    if op.variant == 0:
        return Step(fused, qkv=nn.Linear(channels, 3 * channels), proj=proj)
    if op.variant == 1:
        return Step(by_hand, qkv=nn.Linear(channels, 3 * channels), bias=noise(heads, count, count), proj=proj)
    q, k, v = (nn.Linear(channels, channels) for _ in range(3))
    return Step(apart, q=q, k=k, v=v, norm=nn.LayerNorm(depth), proj=proj)


def mix(op: Op, shape: Shape) -> nn.Module | None:
    """What goes along the tokens: a mixer, a convolution, a recurrent tail, windows."""
    batch, count, channels = shape
    if op.variant == 0:
        return Step(lambda s, x: x + s.fc(x.transpose(1, 2)).transpose(1, 2), fc=nn.Linear(count, count))
    if op.variant == 1:
        conv = nn.Conv1d(channels, op.channels, 3, padding=1)
        return Step(lambda s, x: s.conv(x.transpose(1, 2)).transpose(1, 2), conv=conv)
    if op.variant == 2:
        rnn = (nn.LSTM if op.size % 2 else nn.GRU)(channels, op.channels, batch_first=True)
        return Step(lambda s, x: s.rnn(x)[0], rnn=rnn)
    if count % 2:
        return Step(lambda s, x: torch.roll(x, 1, 1))
    return Step(lambda s, x: s.fc(x.reshape(batch, count // 2, 2 * channels)), fc=nn.Linear(2 * channels, op.channels))


def same_width(a: Shape, b: Shape) -> bool:
    """A vector with a channel for each of an image's, or twice as many."""
    return len(b) == 2 and b[1] in (a[1], 2 * a[1])


def modulate(op: Op, shape: Shape, other: Shape) -> nn.Module:
    """A vector gates an image, or scales and shifts it."""
    if other[1] == shape[1]:
        return Step(lambda s, x, v: x * v[:, :, None, None].sigmoid())
    return Step(film)


def film(s: Any, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scale, shift = v.chunk(2, 1)
    return x * scale.unsqueeze(-1).unsqueeze(-1) + shift[..., None, None]


TOKENS = {
    "to_tokens": Kind("image", to_tokens),
    "to_vector": Kind("image", to_vector),
    "modulate": Kind("image", modulate, same_width),
    "to_image": Kind("tokens", to_image),
    "tokens_to_vector": Kind("tokens", tokens_to_vector),
    "token_linear": Kind("tokens", linear),
    "token_gated": Kind("tokens", gated),
    "token_norm": Kind("tokens", normalized),
    "token_join": Kind("tokens", join, same),
    "learned": Kind("tokens", learned),
    "attention": Kind("tokens", attention),
    "mix": Kind("tokens", mix),
    "from_vector": Kind("vector", from_vector),
    "vector_linear": Kind("vector", linear),
    "vector_gated": Kind("vector", gated),
    "vector_norm": Kind("vector", normalized),
    "vector_join": Kind("vector", join, same),
}
