"""What a graph costs, as a function of its channel widths.

Every cost is a sum of products of axis lengths, and axis lengths are affine in the widths, so a cost at other widths is
exact and needs no new graph:

    MACs       rows x numel(weight) per layer; both operands for matrix products of activations; what is computed in
               modules that are left whole is counted as they run, and is the same at any widths
    params     numel of every distinct parameter
    weight_bytes      parameters at their bits, each tensor rounded up to whole bytes; all but weights at their own type
    activation_bytes  the most bytes of values that are in memory at once while the graph runs in order

What is summed of them is one row a quantity, in `nce_fx.quantities`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.fx import GraphModule, Node

from nce_fx.arguments import checked
from nce_fx.by_mode import runs_in
from nce_fx.errors import InputError
from nce_fx.frozen import Frozen
from nce_fx.ops.layers import find_layers
from nce_fx.ops.left_whole import LEFT_WHOLE
from nce_fx.ops.liveness import aliases, storages
from nce_fx.ops.work import Axis, Layer, shape_of, source_parameters, unchanged
from nce_fx.passes.analysis.channels.graph import AxisWidth, ChannelGraph
from nce_fx.passes.analysis.cost_model import CostModel
from nce_fx.passes.analysis.cost_terms import LayerSite, StoredParameter, StoredTensor, WorkTerm
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.analysis.polynomial import Integers, Term
from nce_fx.passes.transform.quantize.functional import repeats_values
from nce_fx.paths import operation, tensor_at
from nce_fx.plan import model_fingerprint
from nce_fx.quantities import Quantity, known_quantities
from nce_fx.quantizers import ActivationQuantizer, Quantizer

Bits = int | Mapping[str, int] | None
"""Bits for every layer, or per layer path; ``None``: as the quantizers of the graph say, else of the tensors' type."""


@dataclass(frozen=True)
class Cost(Frozen):
    """Costs of a whole graph, by quantity: ``cost.bit_ops`` is ``cost.by_quantity["bit_ops"]``."""

    by_quantity: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        """Return one quantity.

        Raises:
            AttributeError: the graph has no such cost, such as ``custom`` without a hardware table.
        """
        if name.startswith("__") or name == "by_quantity" or name not in self.by_quantity:
            raise AttributeError(f"no quantity {name!r} in this cost")
        return self.by_quantity[name]


@dataclass(frozen=True)
class NodeCost:
    """Costs of one layer or parameter owner; ``activation_bytes`` is the size of what it puts out."""

    op: str
    macs: int
    params: int
    bit_ops: int
    weight_bytes: int
    activation_bytes: int
    weight_bits: int
    activation_bits: int
    custom: float = 0.0


