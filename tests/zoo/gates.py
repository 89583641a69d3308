"""Channel attention and per-channel parameters: squeeze-excite, scales, PReLU, gates."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.model import OUTPUT, Head, ZooModel, conv, image, noise, together


class SqueezeExciteByConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = conv(3, 6), nn.BatchNorm2d(6)
        self.squeeze, self.excite, self.b, self.head = conv(6, 3, 1), conv(3, 6, 1), conv(6, 4), Head(4)

    def forward(self, x):
        x = F.silu(self.bn(self.a(x)))
        gate = self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return self.head(F.relu(self.b(x * F.hardsigmoid(gate))))


class SqueezeExciteByLinear(nn.Module):
    """The classic form: view to vectors, two linear layers, view back, expand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool = conv(3, 6), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(6, 3, bias=False), nn.ReLU(), nn.Linear(3, 6, bias=False), nn.Sigmoid())
        self.b, self.head = conv(6, 4), Head(4)

    def forward(self, x):
        x = F.relu(self.a(x))
        batch, channels, _, _ = x.size()
        gate = self.fc(self.pool(x).view(batch, channels)).view(batch, channels, 1, 1)
        return self.head(F.relu(self.b(x * gate.expand_as(x))))


class EfficientChannelAttention(nn.Module):
    """A convolution over the channel axis itself: neighbours matter, so the channels must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.along, self.b, self.head = (
            conv(3, 6),
            nn.Conv1d(1, 1, 3, padding=1, bias=False),
            conv(6, 4),
            Head(4),
        )

    def forward(self, x):
        x = F.relu(self.a(x))
        gate = self.along(x.mean((2, 3)).unsqueeze(1)).squeeze(1).sigmoid()
        return self.head(F.relu(self.b(x * gate[:, :, None, None])))


class LayerScale(nn.Module):
    """ConvNeXt's block: a per-channel parameter of shape [C], channels last inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dw, self.norm = conv(3, 6), conv(6, 6, groups=6), nn.LayerNorm(6)
        self.up, self.down, self.gamma = nn.Linear(6, 8), nn.Linear(8, 6), nn.Parameter(torch.zeros(6))
        self.head = Head(6)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return self.head(x + y.permute(0, 3, 1, 2))


class ChannelParameters(nn.Module):
    """Scales, shifts and masks as raw parameters and buffers of several shapes, one scalar among them."""

    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 6), conv(6, 4), nn.Linear(4, 5)
        self.scale, self.shift = nn.Parameter(torch.zeros(1, 6, 1, 1)), nn.Parameter(torch.zeros(6, 1, 1))
        self.gain, self.tail = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(4))
        self.register_buffer("mask", torch.ones(1, 6, 1, 1))

    def forward(self, x):
        x = F.relu(self.a(x) * self.scale + self.shift) * self.mask
        return self.fc(F.softplus(self.b(x) * self.gain).mean((2, 3)) * self.tail)


class PReLU(nn.Module):
    """A slope for every channel, one for all, and one as a raw parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.many, self.b, self.one = conv(3, 6), nn.PReLU(6), conv(6, 4), nn.PReLU()
        self.c, self.slope, self.head = conv(4, 5), nn.Parameter(torch.zeros(5)), Head(5)

    def forward(self, x):
        x = self.one(self.b(self.many(self.a(x))))
        return self.head(F.prelu(self.c(x), self.slope))


class CombinedAttention(nn.Module):
    """CBAM's channel half: one shared perceptron reads the mean and the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.squeeze, self.excite, self.head = conv(3, 6), nn.Linear(6, 3), nn.Linear(3, 6), Head(6)

    def forward(self, x):
        x = F.relu(self.a(x))
        gate = self.weigh(x.mean((2, 3))) + self.weigh(x.amax((2, 3)))
        return self.head(x * gate.sigmoid().unsqueeze(-1).unsqueeze(-1))

    def weigh(self, pooled: torch.Tensor) -> Any:
        return self.excite(F.relu(self.squeeze(pooled)))


class SpatialSoftmax(nn.Module):
    """Softmax over space keeps channels apart; softmax over channels mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.fc = conv(3, 6), conv(6, 4), conv(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        weights = self.b(x).flatten(2).softmax(2)
        return self.fc((weights * self.c(x).flatten(2)).sum(2))


class ChannelSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), Head(4)

    def forward(self, x):
        return self.head(self.b(F.relu(self.a(x))).softmax(1))


class FeatureModulation(nn.Module):
    """FiLM: a vector makes a scale and a shift for every channel of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.film = conv(3, 6), nn.BatchNorm2d(6, affine=False), nn.Linear(4, 12)
        self.b, self.head = conv(6, 5), Head(5)

    def forward(self, x, z):
        scale, shift = self.film(z).chunk(2, dim=-1)
        x = self.bn(self.stem(x)) * (1 + scale[..., None, None]) + shift[..., None, None]
        return self.head(F.relu(self.b(F.relu(x))))


