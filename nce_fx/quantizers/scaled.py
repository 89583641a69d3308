"""A quantized weight with a BatchNorm folded into it: the same integers, another scale per output channel.

    y = (q + offset) * (s * f),   f one factor per output channel

Multiplying the float weight by f and quantizing the product would give other integers than the ones the network was
trained with. Multiplying the scale keeps them.
"""

import torch
from torch import Tensor

from nce_fx.quantizers.base import Integers, WeightQuantizer


class ScaledWeight(WeightQuantizer):
    """Weights: (any shape) -> (the same shape). For deployment: the weight receives no gradient.

    Args:
        inner: the quantizer the network was trained with.
        factor: f, shaped to broadcast over the weight.
    """

    factor: Tensor

    def __init__(self, inner: WeightQuantizer, factor: Tensor) -> None:
        super().__init__(inner.bits)
        self.inner = inner
        self.layer = inner.layer
        self.register_buffer("factor", factor)

    def rounded(self, weight: Tensor) -> Tensor:
        """Quantize and scale."""
        return self.integers(weight).dequantize().to(weight.dtype)

    @torch.no_grad()
    def integers(self, weight: Tensor) -> Integers:
        """Return the inner quantizer's integers, with a scale per channel."""
        values, scale, offset = self.inner.integers(weight)
        scale = scale * self.factor.to(scale.dtype)
        return Integers(values, scale, offset.expand_as(scale))
