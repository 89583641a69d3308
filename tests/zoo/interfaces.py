"""What goes in and what comes out: several inputs, several outputs, structures of them, literal sizes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.model import OUTPUT, Head, ZooModel, conv, image, noise, together


class TwoInputs(nn.Module):
    """An image and a vector, joined; two heads in a dict, one of them on an inner layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.v = conv(3, 6), conv(6, 4), nn.Linear(5, 3)
        self.fc, self.classes, self.aux = nn.Linear(7, 6), nn.Linear(6, 3), Head(6)

    def forward(self, x, z):
        x = F.relu(self.a(x))
        y = F.relu(self.fc(torch.cat([F.relu(self.b(x)).mean((2, 3)), F.relu(self.v(z))], 1)))
        return {"classes": self.classes(y), "auxiliary": self.aux(x)}


class FeatureTuple(nn.Module):
    """A backbone that hands out inner features: those are the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 4), conv(4, 6, stride=2), conv(6, 8, stride=2)

    def forward(self, x):
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        return a, self.c(b)


class NestedOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.boxes, self.scores = conv(3, 6), conv(6, 5), conv(5, 4), conv(5, 2)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        return {"boxes": [self.boxes(x).flatten(2)], "scores": (self.scores(x).sigmoid(), x.mean((1, 2, 3)))}


class DetectionHead(nn.Module):
    """Anchors times classes unfolded by a literal view: the model's own output shape."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = conv(3, 6), conv(6, 2 * 5, 1)

    def forward(self, x):
        y = self.out(F.relu(self.a(x)))
        return y.view(y.shape[0], 2, 5, 8, 8).permute(0, 1, 3, 4, 2).reshape(y.shape[0], -1, 5)


class LiteralSizes(nn.Module):
    """Sizes typed in by hand in view, reshape, split, expand and narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.fc = conv(3, 6), conv(6, 8), conv(4, 4), nn.Linear(4 * 8 * 8, 5)
        self.scale = nn.Linear(6, 8)

    def forward(self, x):
        x = F.relu(self.a(x))
        gate = self.scale(x.mean((2, 3))).view(2, 8, 1, 1).expand(2, 8, 8, 8)
        left, right = torch.split(self.b(x) * gate, 4, 1)
        x = F.relu(self.c(left)) + right.narrow(1, 0, 4)
        return self.fc(x.reshape(2, 256))


class TokensByView(nn.Module):
    """To tokens and back by literal views, then an einsum and a transposed matrix product with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.b = conv(3, 6), nn.Linear(6, 6), conv(6, 4)
        self.mix, self.out = nn.Parameter(torch.zeros(4, 5)), nn.Parameter(torch.zeros(5, 3))

    def forward(self, x):
        x = self.a(x).view(2, 6, 64).transpose(1, 2)
        x = F.relu(self.fc(x)).permute(0, 2, 1).reshape(2, 6, 8, 8)
        return torch.einsum("bc,cd->bd", F.relu(self.b(x)).mean((2, 3)), self.mix).relu() @ self.out


class Upsampled(nn.Module):
    """A segmentation head: bilinear to a literal size and to the size of the input, crops and pads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(3, 6, stride=2), conv(6, 4), conv(4, 2, 1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x):
        y = F.relu(self.b(self.up(F.relu(self.a(x)))))
        y = F.pad(y[:, :, 1:-1, 1:-1], (1, 1, 1, 1), mode="reflect")
        y = F.interpolate(y, size=(6, 6), mode="bicubic", align_corners=False)
        return {"out": F.interpolate(self.out(y), size=x.shape[-2:], mode="bilinear", align_corners=False)}


class AttentionPool(nn.Module):
    """Learned pooling over tokens: a one-channel score, softmax over tokens, a weighted sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.score, self.out = nn.Linear(5, 6), nn.Linear(6, 1), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.out((x * self.score(x).softmax(1)).sum(1))


class MixerBlock(nn.Module):
    """MLP-mixer: one perceptron over channels, one over tokens, whose number is fixed by the input.

    The hidden tokens of the second could change too, but a value carries channels along one of its axes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.n1, self.n2 = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6), nn.LayerNorm(6)
        self.t1, self.t2, self.c1, self.c2, self.out = (
            nn.Linear(4, 5),
            nn.Linear(5, 4),
            nn.Linear(6, 8),
            nn.Linear(8, 6),
            nn.Linear(6, 3),
        )

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.t2(F.gelu(self.t1(self.n1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.c2(F.gelu(self.c1(self.n2(x))))
        return self.out(x.mean(1))


class BatchByLength(nn.Module):
    """The size of the batch as Python's own numbers, which fx does not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 6), conv(6, 4), nn.Linear(4 * 64, 5)

    def forward(self, x):
        x = self.b(F.relu(self.a(x))) + torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
        return self.fc(x.reshape(int(x.shape[0]), 256))


