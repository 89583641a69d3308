"""Operations on images whose weights the graph computes, norms, slices or holds fixed, and what else libraries do."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.generator.images import divisor, standardized
from tests.generator.order import same
from tests.generator.program import Kind, Op, Shape, Step
from tests.zoo.model import noise


def normed_weight(op: Op, shape: Shape) -> nn.Module:
    """Weights normed along the axes that shrink with what they read: unit rows, magnitude kept, cosine, demodulated."""
    weight = noise(op.channels, shape[1], 1, 1)
    if op.variant == 0:
        return Step(lambda s, x: F.conv2d(x, F.normalize(s.weight, dim=1)), weight=weight)
    if op.variant == 1:
        return Step(
            lambda s, x: F.conv2d(x, s.gain * s.weight / (1e-3 + s.weight.norm(dim=(1, 2, 3), keepdim=True))),
            weight=weight,
            gain=noise(1),
        )
    if op.variant == 2:
        return Step(lambda s, x: F.conv2d(F.normalize(x, dim=1, eps=1e-3), F.normalize(s.weight, dim=1)), weight=weight)
    return Step(
        lambda s, x: F.conv2d(x, s.weight * torch.rsqrt(s.weight.square().sum((1, 2, 3), keepdim=True) + 1e-3)),
        weight=weight,
    )


def fixed(op: Op, shape: Shape) -> nn.Module:
    """Weights nobody trains: a mixture of colors, a shift of each, a blur repeated over the channels."""
    channels = shape[1]
    if op.variant == 0:
        return _with_buffer(lambda s, x: F.conv2d(x, s.fixed), noise(channels, channels, 1, 1))
    if op.variant == 1:
        shift = nn.Conv2d(channels, channels, 1).requires_grad_(False)
        return Step(lambda s, x: s.shift(x), shift=shift)
    blur = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])[None, None] / 16
    if op.variant == 2:
        return _with_buffer(
            lambda s, x: F.conv2d(x, s.fixed.repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1]), blur
        )
    return _with_buffer(lambda s, x: F.conv2d(x, s.fixed.expand(channels, 1, 3, 3), padding=1, groups=channels), blur)


def _with_buffer(function: Any, value: torch.Tensor) -> nn.Module:
    step = Step(function)
    step.register_buffer("fixed", value)
    return step


def computed_weight(op: Op, shape: Shape) -> nn.Module:
    """A product with a parameter that is no layer: transposed, addmm, einsum, slices of one parameter."""
    batch, channels, height, width = shape
    out = op.channels
    table = noise(out, channels)
    if op.variant == 0:
        return Step(lambda s, x: (x.permute(0, 2, 3, 1) @ s.table.t()).permute(0, 3, 1, 2), table=table)
    if op.variant == 1:
        return Step(
            lambda s, x: (
                torch.addmm(s.bias, x.permute(0, 2, 3, 1).reshape(-1, channels), s.table.T)
                .view(batch, height, width, out)
                .permute(0, 3, 1, 2)
            ),
            table=table,
            bias=noise(out),
        )
    if op.variant == 2:
        return Step(lambda s, x: torch.einsum("bchw,dc->bdhw", x, s.table), table=table)
    return Step(
        lambda s, x: F.conv2d(x, s.both[:out]) * F.conv2d(x, standardized(s.both[out:])).sigmoid(),
        both=noise(2 * out, channels, 1, 1),
    )


def own_weight(op: Op, shape: Shape) -> nn.Module:
    """Weights that cannot be divided: bounded entry by entry, normed in the graph, read where they made channels."""
    channels, out = shape[1], op.channels
    if op.variant == 0:
        table = noise(out, channels)
        return Step(lambda s, x: F.conv2d(x, F.softplus(s.table).view(*s.table.shape, 1, 1)), table=table)
    if op.variant == 1:
        return Step(
            lambda s, x: x * F.conv2d(x**2, (s.table.abs() + 0.1)[..., None, None], s.bias.exp()).rsqrt(),
            table=noise(channels, channels),
            bias=noise(channels),
        )
    if op.variant == 2:
        dim = op.size % 2
        length = noise(*(out if k == 0 == dim else channels if k == 1 == dim else 1 for k in range(4)))
        return Step(
            lambda s, x: F.conv2d(x, torch._weight_norm(s.table, s.length, dim)),
            table=noise(out, channels, 1, 1),
            length=length,
        )
    return Step(
        lambda s, x: F.conv_transpose2d(F.relu(F.conv2d(x, s.table)), s.table), table=noise(out, channels, 1, 1)
    )


def mid_attention(op: Op, shape: Shape) -> nn.Module | None:
    """A group norm, then attention over places: an autoencoder's, a diffusion network's, linear, non-local."""
    batch, channels, height, width = shape
    if height * width > 64:
        return None
    norm = nn.GroupNorm(divisor(op, channels), channels)
    inner = channels if op.variant < 3 else op.channels
    q, k, v = (nn.Conv2d(channels, inner, 1) for _ in range(3))
    proj = nn.Conv2d(inner, channels, 1)

    def autoencoder(s: Any, x: torch.Tensor) -> torch.Tensor:
        y = s.norm(x)
        b, c, h, w = y.shape
        scores = torch.bmm(s.q(y).reshape(b, c, h * w).permute(0, 2, 1), s.k(y).reshape(b, c, h * w)) * int(c) ** -0.5
        y = torch.bmm(s.v(y).reshape(b, c, h * w), scores.softmax(2).permute(0, 2, 1))
        return torch.add(x, s.proj(y.reshape(b, c, h, w)))

    heads = divisor(op, channels)

    def diffusion(s: Any, x: torch.Tensor) -> torch.Tensor:
        parts = s.qkv(s.norm(x)).reshape(batch * heads, 3 * channels // heads, height * width)
        a, b, c = parts.chunk(3, dim=1)
        scores = torch.einsum("bct,bcs->bts", a, b * (channels // heads) ** -0.5).softmax(-1)
        return torch.add(x, s.proj(torch.einsum("bts,bcs->bct", scores, c).reshape(batch, -1, height, width)))

    def linear(s: Any, x: torch.Tensor) -> torch.Tensor:
        y = s.norm(x)
        a, b, c = (layer(y).flatten(2).unflatten(1, (heads, -1)) for layer in (s.q, s.k, s.v))
        context = torch.einsum("bhdn,bhen->bhde", b.softmax(-1), c)
        y = torch.einsum("bhde,bhdn->bhen", context, a.softmax(-2)).flatten(1, 2)
        return torch.add(x, s.proj(y.unflatten(2, (height, width))))

    def non_local(s: Any, x: torch.Tensor) -> torch.Tensor:
        y = s.norm(x)
        a, b, c = (layer(y).flatten(2) for layer in (s.q, s.k, s.v))
        scores = a.transpose(1, 2) @ b
        y = (scores / scores.shape[-1]) @ c.transpose(1, 2)
        return torch.add(x, s.proj(y.transpose(1, 2).reshape(batch, -1, height, width)))

    if op.variant == 1:
        return Step(diffusion, norm=norm, qkv=nn.Conv2d(channels, 3 * channels, 1), proj=proj)
    return Step((autoencoder, diffusion, linear, non_local)[op.variant], norm=norm, q=q, k=k, v=v, proj=proj)


def response(op: Op, shape: Shape) -> nn.Module:
    """Norms by neighbouring channels, or by the mean of all norms over space."""
    if op.variant == 0:
        return Step(lambda s, x: s.norm(x), norm=nn.LocalResponseNorm(3))
    if op.variant == 1:
        return Step(lambda s, x: F.local_response_norm(x, 2, alpha=0.1))
    if op.variant == 2:
        return Step(global_response, gamma=noise(1, shape[1], 1, 1), beta=noise(1, shape[1], 1, 1))
    return Step(lambda s, x: x / (1.0 + x.square().sum(1, keepdim=True)).sqrt() * s.gamma, gamma=noise(shape[1], 1, 1))


def global_response(s: Any, x: torch.Tensor) -> torch.Tensor:
    norms = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
    return torch.add(x, s.gamma * (x * (norms / (norms.mean(1, keepdim=True) + 1e-3))) + s.beta)


def by_mode(op: Op, shape: Shape) -> nn.Module:
    """What is another function in training: dropout, a functional batch norm, a branch, stochastic depth."""
    channels = shape[1]
    if op.variant == 0:
        return Step(lambda s, x: F.dropout2d(F.alpha_dropout(x, 0.2, s.training), 0.2, training=s.training))
    if op.variant == 1:
        step = Step(
            lambda s, x: F.batch_norm(x, s.running_mean, s.running_var, s.weight, s.bias, s.training, 0.1),
            weight=noise(channels),
            bias=noise(channels),
        )
        step.register_buffer("running_mean", noise(channels))
        step.register_buffer("running_var", noise(channels).abs() + 0.5)
        return step
    if op.variant == 2:
        return Step(lambda s, x: s.conv(x) if s.training else s.conv(x) * 0.9, conv=nn.Conv2d(channels, op.channels, 1))
    return Step(depth, conv=nn.Conv2d(channels, channels, 1))


def depth(s: Any, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = s.conv(x)
    if s.training:
        y = y * torch.empty((y.shape[0], 1, 1, 1), dtype=y.dtype).bernoulli_(0.8).div_(0.8)
    return x + y


def in_place(op: Op, shape: Shape) -> nn.Module:
    """Values that are written over: sums, products, a part of a tensor, an output that is given."""
    conv = nn.Conv2d(shape[1], shape[1], 1)
    if op.variant == 0:
        return Step(summed, conv=conv)
    if op.variant == 1:
        return Step(lambda s, x: s.conv(x).mul_(0.5).add_(x).clamp_(-2.0, 2.0).relu_(), conv=conv)
    if op.variant == 2:
        return Step(lambda s, x: x + torch.mul(x.detach(), 0.5, out=torch.empty_like(x)))
    return Step(lambda s, x: torch.zeros_like(x).copy_(s.conv(x)) + x.clone().fill_(0.5), conv=conv)


def summed(s: Any, x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y += s.conv(x)
    y *= 0.5
    return y


def complex_parts(op: Op, shape: Shape) -> nn.Module | None:
    """Spectra and complex numbers whose parts are channels of their own."""
    channels, side = shape[1], shape[2]
    a, b = (nn.Conv2d(channels, op.channels, 1) for _ in range(2))
    if op.variant == 0:
        return Step(lambda s, x: torch.fft.fft2(x).real)
    if op.variant == 1:
        return Step(
            lambda s, x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(s.filter), s=(side, side)),
            filter=noise(channels, side, side // 2 + 1, 2),
        )
    if op.variant == 2:
        return Step(lambda s, x: torch.complex(s.a(x), s.b(x)).abs(), a=a, b=b)

    def fourier(s: Any, x: torch.Tensor) -> torch.Tensor:
        y = torch.fft.rfft2(x, norm="ortho")
        z = s.mix(torch.cat([y.real, y.imag], 1)).relu()
        first, second = z.chunk(2, 1)
        back: torch.Tensor = torch.fft.irfft2(torch.complex(first, second), s=(side, side), norm="ortho")
        return back

    return Step(fourier, mix=nn.Conv2d(2 * channels, 2 * op.channels, 1))


def one_gate(op: Op, shape: Shape, other: Shape) -> nn.Module:
    """Maps of one channel that gate many: a U-Net's attention gate, spread out, a choice of two branches, a mask."""
    inner = op.channels
    if op.variant == 0:
        return Step(
            lambda s, x, g: x * s.psi(F.relu(s.x(x) + s.g(g))).sigmoid(),
            x=nn.Conv2d(shape[1], inner, 1),
            g=nn.Conv2d(other[1], inner, 1),
            psi=nn.Conv2d(inner, 1, 1),
        )
    if op.variant == 1:
        return Step(lambda s, x, g: x * s.psi(g).sigmoid().expand_as(x) + x, psi=nn.Conv2d(other[1], 1, 1))
    if op.variant == 2:
        return Step(chosen, choose=nn.Conv2d(shape[1], 2, 1))
    return Step(lambda s, x, g: x.masked_fill(s.psi(g) > 0, 0.0) + g, psi=nn.Conv2d(other[1], 1, 1))


