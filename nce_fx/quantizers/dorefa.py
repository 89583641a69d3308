"""DoReFa-Net: weights through tanh, activations on [0, 1] (Zhou et al. 2016, arXiv 1606.06160).

    weights       w' = tanh(g w) / (2 max|tanh(g w)|) + 1/2,   y = 2 * round(n w') / n - 1,   n = 2^b - 1
                  one bit: y = sign(w) * E|w|
    activations   y = round(n clip(x, 0, 1)) / n

Published is g = 1, for weights that are learned under it. Trained float weights are so small that their tanh is a line:
then nearly all lie on the two inner levels at 2 bits, for the largest weight alone says where the levels are (cosine of
w and y on a trained ResNet-20: 0.83). So g is the number for which the levels point most nearly where the weights do
(0.94), found once where quantization starts from float weights, and fixed; g w are the weights DoReFa learns.

Published is a normalization behind every quantized layer, which undoes that levels reach to 1 whatever the weights
are, and a last layer in float. Where none follows, a classifier could not learn how large its scores are. So there y is
multiplied by f max|tanh(g w)|, and the levels reach as far as the weights do; f is found once, likewise, so that the
levels are nearest to the weights. Elsewhere the factor is 1.

Gradient: rounding counts as the identity; the rest is differentiated as it stands, tanh and the maximum included. With
one bit the gradient goes straight through to w. Of weights in half precision it is what half precision can hold: of
those that are all zero it is 1e8. Activations pass where 0 <= x < 1. A signed range (not in the paper)
is [-1, 1 - 2^(1-b)], or {-1, 1} at one bit. Nothing is learned or calibrated but the sign of the range.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nce_fx.quantizers.base import FLOOR, ActivationQuantizer, Integers, WeightQuantizer, as_integers, working
from nce_fx.quantizers.ewgs import scale_gradient
from nce_fx.quantizers.rounding import Nearest, PassRound, clip_round
from nce_fx.quantizers.transforms import Transformable

_SPREADS = tuple(k / 10 for k in range(1, 13))
"""Candidates for g times the deviation of the weights: at 0.8 the inner levels of 2 bits reach to one deviation."""


class DorefaWeight(WeightQuantizer):
    """Weights drawn through tanh onto even levels from -1 to 1, such as ``-1, -1/3, 1/3, 1``: any shape."""

    gain: Tensor
    factor: Tensor
    follows: Tensor
    """Whether the levels reach as far as the weights do."""
    absent: ClassVar[Mapping[str, float]] = {"gain": 1.0, "factor": 1.0, "follows": False}

    def begin(self) -> None:
        """Make what is learned or kept."""
        self.register_buffer("gain", torch.tensor(1.0))
        self.register_buffer("factor", torch.tensor(1.0))
        self.register_buffer("follows", torch.tensor(False))

    @property
    def scale_free(self) -> bool:
        """From -1 to 1, but where the levels follow the weights."""
        return self.bits > 1 and not bool(self.follows)

    @torch.no_grad()
    def start(self, weight: Tensor, normalized: bool = True) -> None:
        """Find g and f; the published 1 stays where no other g is better."""
        weight = working(weight.detach())
        deviation = float(weight.square().mean().sqrt())
        if self.bits == 1 or not deviation:
            return
        best = -1.0
        for gain in (1.0, *(spread / deviation for spread in _SPREADS)):
            self.gain.fill_(gain)
            nearness = float(torch.cosine_similarity(weight.reshape(-1), self(weight).reshape(-1), dim=0))
            if nearness > best + 1e-3:
                best, found = nearness, gain
        self.gain.fill_(found)
        if not normalized:
            self.follows.fill_(True)
            levels = self(weight)
            self.factor.fill_(float((levels * weight).sum() / levels.square().sum()))

    @torch.no_grad()
    def start_again(self, weight: Tensor) -> None:
        """Find g and f anew, as free of the weight's size as before."""
        normalized = not bool(self.follows)
        self.follows.fill_(False)
        self.factor.fill_(1.0)
        self.start(weight, normalized)

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distance between two levels; 0-dimensional, without a gradient."""
        weight = working(x.detach())
        if self.bits == 1:
            return self.fine(2 * weight.abs().mean().clamp(min=FLOOR))
        return self._scaled(weight)[1]

    def _scaled(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Where a weight lies on the grid before rounding, from ``low`` to ``high``, and the distance of two levels."""
        squeezed = torch.tanh(weight * self.gain)
        most = squeezed.abs().flatten().amax(0).clamp(min=FLOOR)
        position = squeezed * (self.grid.reach / most) - self.grid.offset
        scale = self.factor.to(weight.dtype) * torch.where(self.follows, most, 1.0) / self.grid.reach
        return position, self.fine(scale)

    def rounded(self, x: Tensor) -> Tensor:
        """Return ``x`` on its levels; what is rounded, and so how far, is not ``x`` but what tanh makes of it."""
        return super().rounded(x) if self.bits == 1 else self.quantized(x)

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize, with DoReFa's gradient."""
        if self.bits == 1:
            return PassRound.apply(x, self.step_size(x), self.grid)  # type: ignore[no-any-return]
        position, scale = self._scaled(_Widened.apply(x))
        q = scale_gradient(Nearest.apply(position), position, 1.0, self.ewgs)
        return ((q + self.grid.offset) * scale).to(x.dtype)

    def extra_repr(self) -> str:
        """The bits, g and f."""
        reach = " of the largest" if bool(self.follows) else ""
        return f"{super().extra_repr()}, gain={float(self.gain):.4g}, factor={float(self.factor):.4g}{reach}"

    @torch.no_grad()
    def integers(self, weight: Tensor) -> Integers:
        """Return the weight in integers; the offset is 1/2."""
        if self.bits == 1:
            return super().integers(weight)
        position, scale = self._scaled(working(weight))
        return as_integers(position.round_(), scale, self.grid)


class _Widened(Transformable):
    """``working``, with a gradient that is finite in the weights' own dtype. Shapes: any."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """Widen."""
        return working(x).view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the dtype."""
        ctx.dtype = inputs[0].dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Narrow."""
        if grad.dtype == ctx.dtype:
            return grad
        limits = torch.finfo(ctx.dtype)
        return grad.clamp(limits.min, limits.max).to(ctx.dtype)


class DorefaActivation(ActivationQuantizer):
    """Activations clipped to 0 (or -1) to 1, on even levels such as ``0, 1/3, 2/3, 1``: any shape."""

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distance between two levels; 0-dimensional."""
        return self.fine(torch.full((), 1 / self.grid.reach, dtype=working(x).dtype, device=x.device))

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize, with the clipped straight-through gradient."""
        return clip_round(x, self.step_size(x), 1.0, self.grid)

    def estimate(self) -> float:
        """Return 1: the range is fixed."""
        return 1.0

    def adopt(self, estimate: float) -> None:
        """Nothing to set."""
