"""Code as people write it: in-place ops, squeezes, sizes from elsewhere, branches that tracing cannot follow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.model import OUTPUT, Head, ZooModel, conv, image, noise, together


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(6, 6), conv(6, 4), Head(4)

    def forward(self, x):
        x = F.relu_(self.a(x))
        y = self.b(x)
        y += x
        y.mul_(0.5).clamp_(-1, 1)
        x = self.c(y)
        x[:, :, 0] = 0.0
        return self.head(torch.relu_(x))


class Squeezed(nn.Module):
    """A squeeze of whatever has length one: at one channel it would take the channel axis too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 4), nn.Conv1d(4, 5, 3, padding=1), nn.Linear(5, 3)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(F.relu(self.a(x)), (1, 8)).squeeze()
        return self.fc(F.adaptive_max_pool1d(F.relu(self.b(x)), 1).squeeze(-1))


class SizeFromElsewhere(nn.Module):
    """The size of one tensor reshapes another that has other channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(3, 6), conv(6, 4), Head(4)

    def forward(self, x):
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        batch, channels, height, width = a.size()
        tokens = b.flatten(2).transpose(1, 2).reshape(batch, height * width, channels)
        b = tokens.transpose(1, 2).view(batch, channels, height, width)
        return self.head(F.relu(self.c(torch.cat([b[:, :3], a[:, 3:]], 1))))


class AbsorbingView(nn.Module):
    """Views whose -1 would swallow any growth without a word."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.b, self.head = conv(3, 6), nn.Linear(64, 64), conv(6, 4), Head(4)

    def forward(self, x):
        x = F.relu(self.a(x)).view(-1, 64)
        x = F.relu(self.fc(x)).view(-1, 6, 8, 8)
        return self.head(F.relu(self.b(x)))


class FixedBuffers(nn.Module):
    """Sines added over tokens and channels, a permutation of channels held as integers, a causal mask."""

    order: torch.Tensor
    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        self.register_buffer("waves", torch.zeros(1, 5, 6))
        self.register_buffer("order", torch.tensor([3, 1, 4, 0, 5, 2]))
        self.register_buffer("mask", torch.ones(5, 5).tril() == 0)

    def forward(self, x):
        x = self.b(F.relu(self.a(x) + self.waves))[..., self.order]
        scores = torch.zeros(5, 5, dtype=x.dtype).masked_fill(self.mask, -1e4).softmax(-1)
        return self.out(F.relu(self.c(F.relu(scores @ x))))


class Constants(nn.Module):
    """Zeros and ones made at run time, of literal widths and of widths read from the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 4), conv(3, 6), conv(7, 4), Head(4)

    def forward(self, x):
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        a = a + x.new_zeros(2, 4, 8, 8)
        b = b * torch.ones(b.shape[0], b.shape[1], 1, 1, dtype=b.dtype)
        joined = torch.cat([a, torch.ones(2, 3, 8, 8, dtype=x.dtype)], 1)
        return self.head(F.relu(self.c(joined)) + b.mean(1, keepdim=True))


class HandMadeShuffle(nn.Module):
    """Depth to space and space to depth by view and permute, with literal sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 12), conv(3, 2), conv(8, 4), Head(4)

    def forward(self, x):
        x = F.relu(self.a(x)).view(2, 2, 2, 3, 8, 8).permute(0, 3, 4, 1, 5, 2).reshape(2, 3, 16, 16)
        x = F.relu(self.b(x)).reshape(2, 2, 8, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).contiguous().view(2, 8, 8, 8)
        return self.head(F.relu(self.c(x)))


class CausalChain(nn.Module):
    """Padding at one side, cut off at the other; a transposed BatchNorm between tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.out = (
            nn.Conv1d(2, 6, 3, padding=2),
            nn.BatchNorm1d(6),
            nn.Linear(6, 4),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        x = self.a(x)[..., :-2].transpose(1, 2)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.out(F.relu(self.b(F.relu(x)))).sum(1)


class Branching(nn.Module):
    """Control flow on values of shape, and a Python loop over them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(6, 6), conv(6, 4), Head(4)

    def forward(self, x):
        x = F.relu(self.a(x))
        if x.shape[-1] % 2 == 0 and x.dim() == 4:
            for _ in range(x.shape[-1] // 4):
                x = x + F.relu(self.b(x))
        assert x.shape[1] > 0, "no channels"
        return self.head(F.relu(self.c(x)))


class Structured(nn.Module):
    """A dict and a list go in; a tuple with a dict, a list and None comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.v, self.out = conv(3, 6), conv(3, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, batch, extra):
        x = F.relu(self.a(batch["image"]) + self.b(batch["other"]))
        x = x.mean((2, 3)) + self.v(extra[0])
        return self.out(F.relu(x)), {"norm": x.pow(2).mean()}, [extra[0] * 2]


class KeywordDefaults(nn.Module):
    """Optional arguments that stay at their defaults, nested containers of modules, a module made of one."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(
            {"left": nn.Sequential(conv(3, 4), nn.ReLU(True)), "right": nn.Sequential(conv(3, 4))}
        )
        self.joint = nn.Sequential(nn.Sequential(conv(8, 6), nn.BatchNorm2d(6)), nn.ReLU6(inplace=True), nn.Identity())
        self.tail = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 6), nn.Unflatten(1, (3, 2)), nn.Flatten()
        )
        self.fc = nn.Linear(6, 2)

    def forward(self, x, mask=None, scale=2.0):
        x = torch.cat([tower(x) for tower in self.towers.values()], dim=-3)
        x = self.joint(x) * scale
        if mask is not None:
            x = x * mask
        return self.fc(self.tail(x))