def chosen(s: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    weights = s.choose(x).softmax(1)
    return torch.add(weights[:, :1] * x, weights[:, 1:] * y)


def channel_softmax(op: Op, shape: Shape) -> nn.Module:
    """Softmax over all channels, over groups of them, over branches."""
    channels = shape[1]
    groups = divisor(op, channels)
    if op.variant == 0:
        return Step(lambda s, x: x.softmax(1))
    if op.variant == 1:
        return Step(lambda s, x: F.log_softmax(s.conv(x), dim=1), conv=nn.Conv2d(channels, op.channels, 1))
    if op.variant == 2:
        return Step(lambda s, x: x.unflatten(1, (groups, -1)).softmax(2).flatten(1, 2))
    return Step(split_attention, a=nn.Conv2d(channels, op.channels, 1), choose=nn.Linear(channels, 2 * op.channels))


def split_attention(s: Any, x: torch.Tensor) -> torch.Tensor:
    branches = torch.stack([s.a(x), s.a(x).relu()], 1)
    weights = s.choose(x.mean((2, 3))).unflatten(1, (2, -1)).softmax(1)
    return torch.sum(branches * weights[..., None, None], 1)


WEIGHTS = {
    "one_gate": Kind("image", one_gate, same),
    **{
        name: Kind("image", make)
        for name, make in {
            "normed_weight": normed_weight,
            "fixed": fixed,
            "computed_weight": computed_weight,
            "own_weight": own_weight,
            "mid_attention": mid_attention,
            "response": response,
            "by_mode": by_mode,
            "in_place": in_place,
            "complex_parts": complex_parts,
            "channel_softmax": channel_softmax,
        }.items()
    },
}