@dataclass(frozen=True)
class CostReport:
    """Costs at one choice of widths: ``report.total.macs``; ``report.at({"conv1": 24})`` gives them at another."""

    model: CostModel = field(repr=False)
    part_widths: tuple[int, ...] = field(repr=False)

    @cached_property
    def nodes(self) -> Mapping[str, NodeCost]:
        """Cost of every layer by path, in execution order, then of parameters that no layer owns."""
        return node_costs(self.model, self.model.evaluate(self.part_widths))

    @cached_property
    def total(self) -> Cost:
        """Cost of the whole graph."""
        return Cost(self.model.totals(self.part_widths))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run at the traced batch size."""
        return int(self.total.macs)

    @property
    def params(self) -> int:
        """Numel of all distinct parameters."""
        return int(self.total.params)

    @property
    def bit_ops(self) -> int:
        """MACs times weight bits times activation bits."""
        return int(self.total.bit_ops)

    def at(self, widths: Mapping[str, int]) -> "CostReport":
        """Return the costs when the named groups take these widths and the others stay: exact, and instant.

        Raises:
            ChannelError: a group that is not there or not free, or a width that it cannot take.
        """
        return CostReport(self.model, self.model.channels.part_widths(widths))


@checked
def analyze_cost(
    gm: GraphModule,
    channels: ChannelGraph | None = None,
    *,
    weight_bits: Bits = None,
    activation_bits: Bits = None,
    quantized: GraphModule | None = None,
    hardware: HardwareTable | None = None,
    quantities: Iterable[Quantity] = (),
) -> CostReport:
    """Return what a traced graph costs, per layer and in total, as a function of its channel widths.

    Args:
        gm: a traced graph with ``tensor_meta``.
        channels: its channel analysis; made here where not given.
        weight_bits: bits of the weights.
        activation_bits: bits of what layers read; a single number also sets the size of every stored value.
        quantized: ``gm`` as `nce_fx.quantize` makes it. Then this is what is counted, at the widths of ``gm``: its
            quantizers say the bits of every layer, and what they store and learn themselves is counted too. So a plan
            made from this report costs what is counted on the network that is built from it.
        hardware: the user's own costs, summed into ``custom``.
        quantities: more rows of what the graph costs, see `nce_fx.quantities`.

    Raises:
        InputError: bits out of 1..32, or a graph without shapes.
    """
    if channels is None:
        from nce_fx.passes.analysis.channels import analyze_channels

        channels = analyze_channels(gm)
    for bits in (weight_bits, activation_bits):
        _check_bits(bits)
    if not any(shape_of(node) for node in gm.graph.nodes):
        raise InputError("the graph carries no shapes: make it with nce_fx.trace(model, example_inputs)")
    fingerprint = model_fingerprint(gm)
    gm = gm if quantized is None else quantized
    axes = AxisLengths(gm, channels)
    layers = find_layers(gm)
    with unchanged(gm.graph):
        bits_of = {layer.node: _layer_bits(gm, layer, weight_bits, activation_bits) for layer in layers}
    evaluated = runs_in(gm.graph.nodes, training=False)
    work = [
        WorkTerm(layer.path, Term.of(axes[axis] for axis in product.axes), bits[not product.weighted] * bits[1])
        for layer, bits in ((layer, bits_of[layer.node]) for layer in layers if layer.node in evaluated)
        for product in layer.work
    ]
    sites = [_site(gm, layer, axes, *bits_of[layer.node]) for layer in layers]
    paths = {site.path for site in sites}
    left_whole = gm.meta.get(LEFT_WHOLE, {})
    # The first node of each name or target.
    places = {at: each for each in reversed(gm.graph.nodes) for at in (each.target, each.name)} if left_whole else {}
    for path, macs in left_whole.items():
        node = places.get(path)
        bits = 32 if node is None else _type_bits(node)
        work.append(WorkTerm(path, Term(macs, ()), bits * bits))
        if path not in paths:
            op, one = "parameters" if node is None else operation(gm, node), AxisWidth(1)
            # A table that does not have it takes it for free.
            sites.append(
                LayerSite(path, node.name if node else path, op, "", one, one, one, one, bits, bits, free=True)
            )
    parameters = _parameters(gm, layers, axes, {layer.path: bits_of[layer.node][0] for layer in layers})
    values = _values(gm, axes, activation_bits)
    model = CostModel(
        channels, tuple(work), parameters, values, tuple(sites), hardware, fingerprint, known_quantities(quantities)
    )
    return CostReport(model, tuple(part.width for part in channels.parts))


@dataclass(frozen=True)
class AxisLengths:
    """Looks up how long an axis is; what the channel analysis does not know is as long as it was traced.

    The channels may be those of a float graph where ``gm`` is that graph quantized: a quantizer's value has the axes of
    what it quantizes, and a parameter that became a node has those of the parameter.
    """

    gm: GraphModule
    channels: ChannelGraph

    @cached_property
    def _nodes(self) -> dict[str, Node]:
        return {node.name: node for node in self.gm.graph.nodes}

    def __getitem__(self, axis: Axis) -> AxisWidth:
        if axis.parameter:
            return self.parameter(axis.source)[axis.position]
        return self.value(axis.source)[axis.position]

    def value(self, name: str) -> tuple[AxisWidth, ...]:
        """Return the axes of a node's value."""
        node = self._nodes[name]
        return self.channels.value_axes.get(name) or self._like(node) or _literal(shape_of(node))

    def _like(self, node: Node) -> tuple[AxisWidth, ...] | None:
        """Return the axes of a node that quantizing put into the graph, or ``None``."""
        if node.op == "get_attr":
            return self.channels.parameter_axes.get(str(node.target))
        if repeats_values(node):
            inner, shape = self.value(node.all_input_nodes[0].name), shape_of(node)
            same = len(shape) - len(node.args[1]) // 2  # type: ignore[arg-type]
            return inner[:same] + _literal(shape[same:])
        if node.op != "call_module":
            return None
        module = self.gm.get_submodule(str(node.target))
        if not isinstance(module, Quantizer):
            path, parametrized, _ = str(node.target).rpartition(".parametrizations.weight.")
            return self.channels.parameter_axes.get(f"{path}.weight") if parametrized else None
        replaced = module.replaces if isinstance(module, ActivationQuantizer) else None
        known = None if replaced is None else self.channels.value_axes.get(replaced.name)
        return known or self.value(node.all_input_nodes[0].name)

    def parameter(self, path: str) -> tuple[AxisWidth, ...]:
        """Return the axes of a parameter."""
        known = self.channels.parameter_axes.get(path)
        return known or _literal(tuple(tensor_at(self.gm, path).shape))


