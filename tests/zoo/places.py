"""Channels that ride along where something happens between places: spectra, sampling, un-pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.model import OUTPUT, Head, ZooModel, conv, image, noise, together


class FourierFilter(nn.Module):
    """GFNet's global filter: a complex weight for each channel and frequency."""

    def __init__(self, pairs: bool = False) -> None:
        super().__init__()
        self.stem, self.b, self.head = conv(3, 6), conv(6, 4), Head(4)
        self.filter = nn.Parameter(noise(8, 5, 6, 2) if pairs else noise(6, 8, 5))
        if not pairs:
            self.other = nn.Parameter(noise(6, 8, 5, seed=1))
        self.pairs = pairs

    def forward(self, x):
        x = self.stem(x)
        if self.pairs:
            x = torch.fft.rfft2(x.permute(0, 2, 3, 1), dim=(1, 2), norm="ortho")
            x = torch.fft.irfft2(x * torch.view_as_complex(self.filter), s=(8, 8), dim=(1, 2), norm="ortho")
            x = x.permute(0, 3, 1, 2)
        else:
            x = torch.fft.irfft2(torch.fft.rfft2(x) * torch.complex(self.filter, self.other), s=x.shape[-2:])
        return self.head(F.relu(self.b(x)))


class Spectrum(nn.Module):
    """Amplitude and phase of a signal, changed apart and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.amplitude, self.phase = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 6, 1), nn.Conv1d(6, 6, 1)
        self.b, self.fc = nn.Conv1d(6, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        z = torch.fft.fft(self.stem(x))
        amplitude, phase = z.abs() + self.amplitude(z.real), torch.atan2(z.imag, z.real) + self.phase(z.imag)
        x = torch.fft.ifft(torch.polar(amplitude, phase)).real + torch.complex(amplitude, phase).angle()
        return self.fc(F.relu(self.b(x)).mean(2))


class ComplexRotary(nn.Module):
    """LLaMA's rotary positions: pairs of a head's features are turned as complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.1]))
        self.turns: torch.Tensor
        self.register_buffer("turns", torch.view_as_real(torch.polar(torch.ones_like(angles), angles)))

    def turned(self, x):
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        turns = torch.view_as_complex(self.turns).view(1, 5, 1, 2)
        return torch.view_as_real(pairs * turns).flatten(3).transpose(1, 2)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(2, (-1, 4)) for layer in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v.transpose(1, 2))
        return self.out(x.transpose(1, 2).flatten(2))


class UnPooling(nn.Module):
    """SegNet: the decoder puts values where the encoder found its largest."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = conv(3, 6), conv(6, 8), conv(8, 6), conv(6, 3)

    def forward(self, x):
        x, places = F.max_pool2d(F.relu(self.a(x)), 2, return_indices=True)
        x = F.max_unpool2d(self.c(F.relu(self.b(x))), places, (2, 2))
        return self.out(F.relu(x))


class Warped(nn.Module):
    """A spatial transformer, and a flow that says where to read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.theta, self.flow, self.b = conv(3, 6), nn.Linear(6, 6), conv(6, 2), conv(6, 4)
        self.head = Head(4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        theta = torch.tanh(self.theta(x.mean((2, 3)))).view(-1, 2, 3)
        grid = F.affine_grid(theta, [x.shape[0], 1, 8, 8], align_corners=False)
        x = F.grid_sample(x, grid, align_corners=False)
        flow = torch.tanh(self.flow(x)).permute(0, 2, 3, 1)
        return self.head(F.relu(self.b(F.grid_sample(x, flow, align_corners=True))))


class LastToken(nn.Module):
    """CLIP's text tower reads the token at a place that the words say; positions are rows of a raw parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(7, 8), nn.Parameter(noise(7, 8))
        self.a, self.out = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, ids):
        x = F.relu(self.a(self.embed(ids) + self.positions[ids]))
        return self.out(x[torch.arange(x.shape[0]), ids.argmax(-1)])


class BestTokens(nn.Module):
    """The tokens of highest score go on, and are put back among the others; the largest values of each channel, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.score, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 1), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        places = self.score(x).squeeze(-1).topk(3, 1)[1].unsqueeze(-1).expand(-1, -1, x.shape[-1])
        x = x.scatter(1, places, self.b(x.gather(1, places)))
        return self.out(x.topk(2, dim=1).values.mean(1))


class Messages(nn.Module):
    """A graph of nodes and edges: what edges carry is added up where they end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, start, end):
        x = F.relu(self.a(x))
        carried = self.b(x[:, start])
        x = x + torch.zeros_like(x).index_add(1, end, carried)
        return self.out(x.scatter_add(1, end[None, :, None].expand_as(carried), carried.relu()))


class PickedChannels(nn.Module):
    """Channels in the order of their sums, as a list of Python's: which they are is decided by data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.b(F.relu(self.a(x)))
        return self.out(x[:, x.sum(0).argsort().tolist()])


MODELS = {
    "last_token": ZooModel(LastToken, (torch.tensor([[3, 1, 5, 0], [2, 6, 1, 3]]),), ("embed", "a"), {"out": OUTPUT}),
    "best_tokens": ZooModel(
        BestTokens, (noise(2, 5, 6),), ("a", "b"), {"score": "at squeeze", "out": OUTPUT}, together("a", "b")
    ),
    "messages": ZooModel(
        Messages,
        (noise(2, 5, 6), torch.tensor([0, 1, 1, 2, 4]), torch.tensor([1, 0, 2, 3, 0])),
        ("a", "b"),
        {"out": OUTPUT},
        together("a", "b"),
    ),
    "picked_channels": ZooModel(PickedChannels, (noise(2, 6),), ("a",), {"b": "mixed by sort", "out": OUTPUT}),
    "fourier_filter": ZooModel(FourierFilter, (image(),), ("stem", "b")),
    "fourier_filter_of_pairs": ZooModel(lambda: FourierFilter(True), (image(),), ("stem", "b")),
    "spectrum": ZooModel(
        Spectrum, (noise(2, 3, 8),), ("stem", "b"), {"fc": OUTPUT}, together("stem", "amplitude", "phase")
    ),
    "complex_rotary": ZooModel(ComplexRotary, (noise(2, 5, 8),), ("q", "k", "v")),
    "un_pooling": ZooModel(UnPooling, (image(),), ("a", "b", "c"), together=together("a", "c")),
    "warped": ZooModel(Warped, (image(),), ("stem", "b"), {"theta": "where to read", "flow": "where to read"}),
}
