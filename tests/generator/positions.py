"""Operations on tokens that turn, gather, share and mix by place, and products with parameters that are no layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tests.generator.images import divisor
from tests.generator.program import Kind, Op, Shape, Step
from tests.zoo.model import noise


def projections(channels: int, keys: int) -> dict[str, nn.Module]:
    """Return the layers of an attention whose keys and values are of ``keys`` channels."""
    return {
        "q": nn.Linear(channels, channels),
        "k": nn.Linear(channels, keys),
        "v": nn.Linear(channels, keys),
        "proj": nn.Linear(channels, channels),
    }


def rotary(op: Op, shape: Shape) -> nn.Module | None:
    """Rotary positions by halves or by neighbours; fewer heads of keys, repeated or shared, queries normed."""
    batch, count, channels = shape
    heads = divisor(op, channels)
    depth = channels // heads
    if depth % 2:
        return None
    keys = 1 if op.variant >= 2 else heads
    angle = torch.arange(float(count))[:, None] * torch.tensor([0.3**k for k in range(depth // 2)])

    def heads_of(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.transpose(layer(x).view(batch, count, -1, depth), 1, 2)

    def halves(s: Any, x: torch.Tensor) -> torch.Tensor:
        first, second = x[..., : depth // 2], x[..., depth // 2 :]
        turned = torch.cat([s.angle, s.angle], -1)
        return x * turned.cos() + torch.cat([-second, first], -1) * turned.sin()

    def neighbours(s: Any, x: torch.Tensor) -> torch.Tensor:
        even, odd = x[..., ::2], x[..., 1::2]
        cos, sin = s.angle.cos(), s.angle.sin()
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def attend(s: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = heads_of(s.q, x), heads_of(s.k, x), heads_of(s.v, x)
        turn = neighbours if op.variant == 1 else halves
        if op.variant == 3:
            q, k = s.norm(q), s.norm(k)
        q, k = turn(s, q), turn(s, k)
        if op.variant == 2:
            k, v = (y[:, :, None].expand(batch, 1, heads, count, depth).reshape(q.shape) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=op.variant == 3)
        return torch.add(x, s.proj(y.transpose(1, 2).reshape(batch, count, -1)))

    step = Step(attend, norm=nn.RMSNorm(depth), **projections(channels, keys * depth))
    step.register_buffer("angle", angle)
    return step


def relative(op: Op, shape: Shape) -> nn.Module | None:
    """Relative positions: a bias from a table, scores gathered by distance, keys of distances, a shifted product."""
    batch, count, channels = shape
    if count > 16:
        return None
    heads = divisor(op, channels)
    depth = channels // heads
    place = torch.arange(count)
    distance = place[:, None] - place[None] + count - 1

    def scored(s: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        scores = q @ k.transpose(-2, -1) * depth**-0.5
        if op.variant == 0:
            return torch.add(scores, s.table[s.distance.view(-1)].view(count, count, heads).permute(2, 0, 1))
        if op.variant == 1:
            keys = s.k(s.places).view(2 * count - 1, heads, depth).transpose(0, 1)
            found = torch.gather(q @ keys.transpose(-1, -2), -1, s.distance.expand(batch, heads, count, count))
            return torch.add(scores, found)
        if op.variant == 2:
            return torch.add(scores, torch.einsum("bhnd,nmd->bhnm", q, s.keys[s.distance]))
        found = F.pad(q @ s.keys.t(), (1, 0)).view(batch, heads, 2 * count, count)
        return torch.add(scores, found[:, :, 1:].reshape(batch, heads, count, 2 * count - 1)[..., :count])

    def attend(s: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).view(batch, count, heads, depth).transpose(1, 2) for layer in (s.q, s.k, s.v))
        y = scored(s, q, k).softmax(-1) @ v
        return torch.add(x, s.proj(y.transpose(1, 2).reshape(batch, count, channels)))

    parts: dict[str, Any] = dict(projections(channels, channels))
    if op.variant == 0:
        parts["table"] = noise(2 * count - 1, heads)
    elif op.variant == 1:
        parts["places"] = noise(2 * count - 1, channels)
    else:
        parts["keys"] = noise(2 * count - 1, depth)
    step = Step(attend, **parts)
    step.register_buffer("distance", distance)
    return step


def token_mixing(op: Op, shape: Shape) -> nn.Module | None:
    """What goes along the tokens: a mixer's perceptron, a gate by place, a table, one and the same both ways."""
    _batch, count, channels = shape
    inner = op.channels
    if op.variant == 0:
        return Step(
            lambda s, x: x + s.b(F.gelu(s.a(s.norm(x).transpose(1, 2)))).transpose(1, 2),
            norm=nn.LayerNorm(channels),
            a=nn.Linear(count, inner),
            b=nn.Linear(inner, count),
        )
    if op.variant == 1:
        return Step(
            spatial_gate,
            a=nn.Linear(channels, 2 * inner),
            along=nn.Conv1d(count, count, 1),
            norm=nn.LayerNorm(inner),
            b=nn.Linear(inner, channels),
        )
    if op.variant == 2:
        return Step(lambda s, x: x + torch.einsum("bnc,nm->bmc", x, s.table), table=noise(count, count))
    return Step(lambda s, x: torch.matmul(s.table.softmax(-1), x) + x, table=noise(count, count))


