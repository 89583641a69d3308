"""Quantizers as visible nodes of the graph: put in, calibrated, read, and taken out again.

weight -> <layer>_weight_quant -> conv <- <node>_activation_quant <- activation
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch.fx import GraphModule

from nce_fx.passes.base import Pass, PassResult
from nce_fx.passes.transform.quantize.calibrate import Onlookers, calibrate, carry_ranges, set_ranges
from nce_fx.passes.transform.quantize.insert import insert_quantizers
from nce_fx.passes.transform.quantize.read import (
    IntegerWeight,
    QuantizedLayer,
    activation_bits_of,
    describe,
    integer_weights,
    weight_bits_of,
)
from nce_fx.passes.transform.quantize.remove import remove_quantizers
from nce_fx.passes.transform.quantize.spec import LayerBits, QuantSpec
from nce_fx.plan import WidthPlan, model_fingerprint
from nce_fx.quantizers import Quantizer


def quantize(
    gm: GraphModule,
    spec: QuantSpec | None = None,
    batches: Iterable[Any] | None = None,
    like: GraphModule | None = None,
) -> GraphModule:
    """Return a copy of the graph with quantizers at the weights and activations of its layers.

    Args:
        gm: a float graph; it is not changed.
        spec: which quantizers, how many bits, where; 2 bits with first and last layers at 8 by default.
        batches: inputs, or pairs (inputs, target), to set the activations' ranges on, see `calibrate`. Without them the
            ranges start where the quantizers' papers say.
        like: the same network quantized at other widths, whose ranges are taken, see `carry_ranges`; ``batches`` serve
            where one is missing there.

    Raises:
        QuantizeError: the graph is quantized already, `spec` does not fit the model, or a value is not finite.
    """
    spec = spec or QuantSpec()
    result = insert_quantizers(gm, spec)
    # What `nce_fx.save` rebuilds the graph from.
    result.meta["spec"] = spec
    result.meta.setdefault("plan", WidthPlan({}, {}, model_fingerprint(gm)))
    carried = like is not None and carry_ranges(like, result)
    if batches is not None and not carried:
        set_ranges(result, batches)
    return result


@dataclass(frozen=True)
class InsertQuantizers(Pass):
    """`quantize` as a pass; without batches the activations' ranges wait for `calibrate`."""

    spec: QuantSpec = field(default_factory=QuantSpec)
    batches: Iterable[Any] | None = field(default=None, compare=False)
    like: GraphModule | None = field(default=None, compare=False)

    def apply(self, gm: GraphModule) -> PassResult:
        """Return the quantized graph.

        Raises:
            QuantizeError: as `quantize` does.
        """
        return PassResult(quantize(gm, self.spec, self.batches, self.like), modified=True)


@dataclass(frozen=True)
class RemoveQuantizers(Pass):
    """The way back: the float graph, with every parameter as it is now."""

    def apply(self, gm: GraphModule) -> PassResult:
        """Return the float graph."""
        if not any(isinstance(module, Quantizer) for module in gm.modules()):
            return PassResult(gm, modified=False)
        return PassResult(remove_quantizers(gm), modified=True)


__all__ = [
    "InsertQuantizers",
    "IntegerWeight",
    "LayerBits",
    "Onlookers",
    "QuantSpec",
    "QuantizedLayer",
    "RemoveQuantizers",
    "activation_bits_of",
    "calibrate",
    "describe",
    "integer_weights",
    "quantize",
    "weight_bits_of",
]
