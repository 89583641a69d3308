"""New random weights for a resized network: training from scratch, as the method was published.

A resized network has shapes that the user's code never initialises. So every value is drawn, with replacement, from
the model's own fresh tensor of the same name, which keeps its distribution whatever that is (ones stay ones), and
tensors of more than one axis are multiplied by sqrt(fan-in before / fan-in after), which keeps the scale of what they
compute.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from nce_fx.passes.transform.quantize import QuantSpec, RemoveQuantizers, quantize


def from_scratch(
    gm: GraphModule, fresh: nn.Module, spec: QuantSpec, batches: Iterable[Any] | None = None, seed: int = 0
) -> GraphModule:
    """Return a copy of a quantized graph with new random weights, its quantizers calibrated anew.

    Args:
        gm: a quantized graph; it is not changed.
        fresh: the model it was made from, with new random weights and statistics.
        spec: its quantizers.
        batches: what ranges are calibrated on.
        seed: of the draws.
    """
    return quantize(new_weights(RemoveQuantizers()(gm).graph_module, fresh, seed), spec, batches)


@torch.no_grad()
def new_weights(gm: GraphModule, fresh: nn.Module, seed: int = 0) -> GraphModule:
    """Return a copy of a float graph with new random weights and statistics.

    Args:
        gm: a float graph at any widths; it is not changed.
        fresh: the model it was made from, with new random weights and statistics.
        seed: of the draws; what has the shape that ``fresh`` gives it is taken as it is.
    """
    result = copy.deepcopy(gm)
    generator = torch.Generator().manual_seed(seed)
    own = fresh.state_dict()
    for name, value in result.state_dict().items():
        if name not in own:
            continue
        source = own[name]
        if source.shape == value.shape:
            value.copy_(source)
            continue
        drawn = source.reshape(-1)[torch.randint(source.numel(), value.shape, generator=generator)]
        if value.ndim > 1:
            drawn = drawn * math.sqrt(source[0].numel() / value[0].numel())
        value.copy_(drawn)
    return result