def spatial_gate(s: Any, x: torch.Tensor) -> torch.Tensor:
    u, v = F.gelu(s.a(x)).chunk(2, -1)
    return torch.add(x, s.b(u * (s.along(s.norm(v)) + 1.0)))


def product(op: Op, shape: Shape) -> nn.Module:
    """A product with a parameter: transposed, GPT-2's, summed with einsum, in slices."""
    channels, out = shape[-1], op.channels
    if op.variant == 0:
        return Step(lambda s, x: x @ s.table.t() + s.bias, table=noise(out, channels), bias=noise(out))
    if op.variant == 1:
        return Step(
            lambda s, x: torch.addmm(s.bias, x.reshape(-1, x.size(-1)), s.table).view((*x.size()[:-1], out)),
            table=noise(channels, out),
            bias=noise(out),
        )
    if op.variant == 2:
        return Step(lambda s, x: torch.einsum("...c,oc->...o", x, s.table), table=noise(out, channels))
    return Step(
        lambda s, x: F.linear(x, s.both[:out], s.bias[:out]) * F.linear(x, s.both[out:]).sigmoid(),
        both=noise(2 * out, channels),
        bias=noise(2 * out),
    )


def cosine(op: Op, shape: Shape) -> nn.Module:
    """Weights and values of length one: cosines, a sphere that residuals stay on, norms over outputs."""
    channels, out = shape[-1], op.channels
    if op.variant == 0:
        return Step(
            lambda s, x: F.linear(F.normalize(x, dim=-1, eps=1e-3), F.normalize(s.weight, dim=-1)),
            weight=noise(out, channels),
        )
    if op.variant == 1:
        return Step(sphere, a=noise(out, channels), b=noise(channels, out), rate=noise(channels))
    if op.variant == 2:
        return Step(lambda s, x: F.linear(x, s.weight / (s.weight.norm(dim=0) + 1e-3)), weight=noise(out, channels))
    return Step(lambda s, x: s.fc(x), fc=weight_norm(nn.Linear(channels, out), dim=1))


def sphere(s: Any, x: torch.Tensor) -> torch.Tensor:
    """nGPT's block: all vectors of length one along the width, weights too, and a step between two of them."""
    x = F.normalize(x, dim=-1, eps=1e-3)
    y = F.linear(F.silu(F.linear(x, F.normalize(s.a, dim=1))), F.normalize(s.b, dim=0))
    y = F.normalize(y, dim=-1, eps=1e-3)
    return F.normalize(x + s.rate * (y - x), dim=-1, eps=1e-3)


POSITIONS = {
    "rotary": Kind("tokens", rotary),
    "relative": Kind("tokens", relative),
    "token_mixing": Kind("tokens", token_mixing),
    "token_product": Kind("tokens", product),
    "token_cosine": Kind("tokens", cosine),
    "vector_product": Kind("vector", product),
    "vector_cosine": Kind("vector", cosine),
}