def _literal(shape: tuple[int, ...]) -> tuple[AxisWidth, ...]:
    return tuple(AxisWidth(length) for length in shape)


def node_costs(model: CostModel, values: Mapping[str, Integers]) -> dict[str, NodeCost]:
    """Gather evaluated terms into one ``NodeCost`` per path."""
    sites = {site.path: site for site in reversed(model.sites)}
    rows = {path: [0, 0, 0, 0, 0] for path in dict.fromkeys(site.path for site in model.sites)}
    for parameter in model.parameters:
        rows.setdefault(parameter.owner, [0, 0, 0, 0, 0])
    for term, macs in zip(model.work, values["work"].tolist(), strict=True):
        rows[term.path][0] += macs
        rows[term.path][2] += macs * term.bits
    for parameter, numel in zip(model.parameters, values["parameters"].tolist(), strict=True):
        rows[parameter.owner][1] += numel
        rows[parameter.owner][3] += -(-numel * parameter.bits // 8)
    stored = dict(zip((tensor.node for tensor in model.tensors), values["bytes"].tolist(), strict=True))
    custom: dict[str, float] = {}
    for site, price in zip(model.sites, values["custom"].tolist(), strict=True):
        rows[site.path][4] = max(rows[site.path][4], stored.get(site.node, 0))
        custom[site.path] = custom.get(site.path, 0.0) + price
    result = {}
    for path, (macs, params, bit_ops, weight_bytes, activation_bytes) in rows.items():
        use = sites.get(path)
        op, bits = (use.op, (use.weight_bits, use.activation_bits)) if use else ("parameters", (32, 32))
        price = custom.get(path, 0.0)
        result[path] = NodeCost(op, macs, params, bit_ops, weight_bytes, activation_bytes, *bits, price)
    return result


def _check_bits(bits: Bits) -> None:
    for value in bits.values() if isinstance(bits, Mapping) else (bits,):
        if value is not None and not 1 <= value <= 32:
            raise InputError(f"{value} bits cannot be costed: choose 1 to 32")


def _type_bits(node: Node) -> int:
    dtype = getattr(node.meta.get("tensor_meta"), "dtype", torch.float32)
    return int(dtype.itemsize) * 8


def quantizer_bits(gm: GraphModule, node: Node) -> int | None:
    """Return the bits that a value has been rounded to by a quantizer, seen through views and repeating paddings."""
    while node.op != "call_module" or not isinstance(getattr(gm.get_submodule(str(node.target)), "bits", None), int):
        if not node.all_input_nodes or not (aliases(gm, node) or repeats_values(node)):
            return None
        node = node.all_input_nodes[0]
    return int(gm.get_submodule(str(node.target)).bits)  # type: ignore[arg-type]


def _layer_bits(gm: GraphModule, layer: Layer, weight_bits: Bits, activation_bits: Bits) -> tuple[int, int]:
    """Bits of a layer's weights and of what it reads: as asked, else as its quantizers say, else of the type."""
    weights = [node for node in layer.node.all_input_nodes if source_parameters(node)][:1]
    result = []
    for asked, values in ((weight_bits, weights), (activation_bits, layer.inputs)):
        found = [quantizer_bits(gm, value) for value in values]
        named = asked.get(layer.path) if isinstance(asked, Mapping) else asked
        stated = [bits for bits in found if bits is not None]
        result.append(named or (max(stated) if len(stated) == len(found) and stated else _type_bits(layer.node)))
    return result[0], result[1]


def _parameters(
    gm: GraphModule, layers: tuple[Layer, ...], axes: AxisLengths, weight_bits: Mapping[str, int]
) -> tuple[StoredParameter, ...]:
    """Every distinct parameter once, owned by the layer that uses it first, else by its module, else by itself."""
    weight_of = {path: layer.path for layer in reversed(layers) for path in layer.weights}
    modules = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    names: dict[int, list[str]] = {}
    for path, parameter in gm.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(path)
    found = []
    for path, parameter in gm.named_parameters():
        known = names[id(parameter)]
        layer = next((weight_of[name] for name in known if name in weight_of), None)
        above = [path.rsplit(".", depth)[0] for depth in range(1, path.count(".") + 1)]
        owner = layer or next((module for module in above if module in modules or module in weight_bits), path)
        analysed = next((name for name in known if name in axes.channels.parameter_axes), path)
        bits = weight_bits[layer] if layer else parameter.dtype.itemsize * 8
        found.append(StoredParameter(path, owner, Term.of(axes.parameter(analysed)), bits))
    return tuple(found)


def _values(gm: GraphModule, axes: AxisLengths, activation_bits: Bits) -> tuple[StoredTensor, ...]:
    """Every storage of the graph that holds a tensor, with the steps it lives through."""
    asked = activation_bits if isinstance(activation_bits, int) else None
    parts = axes.channels.parts
    only_at = {
        name: tuple((part, parts[part].width) for part in weight.parts)
        for weight in axes.channels.computed_weights
        for name in weight.nodes
    }
    result = []
    for storage in storages(gm):
        node = storage.node
        meta = node.meta.get("tensor_meta")
        if shape_of(node):
            floating = meta is not None and meta.dtype.is_floating_point
            bits = (asked if floating else None) or quantizer_bits(gm, node) or _type_bits(node)
            term = Term.of(axes.value(node.name), only_at=only_at.get(node.name, ()))
            result.append(StoredTensor(node.name, term, bits, storage.first, storage.last))
        elif isinstance(meta, (tuple, list)):
            pieces = [piece for piece in meta if hasattr(piece, "shape")]
            size = sum(piece.shape.numel() * piece.dtype.itemsize for piece in pieces)
            result.append(StoredTensor(node.name, Term(size, ()), 8, storage.first, storage.last))
    return tuple(result)


def _site(gm: GraphModule, layer: Layer, axes: AxisLengths, weight_bits: int, activation_bits: int) -> LayerSite:
    """What a hardware table is asked for this layer."""
    node, op, spatial = layer.node, layer.op, layer.spatial
    shape = shape_of(node)
    out_axis = len(shape) - 1 - spatial
    known_out = axes.value(node.name)
    c_out = known_out[out_axis] if known_out else AxisWidth(1)
    source = layer.inputs[0] if layer.inputs else node
    known_in = axes.value(source.name)
    c_in = known_in[len(known_in) - 1 - spatial] if known_in else AxisWidth(1)
    kernel = ""
    original = tuple(part.width for part in axes.channels.parts)
    # A weight may be computed from others beside its own: the length that weight normalization gives it.
    shapes = [gm.get_parameter(path).shape for path in layer.weights]
    weight = next((shape for shape in shapes if len(shape) == spatial + 2), None)
    if spatial and weight is not None:
        kernel = "_" + "x".join(str(size) for size in weight[2:])
        if weight[1] == 1 and not layer.transposed and c_in.at(original) > 1:
            op = f"depthwise_{op}"
    tokens = known_out[1:-1] if not spatial else known_out[out_axis + 1 :]
    height, width = (*tokens, AxisWidth(1), AxisWidth(1))[:2]
    free = layer.kind in ("lookup", "product")
    return LayerSite(layer.path, node.name, op, kernel, c_in, c_out, height, width, weight_bits, activation_bits, free)
