"""Min-max: the range is what is there; nothing is clipped, nothing is learned (as in Krishnamoorthi 2018,
arXiv 1806.08342, section 2.1).

    lo = min(x, 0), hi = max(x, 0),   s = (hi - lo) / (2^b - 1),   z = round(-lo / s)
    y = (clip(round(x / s) + z, 0, 2^b - 1) - z) * s

Weights have one range per output channel, taken anew in every forward pass; activations one per tensor, over all
calibration batches (without calibration: 0 to 8, or -8 to 8). Zero is always a level. One bit cannot afford that: there
the two levels are lo and hi themselves, for weights without the zero in the minimum and maximum.

Gradient: straight through to weights (all lie inside the range); activations pass inside the calibrated range.
"""

import torch
from torch import Tensor

from nce_fx.quantizers.base import FLOOR, ActivationQuantizer, Grid, Integers, WeightQuantizer, whole, working
from nce_fx.quantizers.ewgs import Ends
from nce_fx.quantizers.rounding import RangeRound, clip_round

RANGE = 8.0
"""How far an activation is taken to reach without calibration."""


class MinMaxWeight(WeightQuantizer):
    """Weights on even levels from the least to the greatest of each output channel, zero among them: any shape."""

    per_channel = True

    def begin(self) -> None:
        """Make the grid, and what is learned or kept."""
        self.low, self.high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def ranges(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and offset, both shaped to broadcast over the weight."""
        weight = working(weight.detach())
        others = self.beside_channels(weight)
        least = weight.amin(others, keepdim=True) if others else weight
        greatest = weight.amax(others, keepdim=True) if others else weight
        if self.bits == 1:
            scale = (greatest - least).clamp(min=FLOOR)
            return scale, least / scale - self.low
        least, greatest = least.clamp(max=0), greatest.clamp(min=0)
        scale = self.fine(((greatest - least) / (2**self.bits - 1)).clamp(min=FLOOR))
        return scale, (least / scale).round() - self.low

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distances between two levels, per channel."""
        return self.ranges(x)[0]

    def ends(self, x: Tensor, step: Tensor | float) -> Ends:
        """Return how far values are rounded to the outermost levels, not clipped, per channel: half a step more."""
        offset = self.ranges(x)[1]
        return (self.low + offset - 0.5) * step, (self.high + offset + 0.5) * step

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize; the gradient goes straight through."""
        scale, offset = self.ranges(x)
        return RangeRound.apply(x, scale, offset, self.low, self.high)  # type: ignore[no-any-return]

    @torch.no_grad()
    def integers(self, weight: Tensor) -> Integers:
        """Return the weight in integers (int8); the offset is minus the zero point."""
        scale, offset = self.ranges(weight)
        q = (working(weight) / scale - offset).round_().clamp_(self.low, self.high)
        return Integers(q.to(torch.int8), scale, offset)


class MinMaxActivation(ActivationQuantizer):
    """Activations on even levels from the least to the greatest value of the calibration: any shape."""

    zero: Tensor

    def begin(self, signed: bool) -> None:
        """Make what is learned or kept of the range."""
        self.register_buffer("step", torch.tensor(1.0))
        self.register_buffer("zero", torch.tensor(0))
        self._fix(-RANGE if signed else 0.0, RANGE)

    def _fix(self, least: float, greatest: float) -> None:
        least, greatest, top = min(least, 0.0), max(greatest, 0.0), 2**self.bits - 1
        step = max((greatest - least) / top, FLOOR)
        self.step.fill_(step)
        if self.bits > 1 or least == 0.0:
            self.zero.fill_(min(max(round(-least / step), 0), top))
        self._from_buffers()

    def _from_buffers(self) -> None:
        if bool(self.is_signed):
            self.grid = super().grid_for(True) if self.bits == 1 else self._shifted()
        else:
            self.grid = super().grid_for(False)

    def _shifted(self) -> Grid:
        zero = int(self.zero)
        return Grid(-zero, 2**self.bits - 1 - zero)

    @property
    def signed(self) -> bool:
        """Whether negative values are kept."""
        return bool(self.is_signed)

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize, with the clipped straight-through gradient."""
        return clip_round(x, self.step_size(x), 1.0, self.grid)

    @torch.no_grad()
    def integers(self, x: Tensor) -> Integers:
        """Return ``x`` in integers (uint8); the offset is minus the zero point."""
        step = self.step_size(x)
        q = whole(working(x), step, self.grid) - self.grid.low
        step = step.to(q.dtype)
        return Integers(q.to(torch.uint8), step, torch.full_like(step, self.grid.low + self.grid.offset))

    def estimate(self) -> float:
        """Return the greatest value seen."""
        return self._greatest

    def adopt(self, estimate: float) -> None:
        """Set the range: from the least value seen, where negative ones are kept, to ``estimate``."""
        self._fix(self._least if self.signed else 0.0, estimate)

    def extra_repr(self) -> str:
        """As every activation quantizer, and the range."""
        low, high = ((end + self.grid.offset) * float(self.step) for end in self.grid[:2])
        return f"{super().extra_repr()}, range={low:.4g}..{high:.4g}"

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._from_buffers()
