"""StatsQ: a scale from the mean magnitude of each output channel, so that levels do not follow single steps (Liu, Liu
and Cheng 2023, "Oscillation-free quantization for low-bit vision transformers", arXiv 2302.02210).

    g = 2 E|w| over the channel,   y = g (round(n clip(w / g, -1, 1) - 1/2) + 1/2) / n,   n = 2^(b-1)

The 2^b levels are those of SEQ. The mean is taken anew in every forward pass.

Gradient: dL/dw passes where |w| <= g; none through g.
"""

from torch import Tensor

from nce_fx.quantizers.base import FLOOR, WeightQuantizer, working
from nce_fx.quantizers.rounding import PassRound


class StatsQ(WeightQuantizer):
    """Weights on even levels, as far apart as the mean magnitude of each output channel says: any shape."""

    per_channel = True

    def step_size(self, x: Tensor) -> Tensor:
        """Return the distances between two levels, shaped to broadcast over the weight; without a gradient."""
        weight = working(x.detach())
        others = self.beside_channels(weight)
        magnitude = weight.abs().mean(others, keepdim=True) if others else weight.abs()
        return self.fine((2 * magnitude).clamp(min=FLOOR) / 2 ** (self.bits - 1))

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize; the gradient stops where the weight is beyond the range."""
        scale = self.step_size(x)
        reach = (scale * 2 ** (self.bits - 1)).to(x.dtype)
        return PassRound.apply(x.clamp(-reach, reach), scale, self.grid)  # type: ignore[no-any-return]
