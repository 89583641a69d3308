"""Weights used more than once, or computed before they are used."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tests.zoo.model import OUTPUT, Head, ZooModel, conv, image, noise, together


class SharedModule(nn.Module):
    """One convolution applied three times in a row, as in recurrent ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = conv(3, 6), conv(6, 6), Head(6)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for _ in range(3):
            x = x + F.relu(self.shared(x))
        return self.head(x)


class SharedHead(nn.Module):
    """One head over levels of a pyramid, each level with its own norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared, self.out = conv(3, 6), conv(6, 6, stride=2), conv(6, 4), conv(4, 2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x):
        a = F.relu(self.a(x))
        levels = (a, F.relu(self.b(a)))
        return [self.out(F.relu(norm(self.shared(y)))) for norm, y in zip(self.norms, levels, strict=True)]


class Siamese(nn.Module):
    """One tower, two inputs, their features compared elementwise and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 6), conv(6, 4), nn.Linear(12, 3)

    def forward(self, x, y):
        x, y = self.tower(x), self.tower(y)
        return self.fc(torch.cat([x, y, (x - y).abs()], 1))

    def tower(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.b(F.relu(self.a(x)))).mean((2, 3))


class TiedLayers(nn.Module):
    """Two modules with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 6), conv(6, 6), conv(6, 6), Head(6)
        self.b.weight = self.a.weight

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + F.relu(self.a(x))
        return self.head(x + F.relu(self.b(x)))


class TiedEmbedding(nn.Module):
    """A language model's table both makes its embeddings and reads them out again."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(10, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.out = nn.Linear(6, 10, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x):
        x = self.table(x)
        return self.out(x + self.down(F.gelu(self.up(x))))


class TiedTranspose(nn.Module):
    """An autoencoder that decodes with its encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bias, self.pre = nn.Linear(6, 4), nn.Parameter(torch.zeros(6)), nn.Linear(5, 6)

    def forward(self, x):
        return F.linear(F.relu(self.encoder(F.relu(self.pre(x)))), self.encoder.weight.t(), self.bias)


class Embeddings(nn.Module):
    """Word and position tables added, and a bag of categories joined to them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.kinds = nn.Embedding(10, 6), nn.Embedding(5, 6), nn.Embedding(4, 3)
        self.fc, self.out = nn.Linear(9, 8), nn.Linear(8, 2)
        self.register_buffer("order", torch.arange(5))

    def forward(self, x, kind):
        x = self.words(x) + self.positions(self.order)
        return self.out(F.relu(self.fc(torch.cat([x.mean(1), self.kinds(kind)], 1))))


class WeightNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = parametrizations.weight_norm(conv(3, 6)), parametrizations.weight_norm(conv(6, 4))
        self.fc = parametrizations.weight_norm(nn.Linear(4, 3))

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class Halved(nn.Module):
    def forward(self, weight):
        return weight * 0.5


class Parametrized(nn.Module):
    """A parametrization that acts on every weight alone: the channels can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), Head(4)
        parametrize.register_parametrization(self.a, "weight", Halved())
        parametrize.register_parametrization(self.b, "weight", Halved())

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


class StandardizedConv(nn.Conv2d):
    """Weight standardisation: every filter has mean zero and variance one."""

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        variance = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(x, (self.weight - mean) / torch.sqrt(variance + 1e-5), self.bias, self.stride, self.padding)


class WeightStandardized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.norm = conv(3, 6), StandardizedConv(6, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.b, self.head = conv(8, 5), Head(5)

    def forward(self, x):
        x = self.norm(self.a(F.relu(self.stem(x))))
        return self.head(F.relu(self.b(F.relu(x))))


class ScaledWeight(nn.Module):
    """A raw kernel times a per-filter gain, computed in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.kernel, self.gain = (
            conv(3, 6),
            nn.Parameter(torch.zeros(8, 6, 3, 3)),
            nn.Parameter(torch.ones(8, 1, 1, 1)),
        )
        self.head = Head(8)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(F.conv2d(x, self.kernel * self.gain, padding=1)))


class LowRank(nn.Module):
    """Weights of several parameters: with a product of two added, a product alone, two layers as one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.base, self.first, self.second = (nn.Linear(n, m) for n, m in ((5, 4), (4, 6), (8, 3), (3, 6)))
        self.up, self.down = nn.Parameter(torch.ones(6, 2)), nn.Parameter(torch.ones(2, 4))
        self.left, self.right = nn.Parameter(torch.ones(8, 2)), nn.Parameter(torch.ones(2, 6))
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(F.linear(self.stem(x), self.base.weight + self.up @ self.down / 2, self.base.bias))
        x = F.relu(x @ (self.left @ self.right).T)
        weight = self.second.weight @ self.first.weight
        return self.out(F.linear(x, weight, self.second.weight @ self.first.bias + self.second.bias))


class CutByNumbers(nn.Module):
    """Weights moved and cut out of parameters by widths that are written down: kept as parameters of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(6, 4), Head(4)
        self.viewed, self.narrowed = nn.Parameter(torch.zeros(6, 8, 1, 1)), nn.Parameter(torch.zeros(6, 6, 1, 1))
        self.indexed = nn.Parameter(torch.zeros(6, 6, 1, 1))

    def forward(self, x):
        x = F.relu(F.conv2d(F.relu(self.a(x)), self.viewed.view(6, 8, 1, 1)))
        x = F.relu(F.conv2d(x, self.narrowed.narrow(1, 0, 6)))
        x = F.relu(F.conv2d(x, self.indexed[:, [0, 1, 2, 3, 4, 5]]))
        return self.head(F.relu(self.b(x)))


