"""Arithmetic that sees how many channels there are: sums, means, shapes as numbers, products of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.model import OUTPUT, Head, ZooModel, conv, image, noise, together


class Between(nn.Module):
    """A function between two layers on images, with a branch around it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), Head(4)

    def forward(self, x):
        return self.head(F.relu(self.b(self.between(F.relu(self.a(x))))))

    def between(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class ScaleFromShape(Between):
    """A factor computed from the number of channels must keep its value when they change."""

    def between(self, x):
        return x * x.shape[1] ** -0.5


class ShareOfSum(Between):
    """Every channel as its share of the sum: copies count once each, so the sum must not grow."""

    def between(self, x):
        return x / (x.sum(1, keepdim=True) + 1.0)


class GlobalMean(Between):
    """One number for an image, over channels and space."""

    def between(self, x):
        return x - x.mean((1, 2, 3), keepdim=True)


class Deviation(Between):
    def between(self, x):
        return x / (x.std(1, keepdim=True, unbiased=False) + 0.1)


class UnbiasedDeviation(Between):
    """Divides by n - 1: no number of copies keeps it."""

    def between(self, x):
        return x / (x.std(1, keepdim=True) + 0.1)


class Largest(Between):
    """The maximum does not see copies."""

    def between(self, x):
        return x - x.amax(1, keepdim=True)


class LargestAlone(nn.Module):
    """Nothing but a maximum with its places reads the channels: of copies, each must get its share of the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 5), conv(3, 5), conv(2, 4), Head(4)

    def forward(self, x):
        most, least = torch.max(self.a(x), 1, keepdim=True)[0], self.b(x).min(dim=1, keepdim=True).values
        return self.head(F.relu(self.c(torch.cat([most, least], 1))))


class LogSumExp(Between):
    def between(self, x):
        return x - x.logsumexp(1, keepdim=True)


class Cumulative(Between):
    """Each channel adds all before it: the order and the number matter."""

    def between(self, x):
        return x.cumsum(1)


class Sorted(Between):
    def between(self, x):
        return x.sort(1).values


class TopChannels(Between):
    """The three largest; a copy would be among them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.b = conv(3, 4)

    def between(self, x):
        return x.topk(3, dim=1).values


class ChannelRamp(Between):
    """A ramp made of the number of channels."""

    def between(self, x):
        return x * torch.arange(x.shape[1], dtype=x.dtype).view(1, -1, 1, 1)


class FourierChannels(Between):
    """A transform along the channels: nothing is known of it."""

    def between(self, x):
        return torch.fft.rfft(x, dim=3).real.repeat_interleave(2, 3)[..., :8] + torch.fft.fft(x, dim=1).real


class MaxOut(Between):
    """Neighbours compete: pairs stay pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.b = conv(3, 4)

    def between(self, x):
        return x.view(x.shape[0], 3, 2, 8, 8).amax(2)


class GroupMeans(Between):
    """The mean of each of three groups of channels, given back to its channels."""

    def between(self, x):
        batch, channels, height, width = x.shape
        grouped = x.view(batch, 3, channels // 3, height, width)
        return (grouped - grouped.mean(2, keepdim=True)).reshape(batch, channels, height, width)


class Repeated(Between):
    """Channels repeated whole, and each beside itself."""

    def __init__(self) -> None:
        super().__init__()
        self.b = conv(24, 4)

    def between(self, x):
        return torch.cat([x.repeat(1, 2, 1, 1), x.repeat_interleave(2, dim=1)], 1)


class GreyToMany(nn.Module):
    """A map of one channel repeated to a literal number, and expanded to another map's."""

    def __init__(self) -> None:
        super().__init__()
        self.grey, self.a, self.b, self.head = conv(3, 1), conv(3, 6), conv(6, 4), Head(4)

    def forward(self, x):
        grey, y = self.grey(x), self.a(x)
        return self.head(F.relu(self.b(F.relu(y) + grey.repeat(1, 6, 1, 1) * grey.expand_as(y))))


class OuterProduct(nn.Module):
    """Bilinear pooling: every channel of one branch times every one of the other, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 4), conv(3, 3), nn.Linear(12, 5)

    def forward(self, x):
        a, b = F.relu(self.a(x)).flatten(2), F.relu(self.b(x)).flatten(2)
        return self.fc(torch.bmm(a, b.transpose(1, 2)).flatten(1))


class Distances(nn.Module):
    """A prototype head: squared distances and cosines between an embedding and learned rows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.embed, self.rows = nn.Linear(5, 6), nn.Linear(6, 4), nn.Parameter(torch.zeros(3, 4))

    def forward(self, x):
        x = self.embed(F.relu(self.a(x)))
        cosine = F.cosine_similarity(x[:, None], self.rows[None], dim=-1)
        return (x[:, None] - self.rows[None]).pow(2).sum(-1) + cosine


class DynamicConvolution(nn.Module):
    """CondConv: kernels mixed per sample, applied as one grouped convolution over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.route, self.experts = conv(3, 6), nn.Linear(6, 2), nn.Parameter(torch.zeros(2, 4, 6, 3, 3))
        self.head = Head(4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        weights = self.route(x.mean((2, 3))).sigmoid()
        kernels = (weights @ self.experts.view(2, -1)).view(-1, 6, 3, 3)
        x = F.conv2d(x.reshape(1, -1, 8, 8), kernels, padding=1, groups=2)
        return self.head(F.relu(x.view(2, 4, 8, 8)))


class SplitAttention(nn.Module):
    """ResNeSt: a grouped convolution to twice the channels, the halves weighed by a softmax between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.squeeze, self.excite = conv(3, 6), conv(6, 12, groups=2), conv(6, 4, 1), conv(4, 12, 1)
        self.head = Head(6)

    def forward(self, x):
        x = F.relu(self.a(F.relu(self.stem(x))))
        batch, channels = x.shape[:2]
        halves = x.reshape(batch, 2, channels // 2, *x.shape[2:])
        gate = self.excite(F.relu(self.squeeze(halves.sum(1).mean((2, 3), keepdim=True))))
        gate = F.softmax(gate.view(batch, 2, channels // 2), 1).reshape(batch, -1, 1, 1)
        return self.head((x * gate).reshape(batch, 2, channels // 2, 8, 8).sum(1))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.pair, self.out = nn.Linear(4, 5), nn.Linear(4, 3), nn.Bilinear(5, 3, 6), nn.Linear(6, 2)

    def forward(self, x, y):
        return self.out(F.relu(self.pair(F.relu(self.a(x)), F.relu(self.b(y)))))


def _between(kind: type[nn.Module], *free: str, **pinned: str) -> ZooModel:
    return ZooModel(kind, (image(),), ("b", *free), {"head.fc": OUTPUT, **pinned})


class NetworkForEachChannel(nn.Module):
    """An entropy model: a small network of its own for each channel, and noise in the place of rounding in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 4), Head(4)
        self.medians = nn.Parameter(torch.zeros(6, 1, 3))
        self.matrices = nn.ParameterList([torch.zeros(6, 3, 1), torch.zeros(6, 1, 3)])
        self.shifts = nn.ParameterList([torch.zeros(6, 3, 1), torch.zeros(6, 1, 1)])

    def forward(self, x):
        x = self.a(x)
        if self.training:
            x = x + torch.empty_like(x).uniform_(-0.5, 0.5)
        each = x.permute(1, 0, 2, 3).contiguous()
        values = each.reshape(each.size(0), 1, -1) - self.medians[:, :, 1:2]
        for matrix, shift in zip(self.matrices, self.shifts, strict=True):
            values = torch.matmul(F.softplus(matrix), values) + shift
            values = values + 0.3 * torch.tanh(values)
        return self.head(F.relu(self.b(values.reshape(each.shape).permute(1, 0, 2, 3))))


MODELS = {
    "network_for_each_channel": _between(NetworkForEachChannel, "a"),
    "scale_from_shape": _between(ScaleFromShape, "a"),
    "share_of_sum": _between(ShareOfSum),
    "global_mean": _between(GlobalMean, "a"),
    "deviation": _between(Deviation, "a"),
    "unbiased_deviation": _between(UnbiasedDeviation),
    "largest": _between(Largest, "a"),
    "largest_alone": ZooModel(LargestAlone, (image(),), ("a", "b", "c"), {"head.fc": OUTPUT}),
    "log_sum_exp": _between(LogSumExp),
    "cumulative": _between(Cumulative, a="cumsum"),
    "sorted": _between(Sorted, a="sort"),
    "top_channels": _between(TopChannels, a="topk"),
    "channel_ramp": _between(ChannelRamp),
    "fourier": _between(FourierChannels, a="fft"),
    "max_out": _between(MaxOut, "a"),
    "group_means": _between(GroupMeans, "a"),
    "repeated": _between(Repeated, "a"),
    "grey_to_many": ZooModel(GreyToMany, (image(),), ("a", "b")),
    "outer_product": ZooModel(OuterProduct, (image(),), ("a", "b"), {"fc": OUTPUT}),
    "distances": ZooModel(Distances, (noise(2, 5),), ("a",)),
    "dynamic_convolution": ZooModel(DynamicConvolution, (image(),), ()),
    "split_attention": ZooModel(SplitAttention, (image(),), ("squeeze",), together=together("stem", "a")),
    "bilinear": ZooModel(Bilinear, (noise(2, 4), noise(2, 4, seed=1)), ("a", "b", "pair"), {"out": OUTPUT}),
}
