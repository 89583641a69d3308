"""PACT: activations clipped at a level that is learned (Choi et al. 2018, arXiv 1805.06085).

    y = round(clip(x, 0, a) / s) * s,   s = a / (2^b - 1)

Gradient: dL/dx passes where 0 <= x < a; dL/da is the sum of dL/dy where x >= a. The clip ``a`` is one learned number a
tensor; the paper regularises it with weight decay. A signed range (not in the paper) clips to [-a, a - s] with
s = a / 2^(b-1), or for one bit to {-a, a}; what is clipped pulls on ``a`` by its level over ``a``.
"""

import torch
from torch import Tensor, nn

from nce_fx.quantizers.base import FLOOR, at_least
from nce_fx.quantizers.counting import CLIP, CountingQuantizer, best_clip
from nce_fx.quantizers.rounding import clip_round


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