class Octave(nn.Module):
    """One parameter cut into the weights of two convolutions, along both axes, by numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), conv(6, 5), conv(4, 5), Head(5)
        self.weight = nn.Parameter(torch.zeros(10, 8, 1, 1))

    def forward(self, x):
        x = F.relu(self.a(x))
        high = F.relu(F.conv2d(input=x, weight=self.weight[0:6, 0:8]))
        low = F.relu(F.conv2d(F.avg_pool2d(x, 2), self.weight[6:, 0:8]))
        return self.head(F.relu(self.b(high)) + F.interpolate(F.relu(self.c(low)), scale_factor=2.0))


class ConstantBlur(nn.Module):
    """A depthwise blur by a kernel that the graph makes: of the image, whose channels stay, and of others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(6, 6), conv(6, 4), Head(4)

    def forward(self, x):
        line = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype)
        kernel = (line[:, None] * line[None, :])[None, None] / 16
        x = F.conv2d(x, kernel.repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1])
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.head(F.relu(self.c(F.conv2d(x, kernel.repeat((x.shape[1], 1, 1, 1)), groups=x.shape[1]))))


class OwnLinears(nn.Module):
    """Linear layers as people write them: a transposed product, a sum with one, an einsum, a bare projection."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.bias = nn.Parameter(torch.zeros(8, 5)), nn.Parameter(torch.zeros(6))
        self.columns, self.letters = nn.Parameter(torch.zeros(8, 6)), nn.Parameter(torch.zeros(7, 6))
        self.proj, self.out = nn.Parameter(torch.zeros(7, 4)), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(torch.matmul(x, self.rows.T))
        x = F.relu(torch.addmm(self.bias, x.flatten(0, 1), self.columns)).view(*x.shape[:-1], -1)
        x = F.relu(torch.einsum("bni,oi->bno", x, self.letters))
        return self.out(F.relu(x @ self.proj))


class LeftAndNamed(nn.Module):
    """Matrices at the left, in another order of letters, scaled, and called by name; a batch of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.letters = nn.Parameter(torch.zeros(6, 5)), nn.Parameter(torch.zeros(6, 7))
        self.scaled, self.named = nn.Parameter(torch.zeros(7, 8)), nn.Parameter(torch.zeros(6, 8))
        self.batch, self.out = nn.Parameter(torch.zeros(2, 3, 3)), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.left @ x.mT)
        x = F.relu(torch.einsum("io,bin->bno", self.letters, x))
        x = F.relu(torch.tensordot(x, self.scaled * 0.5, dims=([2], [0])))
        x = F.relu(torch.inner(x, other=self.named))
        return self.out(F.relu(torch.einsum("bnhi,hio->bnho", x.unflatten(-1, (2, 3)), self.batch).flatten(2)))


MODELS = {
    "shared_module": ZooModel(SharedModule, (image(),), ("stem", "shared"), together=together("stem", "shared")),
    "shared_head": ZooModel(SharedHead, (image(),), ("a", "b", "shared"), {"out": "output"}, together("a", "b")),
    "siamese": ZooModel(Siamese, (image(), image() + 1), ("a", "b")),
    "low_rank": ZooModel(LowRank, (noise(2, 5),), ("stem", "base", "left", "second")),
    "tied_layers": ZooModel(TiedLayers, (image(),), ("stem", "a"), together=together("stem", "a")),
    "tied_embedding": ZooModel(
        TiedEmbedding, (torch.arange(8).view(2, 4),), ("table", "up", "down"), {}, together("table", "down")
    ),
    "tied_transpose": ZooModel(TiedTranspose, (noise(2, 5),), (), {}),
    "embeddings": ZooModel(
        Embeddings,
        (torch.arange(10).view(2, 5), torch.tensor([0, 3])),
        ("words", "positions", "kinds", "fc"),
        together=together("words", "positions"),
    ),
    "weight_normed": ZooModel(WeightNormed, (image(),), ()),
    "parametrized": ZooModel(Parametrized, (image(),), ()),
    "weight_standardized": ZooModel(WeightStandardized, (image(),), ("stem", "a", "b")),
    "scaled_weight": ZooModel(ScaledWeight, (image(),), ("stem", "kernel")),
    "cut_by_numbers": ZooModel(CutByNumbers, (image(),), ("a", "viewed", "narrowed", "indexed", "b")),
    "octave": ZooModel(Octave, (image(),), ("b", "c"), {"a": "cut out by numbers"}),
    "constant_blur": ZooModel(ConstantBlur, (image(),), ("a", "c"), {"b": "constant of the graph"}),
    "left_and_named": ZooModel(LeftAndNamed, (noise(2, 4, 5),), ("left", "letters", "scaled"), {"out": OUTPUT}),
    "own_linears": ZooModel(OwnLinears, (noise(2, 4, 5),), ("rows", "columns", "letters", "proj"), {"out": OUTPUT}),
}