class BatchByNumber(nn.Module):
    """The size of the batch typed in by hand; the input scaled by a number that is read from it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.size = conv(3, 6), conv(6, 4), nn.Linear(4 * 64, 5), 2

    def forward(self, x):
        x = x / x.detach().abs().max().item()
        return self.fc(self.b(F.relu(self.a(x))).reshape(self.size, 256))


class Pair(NamedTuple):
    image: torch.Tensor
    gain: torch.Tensor


class PartsBeside(nn.Module):
    """Inputs with names of their own; layers, parameters and buffers that this forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), Head(4)
        self.beside = nn.ModuleDict({"pretraining": nn.Linear(3, 3), "norm": nn.BatchNorm1d(3)})
        self.token = nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.ones(2))

    def forward(self, pair):
        return self.head(F.relu(self.b(F.relu(self.a(pair.image * pair.gain)))))


class TokensByConvolution(nn.Module):
    """A mixer whose perceptron over tokens is convolutions, and a gate of gMLP, whose tokens a table mixes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.t1, self.t2 = nn.Linear(5, 6), nn.Conv1d(4, 3, 1), nn.Conv1d(3, 4, 1)
        self.up, self.table, self.shift = nn.Linear(6, 8), nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.ones(4))
        self.down, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.t2(F.gelu(self.t1(x)))
        a, b = self.up(x).chunk(2, -1)
        b = torch.einsum("bnd,mn->bmd", b, self.table) + self.shift[:, None]
        return self.out((x + self.down(a * b)).mean(1))


class OuterState(nn.Module):
    """A state space: a matrix of what is read times what is written, summed along what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.write, self.read, self.out = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 3)

    def forward(self, x):
        x = self.a(x)
        state = x.unsqueeze(-1) * self.write(x).unsqueeze(2)
        return self.out(F.relu((state @ self.read(x).unsqueeze(-1)).squeeze(-1)))


MODELS = {
    "tokens_by_convolution": ZooModel(
        TokensByConvolution,
        (noise(2, 4, 5),),
        ("embed", "up", "down"),
        {"out": OUTPUT, "t1": "mixes tokens", "t2": "mixes tokens"},
        together("embed", "down"),
    ),
    "outer_state": ZooModel(OuterState, (noise(2, 4, 5),), ("a",), {"out": OUTPUT, "write": "along another"}),
    "two_inputs_dict": ZooModel(
        TwoInputs, (image(), noise(2, 5)), ("a", "b", "v", "fc"), {"classes": OUTPUT, "aux.fc": OUTPUT}
    ),
    "feature_tuple": ZooModel(FeatureTuple, (image(),), ("b",), {"a": OUTPUT, "c": OUTPUT}),
    "nested_output": ZooModel(NestedOutput, (image(),), ("a", "b"), {"boxes": OUTPUT, "scores": OUTPUT}),
    "detection_head": ZooModel(DetectionHead, (image(),), ("a",), {"out": OUTPUT}),
    "literal_sizes": ZooModel(
        LiteralSizes, (image(),), ("a", "b", "c", "scale"), {"fc": OUTPUT}, together("b", "scale", "c")
    ),
    "tokens_by_view": ZooModel(TokensByView, (image(),), ("a", "fc", "b", "mix"), {"out": OUTPUT}),
    "batch_by_length": ZooModel(BatchByLength, (image(),), ("a", "b"), {"fc": OUTPUT}),
    "batch_by_number": ZooModel(BatchByNumber, (image(),), ("a", "b"), {"fc": OUTPUT}),
    "parts_beside": ZooModel(PartsBeside, (Pair(image(), noise(2, 1, 1, 1)),), ("a", "b"), {"head.fc": OUTPUT}),
    "upsampled": ZooModel(Upsampled, (image(),), ("a", "b"), {"out": OUTPUT}),
    "attention_pool": ZooModel(AttentionPool, (noise(2, 4, 5),), ("a",), {"out": OUTPUT}),
    "mixer": ZooModel(
        MixerBlock, (image(),), ("patch", "c1", "c2"), {"out": OUTPUT, "t1": "mixes tokens"}, together("patch", "c2")
    ),
}
