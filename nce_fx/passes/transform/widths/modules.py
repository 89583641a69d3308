"""The nodes of a network whose widths are being chosen: a draw a group, a norm a BatchNorm, a choice a reader.

A draw gives the shares p of a group's candidates, from narrow to wide; at most two of them are not zero. With C_j the
channels of candidate j, in the order of their importance, what reads the group reads

    y = sum over j of p_j * x[:C_j], padded with zeros to the widest
      = x * m,     m_c = sum of p_j over the candidates that have channel c

so the widest candidate is computed once. With one candidate p = (1) and everything is the plain network, bit for bit.
With p one-hot it is the network in which the other channels have been removed.

That is one of two mixtures. In the published one a narrow candidate is interpolated to the width of the wider one that
was drawn with it:

    y = p_a * CWI(x[:C_a], C_b) + p_b * x[:C_b], padded with zeros to the widest      a narrower than b, both drawn

CWI is channel-wise interpolation, adaptive average pooling along the channels (TAS, Dong and Yang 2019; NCE, arXiv
2212.10878): output channel o is the mean of input channels floor(o C_a / C_b) to ceil((o + 1) C_a / C_b) - 1, which are
one or two. Channels go in the order of their importance, part by part where a group has several. All of it is one
matrix along the channel axis, which depends on the draw alone.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EVERY_CANDIDATE = -1
"""In place of the narrowest candidate that has an element: every one has it, whatever is drawn."""


class WidthDraw(nn.Module):
    """The preferences of one group's candidates, and the shares drawn from them: () -> (candidates,).

    In training: Gumbel-softmax over two candidates, drawn without replacement (TAS, Dong and Yang 2019):

        l = (log_softmax(alpha) + noise[0]) / tau,   two largest of l + noise[1],   softmax of l over those two

    In evaluation: the preferred candidate alone. ``noise`` and ``tau`` are set by whoever runs the search, so that all
    readers of a group, and all processes, share one draw.
    """

    noise: Tensor

    def __init__(self, group: str, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.group, self.widths = group, widths
        self.alpha = nn.Parameter(torch.zeros(len(widths)))
        self.register_buffer("noise", torch.zeros(2, len(widths)), persistent=False)
        self.tau = 1.0

    def preference(self) -> Tensor:
        """Return the softmax of the preferences, in float64."""
        return self.alpha.double().softmax(0)

    def preferred(self) -> int:
        """Return the index of the preferred candidate."""
        return int(self.alpha.argmax())

    def forward(self) -> Tensor:
        """Return the share of every candidate; they sum to 1."""
        if not self.training:
            return F.one_hot(self.alpha.argmax(), len(self.widths)).to(self.alpha.dtype)
        logits = (self.alpha.log_softmax(0) + self.noise[0]) / self.tau
        drawn = (logits.detach() + self.noise[1]).topk(min(2, len(self.widths))).indices
        return torch.zeros_like(logits).scatter(0, drawn, logits[drawn].softmax(0))

    def extra_repr(self) -> str:
        """The group and its candidates."""
        return f"{self.group}, widths={self.widths}"


class WidthChoice(nn.Module):
    """What one layer reads of the groups whose channels it sums: (any shape), draws -> (the same shape)."""

    has: Tensor
    """For each element and each candidate of all draws in turn: whether the candidate has the element."""
    own: Tensor
    """1 at elements that every candidate has."""

    def __init__(self, member: Tensor, candidates: tuple[int, ...]) -> None:
        """Mix elements.

        Args:
            member: for each element, up to broadcasting: the narrowest candidate that has it, counted over all draws in
                turn, or EVERY_CANDIDATE.
            candidates: how many each draw has.
        """
        super().__init__()
        self.shape = member.shape
        rank = torch.arange(sum(candidates))
        draw = torch.arange(len(candidates)).repeat_interleave(torch.tensor(candidates))
        first = member.reshape(-1, 1)
        has = (rank >= first) & (draw == draw[first]) & (first != EVERY_CANDIDATE)
        self.register_buffer("has", has.float(), persistent=False)
        self.register_buffer("own", (first[:, 0] == EVERY_CANDIDATE).float(), persistent=False)

    def forward(self, x: Tensor, *draws: Tensor) -> Tensor:
        """Return ``x`` times the share of the candidates that have each channel."""
        shares = torch.addmv(self.own, self.has, torch.cat(draws) if len(draws) > 1 else draws[0])
        return x * shares.view(self.shape).to(x.dtype)


class WidthNorm(nn.Module):
    """BatchNorm with a scale and a shift for each candidate: (N, C, ...), draw -> (N, C, ...).

    Statistics are of single channels, so all candidates share them. A channel's scale is the mean over the candidates
    that have it, weighted with their shares; the widest's where no drawn one does.
    """

    member: Tensor

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, member: Tensor, candidates: int) -> None:
        super().__init__()
        self.candidates = candidates
        # Of one axis, like the scales and shifts they are, so that no weight decay applies to them.
        self.weight = nn.Parameter(norm.weight.detach().repeat(candidates))
        self.bias = nn.Parameter(norm.bias.detach().repeat(candidates))
        norm.weight, norm.bias = None, None  # type: ignore[assignment]
        self.norm = norm
        self.register_buffer("member", member)
        has = torch.arange(candidates)[:, None] >= member
        self.register_buffer("has", has.to(self.weight), persistent=False)
        least = torch.zeros(candidates, 1)
        least[-1] = 1e-30
        self.register_buffer("least", least.to(self.weight), persistent=False)

    has: Tensor
    least: Tensor

    def rows(self, name: str) -> Tensor:
        """Return ``weight`` or ``bias`` as (candidates, C)."""
        values: Tensor = getattr(self, name)
        return values.view(self.candidates, -1)

    def forward(self, x: Tensor, draw: Tensor) -> Tensor:
        """Normalize, scale and shift."""
        norm = self.norm
        training = norm.training or norm.running_mean is None
        momentum = norm.momentum if norm.momentum is not None else 0.0
        if norm.training and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if norm.momentum is None:
                momentum = 1.0 / float(norm.num_batches_tracked)
        weight, bias = self._affine(draw)
        return F.batch_norm(x, norm.running_mean, norm.running_var, weight, bias, training, momentum, norm.eps)

    def _affine(self, draw: Tensor) -> tuple[Tensor, Tensor]:
        if self.candidates == 1:
            return self.weight, self.bias
        parts = draw.to(self.has.dtype)[:, None] * self.has
        # Whoever nobody drew takes the widest's: 1e-30 is lost beside any share that is drawn.
        alone = parts.detach() + self.least
        total = alone.sum(0)
        # Where only one drawn candidate has a channel its scale does not depend on the shares; dividing by a share that
        # may be 1e-20 would make that zero gradient one of rounding errors.
        parts = torch.where(total > 0.999, parts, alone / total)
        both = torch.stack([self.rows("weight"), self.rows("bias")])
        weight, bias = (parts * both).sum(1).unbind()
        return weight, bias

    def plain(self) -> nn.Module:
        """Return the BatchNorm of the widest candidate."""
        self.norm.weight = nn.Parameter(self.rows("weight")[-1].detach().clone())
        self.norm.bias = nn.Parameter(self.rows("bias")[-1].detach().clone())
        return self.norm


class Block(NamedTuple):
    """Channels of one part of one group on a channel axis."""

    draw: int
    """Index of the group's draw."""
    positions: Tensor
    """Where each channel lies, in the order in which they go (channels x positions of one channel)."""
    kept: Tensor
    """How many of them each candidate has."""


