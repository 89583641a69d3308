"""New random weights for a resized network: training from scratch, as the method was published.

A resized network has shapes that the user's code never initialises. So every value is drawn, with replacement, from
the model's own fresh tensor of the same name, which keeps its distribution whatever that is (ones stay ones), and
tensors of more than one axis are multiplied by sqrt(fan-in before / fan-in after), which keeps the scale of what they
compute.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import GraphModule

from nce_fx.passes.transform.quantize import InsertQuantizers, QuantSpec, RemoveQuantizers
from nce_fx.passes.transform.quantize.quantizer_nodes import in_float
from nce_fx.pipeline import Given, Pass, Pipeline
from nce_fx.pipeline.base import Property


@dataclass(frozen=True)
class NewWeights(Pass):
    """Draw new random weights and statistics for a float network, from those of its model as it is initialised.

    The model is `Given.fresh`. Where none is given weights stay: a network that is loaded has them from its file.
    """

    requires: ClassVar[tuple[Property, ...]] = (in_float,)
    seed: int = 0
    """Of the draws; what has the shape that the model gives it is taken as it is."""

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        """Return the network with new weights."""
        return gm if given.fresh is None else _drawn(gm, given.fresh, self.seed)


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
    anew = Pipeline((RemoveQuantizers(), NewWeights(seed), InsertQuantizers(spec)))
    return anew(gm, Given(batches, fresh=fresh)).graph_module


@torch.no_grad()
def _drawn(gm: GraphModule, fresh: nn.Module, seed: int) -> GraphModule:
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
