"""The graph as the page draws it: a node per operation on tensors, with what the compiler knows of each.

Of weights that is what the quantizers make of them, in numbers small enough for a page: a histogram and the levels.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from nce_fx.errors import source_line
from nce_fx.ops.layers import find_layers
from nce_fx.ops.work import shape_of
from nce_fx.passes.analysis.channels import AxisWidth, ChannelGraph
from nce_fx.passes.analysis.cost import NodeCost, analyze_cost, quantizer_bits
from nce_fx.passes.analysis.sensitivity.report import group_shares
from nce_fx.passes.transform.quantize.calibrate import quantized_value
from nce_fx.passes.transform.quantize.read import weight_quantizers
from nce_fx.paths import called, operation
from nce_fx.quantizers import ActivationQuantizer, Quantizer, WeightQuantizer

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


_NO_GROUPS = ChannelGraph((), (), {}, {})


@dataclass(frozen=True)
class NodeView:
    """One operation, such as the convolution ``layer1.0.conv1``."""

    id: str
    """The name of the fx node: ``layer1_0_conv1``."""
    name: str
    """The full name: the module's path, or the path of the module that called the function and the node's name."""
    owner: str
    """The module that holds it, or whose forward calls it: ``layer1.0``; empty at the top."""
    op: str
    inputs: tuple[str, ...]
    source: str
    """The user's own line, ``nets.py:12``."""
    shape: tuple[int, ...]
    groups: tuple[str, ...]
    """Ids of the channel groups on its axes."""
    channels: tuple[int, int] | None
    """Channels before and after."""
    bits: int | None
    """What its output is rounded to."""
    costs: Mapping[str, tuple[float, float]]
    """Quantity -> before and after."""
    weight: WeightView | None


@dataclass(frozen=True)
class Widths:
    """Channels of every group before and after, such as those of a plan."""

    before: Mapping[str, int]
    after: Mapping[str, int]


def node_views(
    gm: GraphModule, channels: ChannelGraph | None, widths: Widths, compared: GraphModule, rewritten: GraphModule
) -> tuple[NodeView, ...]:
    """Return the operations of a network in the order they run.

    Args:
        gm: the network to draw: traced, in float; or the rewritten one, where no other is at hand.
        channels: its channel groups, where they are known.
        widths: the widths between which it is shown.
        compared: the network whose costs are shown as "before".
        rewritten: the network whose costs, bits and weights are shown as "after".
    """
    layers = {layer.node: layer for layer in find_layers(gm)}
    sizes = None if channels is None else (_part_widths(channels, widths.before), _part_widths(channels, widths.after))
    before, after = (analyze_cost(each, _NO_GROUPS).nodes for each in (compared, rewritten))
    weights, rounded = weight_views(rewritten), _rounded_values(rewritten)
    views = []
    for node in gm.graph.nodes:
        if not _is_shown(gm, node):
            continue
        layer = layers.get(node)
        path = layer.path if layer else str(node.target) if node.op == "call_module" else None
        name = _full_name(node, path)
        axes = () if channels is None else channels.value_axes.get(node.name, ())
        views.append(
            NodeView(
                id=node.name,
                name=name,
                owner=name.rpartition(".")[0] if node.op == "call_module" else _caller(node),
                op=layer.op if layer else "input" if node.op == "placeholder" else operation(gm, node),
                inputs=tuple(dict.fromkeys(_sources(gm, node))),
                source=_source(node),
                shape=shape_of(node) if hasattr(node.meta.get("tensor_meta"), "shape") else (),
                groups=() if channels is None else tuple(group_shares(channels, axes)),
                channels=_channels(axes, sizes),
                bits=rounded.get(node.name),
                costs=_costs(before.get(path or ""), after.get(path or "")),
                weight=weights.get(path) if path is not None else None,
            )
        )
    return tuple(views)


def _is_shown(gm: GraphModule, node: Node) -> bool:
    """Operations on tensors, inputs and outputs; not parameters, sizes and what quantizers add."""
    if node.op == "get_attr" or called(gm, node, Quantizer) is not None:
        return False
    found: list[Any] = []
    torch.fx.node.map_aggregate(node.meta.get("tensor_meta"), found.append)
    return node.op in ("placeholder", "output") or any(value is not None for value in found)


def _sources(gm: GraphModule, node: Node) -> Iterator[str]:
    """The operations whose values a node reads, through quantizers."""
    for read in node.all_input_nodes:
        if called(gm, read, ActivationQuantizer) is not None:
            yield from _sources(gm, read)
        elif _is_shown(gm, read):
            yield read.name


def _rounded_values(gm: GraphModule) -> dict[str, int]:
    """Bits of every value that an activation quantizer rounds, by the name of the node that makes it."""
    bits: dict[str, int] = {}
    for node in gm.graph.nodes:
        quantizer = called(gm, node, ActivationQuantizer)
        if quantizer is not None:
            bits[quantized_value(quantizer, node)] = quantizer.bits
        elif (known := quantizer_bits(gm, node)) is not None and node.op != "get_attr":
            bits.setdefault(node.name, known)
    return bits


def _full_name(node: Node, path: str | None) -> str:
    if node.op == "call_module" or (path is not None and path != node.name):
        return path or str(node.target)
    owner = _caller(node)
    return f"{owner}.{node.name}" if owner else node.name


def _source(node: Node) -> str:
    """The user's own line; paths are said from the working folder, and from where packages are installed."""
    if node.op in ("placeholder", "output"):
        return ""
    return source_line(node).rpartition("site-packages/")[2].removeprefix(f"{Path.cwd()}/")


def _caller(node: Node) -> str:
    """The path of the module whose forward called a function; empty at the top."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _part_widths(channels: ChannelGraph, widths: Mapping[str, int]) -> tuple[int, ...]:
    return channels.part_widths({group: widths[group] for group in channels.widths if group in widths})


def _channels(
    axes: Iterable[AxisWidth], sizes: tuple[tuple[int, ...], tuple[int, ...]] | None
) -> tuple[int, int] | None:
    """The length of the first axis that has a group, before and after."""
    axis = next((axis for axis in axes if axis.terms), None)
    return None if axis is None or sizes is None else (axis.at(sizes[0]), axis.at(sizes[1]))


def _costs(before: NodeCost | None, after: NodeCost | None) -> dict[str, tuple[float, float]]:
    """Every number that a layer's cost has."""
    names = [field.name for field in fields(NodeCost) if field.name not in ("op", "weight_bits", "activation_bits")]
    zero = dict.fromkeys(names, 0)
    first, last = (zero if each is None else {name: getattr(each, name) for name in names} for each in (before, after))
    return {name: (first[name], last[name]) for name in names if first[name] or last[name]}
