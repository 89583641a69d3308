"""What a graph is to be exported with: its quantizers as plain numbers, and markers in their places.

The graph is exported in two steps. First every quantizer becomes a marker, an operator of our own that the exporter
carries along without looking inside; then a format (`nce_fx.export.formats`) puts its own nodes in the place of each.
So the exporter cannot fold a quantizer away, and a format knows nothing of the exporter.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from nce_fx.errors import ExportError
from nce_fx.ops.layers import find_layers
from nce_fx.passes.transform.quantize import IntegerWeight
from nce_fx.passes.transform.quantize.quantizer_nodes import computed_value
from nce_fx.quantizers import ActivationQuantizer, WeightQuantizer
from nce_fx.quantizers.base import Grid

DOMAIN = "nce_fx"
WEIGHT, ACTIVATION = "Weight", "Activation"
"""The markers' operator types; their attribute ``name`` says which quantizer they stand for."""


@dataclass(frozen=True)
class ActivationLevels:
    """One activation quantizer: ``(round(clip(x / scale - offset, low, high)) + offset) * scale``, or by thresholds."""

    grid: Grid
    scale: float
    """Exactly a float32."""
    bits: int
    thresholds: tuple[float, ...] = ()
    """Where the level rises, above these; none: half-way between levels. Exactly float32s."""


@dataclass(frozen=True)
class Marked:
    """A graph with markers, and what they stand for."""

    graph_module: GraphModule
    weights: Mapping[str, IntegerWeight]
    """Name of a weight (`layer1.0.conv1.weight`) -> its integers."""
    activations: Mapping[str, ActivationLevels]
    """Name of a quantizer (`relu_activation_quant`) -> its levels."""
    exact: bool = False
    """Whether sums of products of levels are exact in float32, in whatever order: `QuantSpec(exact=True)`."""


class _Marker(nn.Module):
    """Stands for a quantizer: an operator that only the ONNX exporter knows."""

    def __init__(self, kind: str, name: str, shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.kind, self.name, self.shape = kind, name, shape

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self.kind}",
            inputs,
            {"name": self.name},
            dtype=torch.float32,
            shape=inputs[0].shape if self.shape is None else self.shape,
            version=1,
        )


def mark(gm: GraphModule) -> Marked:
    """Return a copy of a graph, in evaluation mode, with markers in the place of its quantizers.

    Raises:
        ExportError: the graph does not compute in float32.
    """
    _check_float32(gm)
    result = copy.deepcopy(gm).eval()
    _put_names(result)
    weights: dict[str, IntegerWeight] = {}
    activations: dict[str, ActivationLevels] = {}
    exact: list[bool] = []
    markers: dict[Node, _Marker] = {}
    for node in result.graph.find_nodes(op="call_module"):
        module = result.get_submodule(str(node.target))
        if isinstance(module, WeightQuantizer):
            name = str(node.target).removesuffix("_quant")
            source = node.args[0]
            assert isinstance(source, Node)
            weight = computed_value(result, source).detach()
            weights[name] = IntegerWeight(*module.integers(weight), module.bits, weight.dtype)
            markers[node] = _Marker(WEIGHT, name, tuple(weight.shape))
        elif isinstance(module, ActivationQuantizer):
            activations[str(node.target)] = activation_levels(module)
            exact.append(module.exact)
            markers[node] = _Marker(ACTIVATION, str(node.target), None)
    for node, marker in markers.items():
        if marker.kind == WEIGHT:
            node.args = ()
        result.set_submodule(str(node.target), marker)
    result.graph.eliminate_dead_code()
    result.delete_all_unused_submodules()
    result.recompile()
    return Marked(result, weights, activations, bool(exact) and all(exact))


def _put_names(gm: GraphModule) -> None:
    """Say in every node, where the exporter looks for it, what nodes made from it shall be called.

    That is the layer's or module's path, or the graph's own name for a function, or for a module's later calls.
    """
    paths = {layer.node: layer.path for layer in find_layers(gm)}
    taken: set[str] = set()
    for node in gm.graph.nodes:
        name = paths.get(node, str(node.target) if node.op == "call_module" else node.name)
        if name in taken:
            name = node.name
        taken.add(name)
        node.meta["nn_module_stack"] = {name: (name, type(gm).__name__)}


def activation_levels(quantizer: ActivationQuantizer) -> ActivationLevels:
    """Return an activation quantizer's levels as numbers."""
    # What a zero becomes tells the scale without knowing the quantizer.
    parameters = [*quantizer.parameters(), *quantizer.buffers()]
    integers = quantizer.integers(torch.zeros(1, device=parameters[0].device if parameters else None))
    thresholds = quantizer.thresholds()
    at = () if thresholds is None else tuple(thresholds.float().tolist())
    return ActivationLevels(quantizer.grid_now(), float(integers.scale), quantizer.bits, at)


def _check_float32(gm: GraphModule) -> None:
    for name, tensor in gm.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ExportError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}: convert the model with .float()")
