"""SEQ, stretched elastic quantization: SAWB's levels at a scale that is learned (Liu et al. 2025, "ParetoQ", arXiv
2502.02631).

    y = alpha (round(n clip(w / alpha, -1, 1) - 1/2) + 1/2) / n,   n = 2^(b-1)

The 2^b levels are symmetric and evenly spaced, none of them zero: -3a/4, -a/4, a/4, 3a/4 at 2 bits.

Gradient: dL/dw passes where |w| < alpha. Of alpha, each element gives (y - w) / alpha inside and y / alpha outside, and
the sum is multiplied by 1 / sqrt(N * Qp), N the number of weights, Qp = 2^(b-1) - 1 or at 1 bit 1. (Published is
0.99 alpha for the border, which keeps w / alpha from being rounded to a level beyond; here the levels end by
themselves.) Published is one alpha a row, from its largest weight; here it is one a tensor, and starts where SAWB's
levels are.
"""

import torch
from torch import Tensor, nn

from nce_fx.quantizers.base import WeightQuantizer, at_least
from nce_fx.quantizers.lsq import share
from nce_fx.quantizers.rounding import StepRound
from nce_fx.quantizers.sawb import Sawb


class Seq(WeightQuantizer):
    """Weights on the levels of SAWB, such as ``-a, -a/3, a/3, a`` at 2 bits, at a learned scale: any shape."""

    positive = ("alpha",)

    def begin(self) -> None:
        """Make what is learned or kept."""
        self.alpha = nn.Parameter(torch.tensor(1.0))

    @torch.no_grad()
    def start(self, weight: Tensor, normalized: bool = True) -> None:
        """Start where SAWB's levels are."""
        self.alpha.fill_(float(Sawb(self.bits).step_size(weight)) * 2 ** (self.bits - 1))

    def scale(self) -> Tensor:
        """Return the distance between two levels; 0-dimensional."""
        return self.fine(at_least(self.alpha) / 2 ** (self.bits - 1))

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize, with SEQ's gradients."""
        return StepRound.apply(x, self.scale(), self.grid, share(x.numel(), self.grid), True, 0.5)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The bits, and the scale."""
        return f"{super().extra_repr()}, alpha={float(self.alpha.detach()):.4g}"
