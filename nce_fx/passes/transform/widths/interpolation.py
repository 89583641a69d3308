"""The published mixture: a narrow candidate is interpolated to the width of the wider one that was drawn with it.

    y = p_a * CWI(x[:C_a], C_b) + p_b * x[:C_b], padded with zeros to the widest      a narrower than b, both drawn

CWI is channel-wise interpolation, adaptive average pooling along the channels (TAS, Dong and Yang 2019; NCE, arXiv
2212.10878): output channel o is the mean of input channels floor(o C_a / C_b) to ceil((o + 1) C_a / C_b) - 1, which are
one or two. Channels go in the order of their importance, part by part where a group has several. All of it is one
matrix along the channel axis, which depends on the draw alone.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
