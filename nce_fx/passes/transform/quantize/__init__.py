"""Quantizers as visible nodes of the graph: put in, calibrated, read, and taken out again.

weight -> <layer>_weight_quant -> conv <- <node>_activation_quant <- activation
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from torch.fx import GraphModule

from nce_fx.arguments import checked
from nce_fx.devices import check_values
from nce_fx.passes.transform.quantize.calibrate import Observers, calibrate, carry_ranges, set_ranges
from nce_fx.passes.transform.quantize.quantizer_nodes import in_float, insert_quantizers
from nce_fx.passes.transform.quantize.read import (
    IntegerWeight,
    QuantizedLayer,
    activation_bits_of,
    describe,
    integer_weights,
    weight_bits_of,
)
from nce_fx.passes.transform.quantize.remove import remove_quantizers
from nce_fx.passes.transform.quantize.spec import PUBLISHED, LayerBits, QuantSpec
from nce_fx.pipeline import Given, Pass
from nce_fx.pipeline.pass_options import from_plain, to_plain
from nce_fx.plan import WidthPlan, model_fingerprint
from nce_fx.quantizers import Quantizer


@checked
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
        batches: in any form that `nce_fx.batches` reads, to set the activations' ranges on, see `calibrate`. Without
            them the ranges start where the quantizers' papers say.
        like: the same network quantized at other widths, whose ranges are taken, see `carry_ranges`; ``batches`` serve
            where one is missing there.

    Raises:
        QuantizeError: the graph is quantized already, `spec` does not fit the model, or a value is not finite.
    """
    return InsertQuantizers(spec or QuantSpec())(gm, Given(batches, like)).graph_module


@dataclass(frozen=True)
class InsertQuantizers(Pass):
    """Put quantizers at weights and activations, as `nce_fx.quantize` does; options are the fields of a `QuantSpec`.

    Ranges come from the network or the batches that it is given; without either they wait for `calibrate`.
    """

    name: ClassVar[str] = "quantize"
    requires = (in_float,)
    spec: QuantSpec = field(default_factory=QuantSpec)

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        """Return the quantized graph.

        Raises:
            QuantizeError: as `quantize` does.
        """
        check_values(gm, "quantizing")
        result = insert_quantizers(gm, self.spec)
        result.meta["spec"] = self.spec
        result.meta.setdefault("plan", WidthPlan({}, {}, model_fingerprint(gm)))
        carried = given.like is not None and carry_ranges(given.like, result)
        if given.batches is not None and not carried:
            set_ranges(result, given.batches)
        return result

    def options(self, *, changed: bool = False) -> dict[str, Any]:
        """Return the fields of the spec."""
        return to_plain(self.spec, changed=changed)

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of the fields of the spec."""
        return [entry.name for entry in fields(QuantSpec)]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Return the pass with a spec of these fields."""
        return cls(from_plain(QuantSpec, options, cls.name))


@dataclass(frozen=True)
class RemoveQuantizers(Pass):
    """Take the quantizers out again: the float graph, with every parameter as it is now."""

    ensures = (in_float,)

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        """Return the float graph."""
        if not any(isinstance(module, Quantizer) for module in gm.modules()):
            return gm
        return remove_quantizers(gm)


__all__ = [
    "PUBLISHED",
    "InsertQuantizers",
    "IntegerWeight",
    "LayerBits",
    "Observers",
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
