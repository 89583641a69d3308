"""LSQ+: LSQ with an offset that is learned, for activations with a short negative side, such as those of swish
(Bhalgat et al. 2020, arXiv 2004.09576).

    y = round(clip(x / s, z, z + n)) * s,   z = round(b / s),   n = 2^b - 1

Published is y = round(clip((x - b) / s, 0, n)) * s + b. There zero need not be a level, which zero padding and integers
need; so here the offset is the nearest whole number of steps, from -n to 0. An unsigned range has none and is LSQ's.

Gradient: dL/dx passes where the clip does not act. Of the step, each element gives y / s - x / s inside, and outside
0 or n; of the offset b, 0 inside and 1 outside. Both sums are multiplied by LSQ's 1 / sqrt(N * n). Step and offset
start where the squared error is least on the calibration data, as published. The paper's weights are LSQ's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nce_fx.quantizers.base import FLOOR, Grid, Integers, working
from nce_fx.quantizers.counting import CLIP, CountingQuantizer, best_clip
from nce_fx.quantizers.ewgs import Ends
from nce_fx.quantizers.lsq import share
from nce_fx.quantizers.rounding import StepRound, gradient, inside, pull_on_step, total
from nce_fx.quantizers.saved_tensors import pack_levels, packs_activations, register
from nce_fx.quantizers.transforms import Transformable

_TRIED = 17
"""How many offsets calibration tries, evenly from -n to 0, beside the one of the least and greatest value."""


class LsqPlus(CountingQuantizer):
    """Activations on whole multiples of a learned step, moved by a learned offset: (N, any shape)."""

    positive = ("step",)

    def begin(self, signed: bool) -> None:
        """Make what is learned or kept of the range."""
        self.most = 2**self.bits - 1
        self.step = nn.Parameter(torch.tensor(CLIP / self.grid.reach))
        self.shift = nn.Parameter(torch.tensor(-CLIP if signed else 0.0))

    def zero(self) -> Tensor:
        """Return z, the lowest level in steps; 0-dimensional, of the scale's dtype, without a gradient."""
        lowest = -self.most if self.signed else 0
        return (self.shift.detach() / self.scale().detach()).round().clamp(lowest, 0)

    def ends(self, x: Tensor, step: Tensor | float) -> Ends:
        """Return the lowest and the highest level, z and z + n steps."""
        zero = self.zero()
        return zero * step, (zero + self.most) * step

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize, with LSQ+'s gradients."""
        grid = Grid(0, self.most)
        amount = share(x.shape[1:].numel(), grid)
        if not self.signed:
            # The offset takes part without effect, since DDP waits for a gradient of each parameter.
            scale = self.scale() + 0 * working(self.shift)
            return StepRound.apply(x, scale, grid, amount, False)  # type: ignore[no-any-return]
        shift = working(self.shift)
        return _ShiftedRound.apply(x, self.scale(), shift, self.zero(), self.most, amount)  # type: ignore[no-any-return]

    @torch.no_grad()
    def integers(self, x: Tensor) -> Integers:
        """Return ``x`` in integers (uint8); the offset is z."""
        scale, zero = self.scale(), self.zero()
        q = _nearest(x, scale, zero, self.most).sub_(zero)
        return Integers(q.to(torch.uint8), scale.to(q.dtype), zero.to(q.dtype))

    def grid_now(self) -> Grid:
        """Return the whole numbers from z to z + n."""
        low = int(self.zero())
        return Grid(low, low + self.most)

    @torch.no_grad()
    def estimate(self) -> float:
        """Return the step of least squared error; the offset that goes with it is set."""
        values, counts = self.observed()
        offsets = {0}
        if self.signed:
            reach = self._least / max(self._greatest - self._least, FLOOR)
            tried = [*(-self.most * k / (_TRIED - 1) for k in range(_TRIED)), self.most * reach]
            offsets = {min(max(round(z), -self.most), 0) for z in tried}
        found = []
        for z in sorted(offsets):
            grid = Grid(z, z + self.most)
            clip, error = best_clip(values, counts, grid)
            found.append((error, clip / grid.reach, z))
        _, step, z = min(found)
        self.shift.fill_(z * max(step, FLOOR))
        return step

    def extra_repr(self) -> str:
        """As every activation quantizer, with the step and the lowest level."""
        step = float(self.scale().detach())
        return f"{super().extra_repr()}, step={step:.4g}, lowest={step * int(self.zero()):.4g}"


def _nearest(x: Tensor, scale: Tensor, zero: Tensor, most: int) -> Tensor:
    # Rounded before z is subtracted: ties go to the even step, as in every runtime.
    return (working(x) / scale).clamp(zero, zero + most).round_()


class _ShiftedRound(Transformable):
    """y = q s. Keeps x, and y, which the layer that reads it keeps anyway.

    Shapes: x any; scale, shift and zero 0-dimensional; y as x.
    """

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor, zero: Tensor, most: int, share: float) -> Tensor:
        """Quantize."""
        q = _nearest(x, scale, zero, most)
        packed = pack_levels(q - zero, scale, zero, x.dtype, 0) if packs_activations() else None
        return register(q.mul_(scale).to(x.dtype), packed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep x and y."""
        x, scale, _, zero, ctx.most, ctx.share = inputs
        ctx.save_for_backward(x, scale, zero, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """Split the gradient into what passes and what is clipped."""
        x, scale, zero, y = ctx.saved_tensors
        passed = inside(grad, x, scale, (zero, zero + ctx.most))
        outside = total(grad) - total(passed)
        # Outside, levels count from z.
        pull = pull_on_step(grad, passed, x, y, scale) - zero * outside
        return passed, gradient(pull * ctx.share, scale), gradient(outside * ctx.share, scale), None, None, None