class WidthInterpolation(nn.Module):
    """What one layer reads of the groups whose channels it sums: (any shape), draws -> (the same shape)."""

    own: Tensor
    """1 at positions that every candidate has."""

    def __init__(self, axis: int, length: int, blocks: tuple[Block, ...]) -> None:
        """Mix along an axis, counted from the end."""
        super().__init__()
        self.axis, self.draws = axis, tuple(block.draw for block in blocks)
        own = torch.ones(length)
        for index, block in enumerate(blocks):
            own[block.positions.reshape(-1)] = 0.0
            self.register_buffer(f"positions_{index}", block.positions)
            self.register_buffer(f"kept_{index}", block.kept)
        self.register_buffer("own", own)

    def forward(self, x: Tensor, *draws: Tensor) -> Tensor:
        """Return the mixture."""
        if all(len(draw) == 1 for draw in draws):
            return x
        matrix = self.own.to(draws[0].dtype).diag()
        for index, draw in enumerate(self.draws):
            positions, kept = getattr(self, f"positions_{index}"), getattr(self, f"kept_{index}")
            matrix = self._mixed(matrix, positions, kept, draws[draw])
        matrix = matrix.to(x.dtype)
        if self.axis == -1:
            return F.linear(x, matrix)
        # Turned to the last axis and back, channels would lie last in memory. oneDNN's gradient of a strided 1x1
        # convolution of fewer than 8 (with AVX-512 16) such channels writes beyond its workspace (oneDNN issue 6035).
        before, length = x.shape[: self.axis], x.shape[self.axis]
        return F.conv1d(x.reshape(before.numel(), length, -1), matrix[:, :, None]).reshape(x.shape)

    @staticmethod
    def _mixed(matrix: Tensor, positions: Tensor, kept: Tensor, draw: Tensor) -> Tensor:
        drawn = (draw.detach() > 0).int()
        wide = len(draw) - 1 - drawn.flip(0).argmax()
        share = draw[wide]
        rest = draw.sum() - share
        rank = torch.arange(len(positions), device=positions.device)
        narrow_width, width = kept[drawn.argmax()], kept[wide]
        first = (rank * narrow_width // width).clamp(max=len(positions) - 1)
        last = (((rank + 1) * narrow_width + width - 1) // width - 1).clamp(max=len(positions) - 1)
        there = (rank < width).to(draw.dtype)[:, None].expand(positions.shape)
        for columns, weight in ((rank, share), (first, 0.5 * rest), (last, 0.5 * rest)):
            matrix = matrix.index_put((positions, positions[columns]), weight * there, accumulate=True)
        return matrix


WIDTH_MODULES: tuple[Any, ...] = (WidthDraw, WidthChoice, WidthInterpolation, WidthNorm)
