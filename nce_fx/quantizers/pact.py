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
from torch import Tensor, nn

from nce_fx.quantizers.base import (
    FLOOR,
    ActivationQuantizer,
    Grid,
    Integers,
    Replaced,
    as_integers,
    whole,
    working,
)
from nce_fx.quantizers.rounding import clip_round

CLIP = 8.0
"""Where the clip starts without data; the paper starts at 8 to 10."""

_CANDIDATES = tuple(2.0 ** (-k / 8) for k in range(41))
_SAMPLE = 32768


class Pact(ActivationQuantizer):
    """Activations: (any shape) -> (the same shape). Calibration starts the clip where the squared error is least."""

    def __init__(
        self, bits: int, signed: bool = True, origin: str = "assumed", replaces: Replaced | None = None
    ) -> None:
        super().__init__(bits, signed, origin, replaces)
        self.clip = nn.Parameter(torch.tensor(CLIP))

    def scale(self) -> Tensor:
        """Return the distance between two levels; 0-dimensional."""
        return self.fine(self.clip.clamp(min=FLOOR * self.grid.reach) / self.grid.reach)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize, with PACT's gradients."""
        clip = self.scale() * self.grid.reach if self.exact else self.clip
        return clip_round(x, clip, self.grid.reach, self.grid)

    @torch.no_grad()
    def integers(self, x: Tensor) -> Integers:
        """Return ``x`` in integers; the offset is 0, or 1/2 for one signed bit."""
        scale = self.scale()
        return as_integers(whole(working(x), scale, self.grid), scale, self.grid)

    def estimate(self, x: Tensor, grid: Grid) -> float:
        """Return the clip of least squared error on one batch."""
        return least_error_clip(x, grid)

    def adopt(self, estimate: float) -> None:
        """Set the clip."""
        self.clip.fill_(estimate)

    def extra_repr(self) -> str:
        """As every activation quantizer, and the clip."""
        return f"{super().extra_repr()}, clip={float(self.clip.detach()):.4g}"


def least_error_clip(x: Tensor, grid: Grid) -> float:
    """Return the clip with the least squared error among 41 from max|x| down to max|x| / 32, eight an octave.

    Looks at 32,768 elements at most, evenly spaced, so that calibration costs little and is deterministic.
    """
    x = x.reshape(-1)
    # Sorted once, every candidate's error follows from sums over the runs that it rounds to one level.
    values = np.sort(x[:: max(1, x.numel() // _SAMPLE)].cpu().numpy()).astype(np.float64)
    top = float(np.abs(values[[0, -1]]).max())
    if not math.isfinite(top):
        return top
    levels = np.arange(grid.low, grid.high + 1) + grid.offset
    scales = np.maximum(top * np.array(_CANDIDATES), FLOOR)[:, None] / grid.reach
    cuts = np.searchsorted(values, scales * (levels[:-1] + 0.5))
    ends = np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (0, len(values))))
    sums = np.diff(np.append(0.0, np.cumsum(values))[ends])
    errors = (scales * levels * (scales * levels * np.diff(ends) - 2 * sums)).sum(1)
    return float(top * _CANDIDATES[int(errors.argmin())])
