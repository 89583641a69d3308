"""PACT: activations clipped at a level that is learned (Choi et al. 2018, arXiv 1805.06085).

    y = round(clip(x, 0, a) / s) * s,   s = a / (2^b - 1)

Gradient: dL/dx passes where 0 <= x < a; dL/da is the sum of dL/dy where x >= a. The clip ``a`` is one learned number a
tensor; the paper regularises it with weight decay. A signed range (not in the paper) clips to [-a, a - s] with
s = a / 2^(b-1), or for one bit to {-a, a}; what is clipped pulls on ``a`` by its level over ``a``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nce_fx.quantizers.base import (
    FLOOR,
    Grid,
    at_least,
)
from nce_fx.quantizers.counting import CountingQuantizer
from nce_fx.quantizers.histogram import Counts
from nce_fx.quantizers.rounding import clip_round

CLIP = 8.0
"""Where the clip starts without data; the paper starts at 8 to 10."""


class Pact(CountingQuantizer):
    """Activations clipped at a learned level c, on even levels such as ``0, c/3, 2c/3, c`` at 2 bits: any shape.

    Calibration starts the clip where the squared error is least.
    """

    positive = ("clip",)

    def begin(self, signed: bool) -> None:
        """Make what is learned or kept of the range."""
        self.clip = nn.Parameter(torch.tensor(CLIP))

    def scale(self) -> Tensor:
        """Return the distance between two levels; 0-dimensional."""
        return self.fine(at_least(self.clip, FLOOR * self.grid.reach) / self.grid.reach)

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize, with PACT's gradients."""
        clip = self.scale() * self.grid.reach if self.exact else self.clip
        return clip_round(x, clip, self.grid.reach, self.grid)

    def estimate(self) -> float:
        """Return the clip of least squared error on all that was counted."""
        values, counts = self.observed()
        return best_clip(values, counts, self.grid)[0]

    def adopt(self, estimate: float) -> None:
        """Set the clip."""
        self.clip.fill_(estimate)

    def extra_repr(self) -> str:
        """As every activation quantizer, and the clip."""
        return f"{super().extra_repr()}, clip={float(self.clip.detach()):.4g}"


def best_clip(values: NDArray[np.float64], counts: Counts, grid: Grid) -> tuple[float, float]:
    """Return the clip of least squared error between max|x| / 32 and max|x|, and by how much less than with zeros.

    First among 41 candidates, eight an octave, then among those around the best, 64 an octave: 1.1 % apart.

    Args:
        values: what there is to quantize, in rising order.
        counts: how often each value is there.
        grid: what it is rounded to.
    """
    top = float(np.abs(values[[0, -1]]).max())
    if not math.isfinite(top):
        return top, 0.0
    # Every candidate's error follows from sums over the runs of values that it rounds to one level.
    many = np.append(0, np.cumsum(counts))
    sums = np.append(0.0, np.cumsum(values * counts))
    levels = np.arange(grid.low, grid.high + 1) + grid.offset
    best = 0.0
    for octaves in (np.arange(41) / 8, np.arange(-8, 9) / 64):
        candidates = np.clip(best - octaves, -5.0, 0.0)
        scales = np.maximum(top * 2.0**candidates, FLOOR)[:, None] / grid.reach
        cuts = np.searchsorted(values, scales * (levels[:-1] + 0.5))
        ends = np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (0, len(values))))
        errors = (scales * levels * (scales * levels * np.diff(many[ends]) - 2 * np.diff(sums[ends]))).sum(1)
        best = float(candidates[int(errors.argmin())])
    return float(top * 2.0**best), float(errors.min())