class Scalars(nn.Module):
    """ReZero: a branch behind one learned number; a temperature; a list of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.fc = conv(3, 6), conv(6, 6), nn.Linear(6, 3)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(1))])

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = (x + self.alpha * self.a(x)).mean((2, 3)) * self.gains[0]
        return self.fc(F.relu(x)) / self.gains[1].exp()


class DeadEnds(nn.Module):
    """Layers whose result nobody reads, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unread, self.unused, self.head = conv(3, 6), conv(6, 4), conv(6, 5), conv(6, 5), Head(4)

    def forward(self, x):
        x = F.relu(self.a(x))
        self.unread(x)
        return self.head(F.relu(self.b(x)))


class OverlappingPatches(nn.Module):
    """Unfold with overlap, a linear on the patches, fold back: sums of overlapping pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.b, self.head = conv(3, 2), nn.Linear(18, 27), conv(3, 4), Head(4)

    def forward(self, x):
        patches = F.unfold(F.relu(self.a(x)), 3, padding=1).transpose(1, 2)
        x = F.fold(self.fc(patches).transpose(1, 2), (8, 8), 3, padding=1)
        return self.head(F.relu(self.b(F.relu(x))))


class SeparablePatches(nn.Module):
    """MobileViTv2: patches unfolded and folded without overlap; attention by one score for each, split off as one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.qkv, self.out, self.head = conv(3, 4), nn.Conv2d(4, 9, 1), nn.Conv2d(4, 4, 1), Head(4)

    def forward(self, x):
        x = F.unfold(self.a(x), 2, stride=2).reshape(2, 4, 4, -1)
        query, key, value = torch.split(self.qkv(x), split_size_or_sections=[1, 4, 4], dim=1)
        context = (key * query.softmax(-1)).sum(-1, keepdim=True)
        x = self.out(F.relu(value) * context.expand_as(value))
        batch, channels, pixels, patches = x.shape
        folded = F.fold(x.reshape(batch, channels * pixels, patches), (8, 8), 2, stride=2)
        return self.head(F.relu(folded))


class NoTokens(nn.Module):
    """DINOv3 without register tokens: a parameter of no elements, which no channel reaches, joined to the others."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp, self.out = nn.Linear(5, 6), nn.Linear(6, 8), nn.Linear(8, 3)
        self.token, self.registers = nn.Parameter(torch.zeros(1, 1, 6)), nn.Parameter(torch.zeros(1, 0, 6))

    def forward(self, x):
        x = self.embed(x)
        batch = x.shape[0]
        x = torch.cat([self.token.expand(batch, -1, -1), self.registers.expand(batch, -1, -1), x], 1)
        return self.out(F.gelu(self.mlp(x)).mean(1))


class ZeroKeyBias(nn.Module):
    """One projection for queries, keys and values, whose bias is of zeros for the keys; two heads, written down."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.head = nn.Linear(6, 24, bias=False), nn.Linear(8, 6), nn.Linear(6, 3)
        self.q_bias, self.v_bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))

    def forward(self, x):
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).reshape(x.shape[0], x.shape[1], 3, 2, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        x = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head(self.proj(x).mean(1))


MODELS = {
    "zero_key_bias": ZooModel(ZeroKeyBias, (noise(2, 5, 6),), ("qkv", "proj"), {"head": OUTPUT}),
    "no_tokens": ZooModel(NoTokens, (noise(2, 4, 5),), ("mlp",), {"out": OUTPUT, "embed": "of different sizes"}),
    "separable_patches": ZooModel(SeparablePatches, (image(),), ("a", "qkv", "out"), {"head.fc": OUTPUT}),
    "in_place": ZooModel(InPlace, (image(),), ("a", "b", "c"), {"head.fc": OUTPUT}, together("a", "b")),
    "squeezed": ZooModel(Squeezed, (image(),), ("a", "b"), {"fc": OUTPUT}),
    "size_from_elsewhere": ZooModel(SizeFromElsewhere, (image(),), ("c",), {"head.fc": OUTPUT}),
    "absorbing_view": ZooModel(AbsorbingView, (image(),), ("b",), {"head.fc": OUTPUT}),
    "fixed_buffers": ZooModel(FixedBuffers, (noise(2, 5, 3),), ("a", "c"), {"out": OUTPUT}),
    "constants": ZooModel(Constants, (image(),), ("c",), {"head.fc": OUTPUT}),
    "hand_made_shuffle": ZooModel(HandMadeShuffle, (image(),), ("c",), {"head.fc": OUTPUT}),
    "causal_chain": ZooModel(CausalChain, (noise(2, 2, 7),), ("a", "b"), {"out": OUTPUT}),
    "branching": ZooModel(Branching, (image(),), ("a", "b", "c"), {"head.fc": OUTPUT}, together("a", "b")),
    "structured": ZooModel(
        Structured,
        ({"image": image(), "other": image() + 1}, [noise(2, 4)]),
        ("a", "b", "v"),
        {"out": OUTPUT},
        together("a", "b", "v"),
    ),
    "keyword_defaults": ZooModel(
        KeywordDefaults, (image(),), ("towers.left.0", "towers.right.0", "joint.0.0"), {"fc": OUTPUT}
    ),
    "scalars": ZooModel(Scalars, (image(),), ("stem", "a"), {"fc": OUTPUT}, together("stem", "a")),
    "dead_ends": ZooModel(DeadEnds, (image(),), ("a", "b"), {"head.fc": OUTPUT}),
    "overlapping_patches": ZooModel(OverlappingPatches, (image(),), ("b",), {"head.fc": OUTPUT}),
}
