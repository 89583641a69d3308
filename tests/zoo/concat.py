"""Concatenation: of one tensor with itself, of slices, of a growing stack, across scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.model import OUTPUT, Head, ZooModel, conv, image, together


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn, self.c, self.head = conv(3, 4), conv(3, 6), nn.BatchNorm2d(10), conv(10, 5), Head(5)

    def forward(self, x):
        x = torch.cat([self.a(x), self.b(x)], 1)
        return self.head(F.relu(self.c(F.relu(self.bn(x)))))


class SameTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 4), conv(8, 6), conv(8, 6), Head(6)

    def forward(self, x):
        x = F.relu(self.a(x))
        twice = torch.cat([x, x], 1)
        return self.head(self.b(twice) * self.c(torch.cat([x, -x], 1)))


class OverlappingSources(nn.Module):
    """Two concatenations that share a part, and are added."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.head = conv(3, 4), conv(3, 6), conv(3, 4), conv(10, 5), Head(5)

    def forward(self, x):
        a, b, c = self.a(x), self.b(x), self.c(x)
        return self.head(F.relu(self.d(F.relu(torch.cat([a, b], 1) + torch.cat([b, c], 1)))))


class OverlappingThreeWays(nn.Module):
    """Slices of one producer overlap in two concatenations that go to different layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.head = conv(3, 8), conv(3, 4), conv(10, 5), conv(6, 5), Head(5)

    def forward(self, x):
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        return self.head(self.c(torch.cat([a[:, :6], b], 1)) + self.d(torch.cat([a[:, 4:], b[:, :2]], 1)))


class DifferentKinds(nn.Module):
    """An inception block: convolutions, pooling, a raw input, a depthwise branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.three_a, self.three_b = conv(3, 6), conv(6, 4, 1), conv(6, 3, 1), conv(3, 4)
        self.pool, self.depthwise = conv(6, 4, 1), conv(6, 6, groups=6)
        self.out, self.head = conv(4 + 4 + 4 + 6 + 3, 6, 1), Head(6)

    def forward(self, x):
        y = F.relu(self.stem(x))
        pooled = self.pool(F.avg_pool2d(y, 3, 1, 1))
        y = torch.cat([self.one(y), self.three_b(F.relu(self.three_a(y))), pooled, self.depthwise(y), x], 1)
        return self.head(F.relu(self.out(F.relu(y))))


class DenseCascade(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 3 * k) for k in range(3))
        self.layers = nn.ModuleList(conv(4 + 3 * k, 3, bias=False) for k in range(3))
        self.transition, self.head = conv(13, 6, 1), Head(6)

    def forward(self, x):
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return self.head(F.avg_pool2d(self.transition(torch.cat(features, 1)), 2))


class FeaturePyramid(nn.Module):
    """Lateral 1x1 convolutions, top-down upsampling, one output for each level."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = conv(3, 4), conv(4, 6, stride=2), conv(6, 8, stride=2)
        self.l1, self.l2, self.l3 = conv(4, 5, 1), conv(6, 5, 1), conv(8, 5, 1)
        self.o1, self.o2, self.o3 = conv(5, 5), conv(5, 5), conv(5, 5)

    def forward(self, x):
        c1 = F.relu(self.c1(x))
        c2 = F.relu(self.c2(c1))
        p3 = self.l3(F.relu(self.c3(c2)))
        p2 = self.l2(c2) + F.interpolate(p3, scale_factor=2, mode="nearest")
        p1 = self.l1(c1) + F.interpolate(p2, size=c1.shape[2:], mode="bilinear", align_corners=False)
        return [self.o1(p1), self.o2(p2), self.o3(p3)]


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.d1, self.d2, self.mid = conv(3, 4), conv(4, 6), conv(6, 8)
        self.u2, self.m2 = nn.ConvTranspose2d(8, 6, 2, 2), conv(12, 6)
        self.m1, self.out = conv(6 + 4, 4), conv(4, 2, 1)

    def forward(self, x):
        a = F.relu(self.d1(x))
        b = F.relu(self.d2(F.max_pool2d(a, 2)))
        y = F.relu(self.mid(F.max_pool2d(b, 2)))
        y = F.relu(self.m2(torch.cat([self.u2(y), b], 1)))
        y = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=True)
        return self.out(F.relu(self.m1(torch.cat([y, a], 1))))


class StackedBranches(nn.Module):
    """Branches stacked on an axis of their own, weighed and summed: selective kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gate, self.head = conv(3, 6), conv(3, 6, 5), nn.Linear(6, 12), Head(6)

    def forward(self, x):
        branches = torch.stack([F.relu(self.a(x)), F.relu(self.b(x))], 1)
        gate = self.gate(branches.sum(1).mean((2, 3))).view(x.shape[0], 2, -1, 1, 1)
        return self.head((branches * gate.softmax(1)).sum(1))


class ConcatInSpace(nn.Module):
    """Tokens of two images joined along the token axis: their channels are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.out = conv(3, 6), conv(3, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        tokens = torch.cat([self.a(x).flatten(2), self.b(x).flatten(2)], 2).transpose(1, 2)
        return self.out(F.gelu(self.fc(F.gelu(tokens))))


MODELS = {
    "concat": ZooModel(Concat, (image(),), ("a", "b", "c"), {"head.fc": OUTPUT}),
    "concat_same_twice": ZooModel(SameTwice, (image(),), ("a", "b", "c"), together=together("b", "c")),
    "concat_overlapping": ZooModel(OverlappingSources, (image(),), ("d",)),
    "concat_overlapping_slices": ZooModel(OverlappingThreeWays, (image(),), ("a", "b", "c", "d")),
    "concat_kinds": ZooModel(
        DifferentKinds, (image(),), ("stem", "one", "three_a", "three_b", "pool", "depthwise", "out")
    ),
    "dense_cascade": ZooModel(
        DenseCascade, (image(),), ("stem", "layers.0", "layers.1", "layers.2", "transition"), {"head.fc": OUTPUT}
    ),
    "feature_pyramid": ZooModel(
        FeaturePyramid,
        (image(),),
        ("c1", "c2", "c3", "l1", "l2", "l3"),
        {"o1": OUTPUT, "o2": OUTPUT, "o3": OUTPUT},
        together("l1", "l2", "l3"),
    ),
    "u_net": ZooModel(UNet, (image(),), ("d1", "d2", "mid", "u2", "m2", "m1"), {"out": OUTPUT}),
    "stacked_branches": ZooModel(StackedBranches, (image(),), ("a", "b", "gate"), together=together("a", "b")),
    "concat_in_space": ZooModel(ConcatInSpace, (image(),), ("a", "b", "fc"), together=together("a", "b")),
}
