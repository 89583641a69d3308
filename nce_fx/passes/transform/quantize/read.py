"""What a quantized graph says about itself: bits of every layer, and weights as integers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.fx import GraphModule, Node

from nce_fx.arguments import checked
from nce_fx.ops import OPS, table_of
from nce_fx.ops.layers import find_layers
from nce_fx.ops.work import Layer
from nce_fx.passes.transform.quantize.quantizable_layers import layers_with_weights
from nce_fx.passes.transform.quantize.quantizer_nodes import computed_value
from nce_fx.paths import called, module_at
from nce_fx.quantizers import ActivationQuantizer, Quantizer, WeightQuantizer


@dataclass(frozen=True)
class IntegerWeight:
    """One layer's weight as whole numbers: ``(integers + offset) * scale``."""

    integers: Tensor
    """int8, the shape of the weight; from -2^(b-1) to 2^(b-1) - 1."""
    scale: Tensor
    """The distance between two levels; 0-dimensional, or shaped to broadcast over the weight."""
    offset: Tensor
    """Minus the zero point; 1/2 where zero lies half-way between two levels. Shaped as ``scale``."""
    bits: int
    dtype: object
    """The dtype of the weight in the graph."""

    def dequantize(self) -> Tensor:
        """Return the weight as the graph computes with it, bit for bit."""
        levels = (self.integers.to(self.scale.dtype) + self.offset) * self.scale
        return levels.to(self.dtype)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class QuantizedLayer:
    """One row of `describe`."""

    layer: str
    op: str
    weight_bits: int | None
    """``None``: float."""
    activation_bits: int | None
    weight_quantizer: str
    """As printed; empty where there is none."""
    activation_quantizer: str


class QuantizedWeight(NamedTuple):
    """The weight of a layer, in float, and what quantizes it."""

    module: WeightQuantizer
    weight: Tensor


def weight_quantizers(gm: GraphModule) -> Mapping[str, QuantizedWeight]:
    """Return the weights that a graph quantizes, by layer name."""
    found: dict[str, QuantizedWeight] = {}
    for layer in find_layers(gm):
        node = _weight_quantizer_node(gm, layer.node)
        if node is None or (path := _path(layer, node)) in found:
            continue
        quantizer = called(gm, node, WeightQuantizer)
        assert quantizer is not None
        assert isinstance(node.args[0], Node)
        found[path] = QuantizedWeight(quantizer, computed_value(gm, node.args[0]).detach())
    return found


@checked
def integer_weights(gm: GraphModule) -> Mapping[str, IntegerWeight]:
    """Return the quantized weights of a graph, by layer name."""
    return {
        path: IntegerWeight(*quantizer.integers(weight), quantizer.bits, weight.dtype)
        for path, (quantizer, weight) in weight_quantizers(gm).items()
    }


@checked
def describe(gm: GraphModule) -> tuple[QuantizedLayer, ...]:
    """Return one row for every layer with a weight, in execution order, those left in float included.

    Then come modules with weights that are left whole, since no row of the table of operations knows them.
    """
    rows: dict[str, QuantizedLayer] = {}
    for layer in layers_with_weights(gm):
        node = _weight_quantizer_node(gm, layer.node)
        if (path := _path(layer, node)) in rows:
            continue
        weight = None if node is None else called(gm, node, WeightQuantizer)
        activation = _activation_quantizer(gm, layer)
        rows[path] = QuantizedLayer(
            path,
            layer.op,
            weight.bits if weight else None,
            activation.bits if activation else None,
            str(weight or ""),
            str(activation or ""),
        )
    for node in gm.graph.find_nodes(op="call_module"):
        module = module_at(gm, path := str(node.target))
        if isinstance(module, Quantizer) or ".parametrizations." in path:
            continue
        if table_of(gm).of_module(module) is None and any(p.dim() > 1 for p in module.parameters()):
            rows.setdefault(path, QuantizedLayer(path, type(module).__name__, None, None, "", ""))
    return tuple(rows.values())


def weight_bits_of(gm: GraphModule) -> Mapping[str, int]:
    """Return the weight bits of every layer whose weight is quantized, by layer name."""
    return {row.layer: row.weight_bits for row in describe(gm) if row.weight_bits}


def activation_bits_of(gm: GraphModule) -> Mapping[str, int]:
    """Return the bits of the activation that each layer reads, where it is quantized, by layer name."""
    return {row.layer: row.activation_bits for row in describe(gm) if row.activation_bits}


def _path(layer: Layer, quantizer: Node | None) -> str:
    """The layer's name before it was quantized: where its weight is computed in the graph, the quantizer knows it."""
    return (str(quantizer.target).rpartition(".weight_quant")[0] or layer.path) if quantizer else layer.path


def _weight_quantizer_node(gm: GraphModule, layer: Node) -> Node | None:
    if layer.op == "call_module" or (len(layer.args) < 2 and "weight" not in layer.kwargs):
        return None
    weight = layer.args[1] if len(layer.args) > 1 else layer.kwargs["weight"]
    return weight if isinstance(weight, Node) and called(gm, weight, WeightQuantizer) is not None else None


def _activation_quantizer(gm: GraphModule, layer: Layer) -> ActivationQuantizer | None:
    if not layer.inputs:
        return None
    data = layer.inputs[0]
    if OPS.of_call(data.target) is OPS["pad"] and isinstance(data.args[0], Node):
        data = data.args[0]
    return called(gm, data, ActivationQuantizer)
