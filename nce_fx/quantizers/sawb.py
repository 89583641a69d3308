"""SAWB: weights on levels set by two of their moments (Choi et al. 2019, "Accurate and efficient 2-bit quantized neural
networks", SysML).

    a = c1 * sqrt(E[w^2]) - c2 * E|w|,   s = 2a / (2^b - 1),   y = (round(clip(w / s - 1/2)) + 1/2) * s

The 2^b levels are symmetric and evenly spaced from -a to a, none of them zero: -a, -a/3, a/3, a at 2 bits. The line
through six distributions (normal, uniform, Laplace, logistic, triangle, von Mises) predicts the ``a`` of least squared
error from the two moments. The moments are taken anew in every forward pass. Where a <= 0, a = max|w|.

(c1, c2) are published for 2, 3, 4 and 8 bits. For 5, 6 and 7 bits the same fit was made here, on 200,000 quantiles of
each distribution; tests/test_quantizers.py makes it again. (It gives 3.115, 2.050 at 2 bits and 32.9, 36.7 at 8.)
At 1 bit the least squared error is at a = E|w| exactly, which is (0, -1): y = sign(w) * E|w|.

``sawb-channel`` takes the moments of each output channel by itself, so that each has a scale of its own. A BatchNorm
that follows takes such scales in, so they cost nothing; depthwise convolutions, whose channels differ most, gain most.

Gradient: straight through to w everywhere; none through a.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nce_fx.quantizers.base import FLOOR, WeightQuantizer, working
from nce_fx.quantizers.rounding import PassRound
from nce_fx.quantizers.transforms import reads_numbers

_NUMBERS: dict[torch.dtype, type[np.floating[Any]]] = {torch.float32: np.float32, torch.float64: np.float64}

COEFFICIENTS = {
    1: (0.0, -1.0),
    2: (3.12, 2.064),
    3: (7.509, 6.892),
    4: (12.68, 12.80),
    5: (17.09, 18.00),
    6: (22.27, 24.11),
    7: (27.57, 30.40),
    8: (31.76, 35.04),
}
"""Bits -> (c1, c2)."""


def _clip(one: Any, two: Any, c1: Any, c2: Any, root: Any, together: Any) -> Any:
    """Return a of the two norms of what shares a scale: of tensors, or of numbers that are all of one type."""
    return c1 * (two / root) - c2 * (one / together)


class Sawb(WeightQuantizer):
    """Weights on even levels that two of their moments set, such as ``-a, -a/3, a/3, a`` at 2 bits: any shape."""

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distance between two levels, 0-dimensional or shaped to broadcast; without a gradient."""
        weight = working(x.detach())
        c1, c2 = COEFFICIENTS[self.bits]
        one, two = self._norm(weight, 1.0), self._norm(weight, 2.0)
        together = weight.numel() / one.numel()
        numbers = c1, c2, together**0.5, together
        if one.dim() == 0 and weight.dtype in _NUMBERS and reads_numbers(weight):
            # The same arithmetic, digit by digit, in a tenth of the time.
            number = _NUMBERS[weight.dtype]
            with np.errstate(over="ignore", invalid="ignore"):
                found = _clip(*map(number, (one.item(), two.item(), *numbers)))
            if found > FLOOR:
                return self.fine(weight.new_full((), float(found / number(self.grid.reach))))
        clip = _clip(one, two, *numbers)
        clip = torch.where(clip > 0, clip, self._largest(weight))
        return self.fine(clip.clamp(min=FLOOR) / self.grid.reach)

    def _norm(self, weight: Tensor, order: float) -> Tensor:
        """Return the norm of all that shares a scale."""
        return torch.linalg.vector_norm(weight, order)  # type: ignore[no-any-return]

    def _largest(self, weight: Tensor) -> Tensor:
        """Return the largest size; PyTorch's norm of that order takes a processor ten times as long."""
        flat = weight.flatten()  # since PyTorch's exporter to ONNX asks for an axis
        return torch.maximum(-flat.amin(0), flat.amax(0))

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize; the gradient goes straight through."""
        return PassRound.apply(x, self.step_size(x), self.grid)  # type: ignore[no-any-return]


class SawbChannel(Sawb):
    """Weights on even levels that two moments of each output channel set: any shape."""

    per_channel = True

    def _norm(self, weight: Tensor, order: float) -> Tensor:
        others = self.beside_channels(weight)
        return torch.linalg.vector_norm(weight, order, others, keepdim=True) if others else weight.abs()

    def _largest(self, weight: Tensor) -> Tensor:
        others = self.beside_channels(weight)
        if not others:
            return weight.abs()
        return torch.maximum(-weight.amin(others, keepdim=True), weight.amax(others, keepdim=True))
