"""LSQ: the step is learned (Esser et al. 2020, arXiv 1902.08153).

    y = round(clip(v / s, -Qn, Qp)) * s

Unsigned activations: Qn = 0, Qp = 2^b - 1; signed: Qn = 2^(b-1), Qp = 2^(b-1) - 1. One bit signed is not in the paper
(it would have the levels -s and 0): there the levels are -s/2 and s/2.

Gradient: dL/dv passes where -Qn < v / s < Qp. Of the step, each element gives round(v / s) - v / s inside, -Qn or Qp
outside, and the sum is multiplied by 1 / sqrt(N * Qp), N the number of weights, or of features of one sample. The step
is kept positive.

The step of weights starts at 2 * E|v| / sqrt(Qp), as published; with more than 4 bits that puts most levels beyond all
weights (at 8 bits the last one is at 18 standard deviations), and there it starts where the outermost level is the
largest weight. The step of activations starts where the squared error is least on the calibration data, as LSQ+'s does,
for the same reason: the range of an image in 8 bits, which nothing learns, would have 27 of its 256 levels in use.
"""

import math

import torch
from torch import Tensor, nn

from nce_fx.quantizers.base import FLOOR, Grid, WeightQuantizer, signed_grid, working
from nce_fx.quantizers.counting import CountingQuantizer
from nce_fx.quantizers.rounding import StepRound

_MEAN = 0.7978845608
"""E|v| of a standard normal: what an activation is taken for without data, as BatchNorm makes it."""
_PUBLISHED_BITS = 4
"""The most bits at which the published start of weights is a good one."""


def first_step(mean: float, grid: Grid) -> float:
    """Return 2 * E|v| / sqrt(Qp)."""
    return max(2 * mean / math.sqrt(max(grid.high, 1)), FLOOR)


def share(count: int, grid: Grid) -> float:
    """Return 1 / sqrt(N * Qp), by which the gradient of a learned scale is multiplied."""
    return 1 / math.sqrt(count * max(grid.high, 1))


class LsqWeight(WeightQuantizer):
    """Weights on whole multiples of a learned step, such as ``-2s, -s, 0, s`` at 2 bits: any shape."""

    positive = ("step",)

    grid_of = staticmethod(signed_grid)

    def begin(self) -> None:
        """Make what is learned or kept."""
        self.step = nn.Parameter(torch.tensor(1.0))

    @torch.no_grad()
    def start(self, weight: Tensor, normalized: bool = True) -> None:
        """Start the step from the weight."""
        sizes = working(weight).abs()
        step = first_step(float(sizes.mean()), self.grid)
        if self.bits > _PUBLISHED_BITS:
            step = max(min(step, float(sizes.amax()) / self.grid.reach), FLOOR)
        self.step.fill_(step)

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize, with LSQ's gradients."""
        return StepRound.apply(x, self.scale(), self.grid, share(x.numel(), self.grid), True)  # type: ignore[no-any-return]


class LsqActivation(CountingQuantizer):
    """Activations on whole multiples of a learned step, such as ``0, s, 2s, 3s`` at 2 bits: (N, any shape).

    Calibration starts the step; there is one a tensor.
    """

    positive = ("step",)

    def begin(self, signed: bool) -> None:
        """Make what is learned or kept of the range."""
        mean = _MEAN if signed else _MEAN / 2
        self.step = nn.Parameter(torch.tensor(first_step(mean, self.grid)))

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize, with LSQ's gradients."""
        return StepRound.apply(x, self.scale(), self.grid, share(x.shape[1:].numel(), self.grid), False)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """As every activation quantizer, and the step."""
        return f"{super().extra_repr()}, step={float(self.step.detach()):.4g}"
