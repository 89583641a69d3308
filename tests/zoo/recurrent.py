"""Recurrent layers behind convolutions and embeddings: what feeds them can change, what they hold need not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.model import OUTPUT, ZooModel, conv, image, noise


class ConvThenLSTM(nn.Module):
    """Columns of a feature map as a sequence, as in text recognition; both directions, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(1, 4), conv(4, 6)
        self.lstm, self.fc = nn.LSTM(6 * 2, 4, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.a(x)), (4, 1))
        x = F.relu(self.b(x)).flatten(1, 2).transpose(1, 2)
        states, _ = self.lstm(x)
        return self.fc(states)


class GRUTail(nn.Module):
    """Words to a sentence: the last state of a GRU, then a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gru, self.fc, self.out = nn.Embedding(12, 5), nn.GRU(5, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        _, last = self.gru(self.table(x).transpose(0, 1))
        return self.out(F.relu(self.fc(last[-1])))


class CellUnrolled(nn.Module):
    """A GRU cell written out step by step over a few frames."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.update, self.candidate, self.out = (
            nn.Linear(3, 4),
            nn.Linear(10, 6),
            nn.Linear(10, 6),
            nn.Linear(6, 2),
        )

    def forward(self, x):
        state = self.candidate(torch.cat([F.relu(self.read(x[:, 0])), torch.zeros(2, 6, dtype=x.dtype)], 1)).tanh()
        for step in (1, 2):
            both = torch.cat([F.relu(self.read(x[:, step])), state], 1)
            gate = self.update(both).sigmoid()
            state = gate * state + (1 - gate) * self.candidate(both).tanh()
        return self.out(state)


class ConvGRU(nn.Module):
    """A convolutional GRU cell: the state begins as the input's features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gates, self.candidate, self.out = conv(3, 4), conv(8, 8), conv(8, 4), conv(4, 2)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        state = x
        for _ in range(2):
            reset, update = self.gates(torch.cat([x, state], 1)).sigmoid().chunk(2, 1)
            new = self.candidate(torch.cat([x, reset * state], 1)).tanh()
            state = (1 - update) * state + update * new
        return self.out(state)


class ExportedCells(nn.Module):
    """Cells in a decoder that begins with zeros, as many as there are samples: torch.export takes them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.gru, self.lstm, self.out = nn.Linear(3, 6), nn.GRUCell(6, 4), nn.LSTMCell(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = F.relu(self.read(x))
        state, memory = torch.zeros(len(x), 4, dtype=x.dtype), torch.zeros(len(x), 5, dtype=x.dtype)
        for step in x.unbind(1):
            state = self.gru(step, state)
            both = self.lstm(state, (memory, memory))
            memory = both[0] + both[1]
        return self.out(memory)


class SelectiveScan(nn.Module):
    """A state that decays by what is read, written in einsum: outer products, which are elementwise, and inner ones."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.step, self.keys, self.decay = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 8), noise(6, 4)
        self.decay, self.out = nn.Parameter(self.decay), nn.Linear(6, 2)

    def forward(self, x):
        x = F.silu(self.read(x))
        step, (write, read) = F.softplus(self.step(x)), self.keys(x).chunk(2, -1)
        kept = torch.exp(torch.einsum("bld,dn->bldn", step, -torch.exp(self.decay)))
        put = torch.einsum("bld,bln,bld->bldn", step, write, x)
        state, found = torch.zeros_like(put[:, 0]), []
        for index in range(3):
            state = kept[:, index] * state + put[:, index]
            found.append(torch.einsum("bdn,bn->bd", state, read[:, index]))
        return self.out(torch.stack(found, 1) + torch.einsum("bld,bn->bld", x, write[:, 0]))


MODELS = {
    "selective_scan": ZooModel(SelectiveScan, (noise(2, 3, 3),), pinned={"out": OUTPUT}),
    "exported_cells": ZooModel(ExportedCells, (noise(2, 3, 3),), pinned={"out": OUTPUT}),
    "lstm_tail": ZooModel(ConvThenLSTM, (image(1),), ("a", "b"), {"fc": OUTPUT}),
    "gru_tail": ZooModel(GRUTail, (torch.arange(8).view(2, 4),), ("table", "fc"), {"out": OUTPUT}),
    "cell_unrolled": ZooModel(
        CellUnrolled, (torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)),), ("read",)
    ),
    "conv_gru": ZooModel(ConvGRU, (image(),), ("stem", "gates", "candidate"), {"out": OUTPUT}),
}
