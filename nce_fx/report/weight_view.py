"""What the quantizers make of the weights, in numbers small enough for a page: a histogram and the levels."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from nce_fx.passes.transform.quantize.read import weight_quantizers
from nce_fx.quantizers import WeightQuantizer

BINS = 48


@dataclass(frozen=True)
class WeightView:
    """One layer's weight before and after quantization, such as 432 weights in 48 bins and on 4 levels."""

    bits: int
    quantizer: str
    """As printed: ``SAWB(bits=2)``."""
    unit: str
    """``weight``, or ``step`` where every channel has a scale of its own and only steps can be compared."""
    low: float
    high: float
    counts: tuple[int, ...]
    """Weights as they are kept, in ``BINS`` bins of equal width from ``low`` to ``high``."""
    levels: tuple[tuple[float, int], ...]
    """The values that the graph computes with, in ascending order, and how many weights lie on each."""


def weight_views(gm: GraphModule) -> Mapping[str, WeightView]:
    """Return every quantized weight of a graph by the layer's name: ``layer1.0.conv1``."""
    return {layer: weight_view(weight, quantizer) for layer, (quantizer, weight) in weight_quantizers(gm).items()}


@torch.no_grad()
def weight_view(weight: Tensor, quantizer: WeightQuantizer) -> WeightView:
    """Return one weight's histogram and levels."""
    weight = weight.detach()
    integers = quantizer.integers(weight)
    counted = torch.bincount(integers.values.flatten().int() + 128, minlength=1)
    numbers = counted.nonzero().flatten()
    values, counts = (numbers - 128).double(), counted[numbers]
    one_scale = integers.scale.numel() == 1
    if one_scale:
        kept = weight
        # A layer of one output has a scale of one channel, (1, 1, 1, 1).
        values = (values + integers.offset.double().flatten()) * integers.scale.double().flatten()
    else:
        kept = weight / integers.scale - integers.offset
    kept = kept.float().flatten()
    reach = max(float(kept.abs().max()), float(values.abs().max()), 1e-12)
    bins = torch.histc(kept.cpu(), BINS, -reach, reach)
    return WeightView(
        bits=quantizer.bits,
        quantizer=str(quantizer),
        unit="weight" if one_scale else "step",
        low=_short(-reach),
        high=_short(reach),
        counts=tuple(int(count) for count in bins),
        levels=tuple((_short(float(value)), int(count)) for value, count in zip(values, counts, strict=True)),
    )


def _short(value: float) -> float:
    return float(f"{value:.6g}")