class ExpandedGates(nn.Module):
    """BAM: a gate for every channel and one for every place, each spread over the image before they are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up = conv(3, 6), nn.Linear(6, 4), nn.Linear(4, 6)
        self.squeeze, self.place, self.b, self.head = conv(6, 5), conv(5, 1, 1), conv(6, 4), Head(4)

    def forward(self, x):
        x = F.relu(self.a(x))
        channel = self.up(F.relu(self.down(x.mean((2, 3))))).unsqueeze(2).unsqueeze(3).expand_as(x)
        place = self.place(F.relu(self.squeeze(x))).expand_as(x)
        return self.head(F.relu(self.b(x * (1 + (channel * place).sigmoid()))))


class GlobalContext(nn.Module):
    """GCNet: a map of one channel says how much each place weighs in the context of all, a product of both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.place, self.down, self.up = conv(3, 6), conv(6, 1, 1), conv(6, 4, 1), conv(4, 6, 1)
        self.norm, self.head = nn.LayerNorm([4, 1, 1]), Head(6)

    def forward(self, x):
        x = F.relu(self.a(x))
        n, c, height, width = x.shape
        weights = self.place(x).view(n, 1, height * width).softmax(2).unsqueeze(-1)
        context = torch.matmul(x.view(n, 1, c, height * width), weights).transpose(1, 2).reshape(n, c, 1, 1)
        return self.head(x + self.up(F.relu(self.norm(self.down(context)))))


class PooledTokens(nn.Module):
    """Tokens pooled by a softmax of one channel, as a product and as an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 1), nn.Linear(6, 1)
        self.b, self.out = nn.Linear(12, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        first = torch.matmul(self.first(x).softmax(1).transpose(1, 2), x).squeeze(1)
        second = torch.einsum("bn,bnc->bc", self.second(x).squeeze(-1).softmax(1), x)
        return self.out(F.relu(self.b(torch.cat([first, second], 1))))


class GatheredTokens(nn.Module):
    """Tokens that are picked by their places, and scores by their distances."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x, places):
        x = F.relu(self.a(x))
        x = x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
        scores = x @ x.transpose(1, 2)
        distances = (places[:, :, None] - places[:, None]).abs().clamp(max=2)
        x = torch.gather(scores, -1, distances).softmax(-1) @ x
        return self.out(F.relu(self.b(x)))


class SelectiveFusion(nn.Module):
    """MixDehazeNet's: of a map that a pixel shuffle makes and the one beside it, how much is said for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up = conv(3, 4), nn.Conv2d(3, 6, 2, 2), nn.Sequential(conv(6, 16), nn.PixelShuffle(2))
        self.squeeze, self.excite, self.head = conv(4, 3, 1), conv(3, 8, 1), Head(4)

    def forward(self, x):
        both = torch.cat([self.up(F.relu(self.down(x))), F.relu(self.a(x))], 1)
        batch, _, height, width = both.shape
        both = both.view(batch, 2, both.shape[1] // 2, height, width)
        weights = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(both.sum(1), 1))))
        return self.head(F.relu((both * weights.view(batch, 2, -1, 1, 1).softmax(1)).sum(1)))


MODELS = {
    "selective_fusion": ZooModel(
        SelectiveFusion,
        (image(),),
        ("a", "down", "up.0", "squeeze", "excite"),
        together=(frozenset(("a", "up.0", "excite")),),
    ),
    "expanded_gates": ZooModel(
        ExpandedGates,
        (image(),),
        ("a", "down", "up", "squeeze", "b"),
        {"place": "one channel"},
        together=together("a", "up"),
    ),
    "global_context": ZooModel(
        GlobalContext, (image(),), ("a", "down", "up"), {"place": "one channel"}, together=together("a", "up")
    ),
    "pooled_tokens": ZooModel(
        PooledTokens, (noise(2, 4, 5),), ("a", "b"), {"first": "one channel", "second": "one channel", "out": OUTPUT}
    ),
    "gathered_tokens": ZooModel(
        GatheredTokens, (noise(2, 4, 5), torch.tensor([[2, 0, 1], [3, 1, 2]])), ("a", "b"), {"out": OUTPUT}
    ),
    "squeeze_excite_conv": ZooModel(
        SqueezeExciteByConv, (image(),), ("a", "squeeze", "excite", "b"), together=together("a", "excite")
    ),
    "squeeze_excite_linear": ZooModel(
        SqueezeExciteByLinear, (image(),), ("a", "fc.0", "fc.2", "b"), together=together("a", "fc.2")
    ),
    "convolution_over_channels": ZooModel(EfficientChannelAttention, (image(),), ("b",), {"a": "along"}),
    "layer_scale": ZooModel(
        LayerScale, (image(),), ("stem", "dw", "up", "down"), together=together("stem", "down", "dw")
    ),
    "channel_parameters": ZooModel(ChannelParameters, (image(),), ("a", "b")),
    "prelu": ZooModel(PReLU, (image(),), ("a", "b", "c")),
    "combined_attention": ZooModel(
        CombinedAttention, (image(),), ("a", "squeeze", "excite"), together=together("a", "excite")
    ),
    "spatial_softmax": ZooModel(SpatialSoftmax, (image(),), ("a", "b", "c"), together=together("b", "c")),
    "channel_softmax": ZooModel(ChannelSoftmax, (image(),), ("a",), {"b": "softmax"}),
    "feature_modulation": ZooModel(FeatureModulation, (image(), noise(2, 4)), ("stem", "film", "b")),
}
