"""Where quantizers go: the layers, what each one reads, and which of them are first, last, or on a shortcut."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.utils.parametrize import is_parametrized

from nce_fx.errors import where
from nce_fx.ops import OPS, Op, WeightLayout, table_of
from nce_fx.ops.additions import activations_of, adds
from nce_fx.ops.layers import find_layers
from nce_fx.ops.work import Layer, ancestors, descendants, shape_of
from nce_fx.passes.transform.quantize.hooked_weights import weight_hook
from nce_fx.passes.transform.quantize.spec import LayerBits, QuantSpec
from nce_fx.paths import tensor_at, tensor_of


@dataclass(frozen=True)
class QuantizableLayer:
    """One use of a layer that can be quantized: a convolution or a linear layer with a weight of its own."""

    layer: Layer
    first: bool
    """No layer lies between it and the model's inputs."""
    end: bool
    """It is a first or a last layer."""
    shortcut: bool
    """It is a 1x1 convolution on a shortcut."""
    bits: LayerBits

    @property
    def path(self) -> str:
        """The layer's name."""
        return self.layer.path

    @property
    def node(self) -> Node:
        """The node that multiplies."""
        return self.layer.node

    @property
    def data(self) -> Node:
        """The activation it reads."""
        return self.layer.inputs[0]


def has_weight(layer: Layer) -> bool:
    """Whether a layer multiplies with a weight (which a parametrized module computes) or looks one up."""
    return bool(layer.weights) or any(work.weighted for work in layer.work)


def weight_layout(gm: GraphModule, layer: Layer) -> WeightLayout | None:
    """Return how the weight of a layer is laid out; ``None`` where the layer's code is not its operation's."""
    op = table_of(gm).of(gm, layer.node)
    return op.quantize if op is not None and isinstance(op.quantize, WeightLayout) else None


def layers_with_weights(gm: GraphModule) -> list[Layer]:
    """Return the layers that have a weight, in execution order, without what computes the weight of one of them.

    That is done from parameters alone, as by the products of a spectral norm.
    """
    layers = [layer for layer in find_layers(gm) if has_weight(layer)]
    called = [layer for layer in layers if layer.node.op == "call_function"]
    weights = [source for layer in called for source in layer.node.all_input_nodes if source not in layer.inputs]
    making = set(ancestors(weights))
    fed = descendants(sorted(making), [node for node in making if node.op == "placeholder"])
    return [layer for layer in layers if layer.node not in making - fed]


def quantizable(gm: GraphModule, layer: Layer) -> bool:
    """Whether a layer has a weight of its own that can be quantized."""
    if weight_layout(gm, layer) is None or not has_weight(layer):
        return False
    if _is_empty(gm, layer):
        return False
    if layer.node.op != "call_module":
        return True
    module = gm.get_submodule(str(layer.node.target))
    if (op := table_of(gm).of_module(module)) is not None and not is_of_torch(op):
        return bool(layer.node.args) and isinstance(module._parameters.get(op.weight), nn.Parameter)
    own = isinstance(module._parameters.get("weight"), nn.Parameter) or is_parametrized(module, "weight")
    own = own or weight_hook(module) is not None
    return own and not is_parametrized(module, "bias")


def _is_empty(gm: GraphModule, layer: Layer) -> bool:
    """Whether a layer's weight has no values, as of a layer of no channels: no step size can be told of it."""
    if layer.node.op != "call_module":
        return any(not tensor_at(gm, path).numel() for path in layer.weights)
    weight = gm.get_submodule(str(layer.node.target))._parameters.get("weight")
    return weight is not None and not weight.numel()


def is_of_torch(op: Op) -> bool:
    """Whether a row is one of nce-fx's own: its modules have a function that does the same on a weight from outside."""
    return OPS.rows.get(op.name) is op


def products_in_float(gm: GraphModule) -> Mapping[str, str]:
    """Return the parameters that are multiplied with data and cannot be quantized -> where, and why not; and modules
    that are left whole.

    For example ``{"experts": "matmul (matmul) at moe.py:12: its weight has 3 axes, ..."}``.
    """
    empty = [layer for layer in layers_with_weights(gm) if _is_empty(gm, layer)]
    found = {each.path: f"{where(each.node)}: its weight has no values, so it is in float" for each in empty}
    ops = table_of(gm)
    for node in gm.graph.nodes:
        if node.op == "call_module" and ops.nearest(gm, node) is None:
            held = sum(parameter.numel() for parameter in gm.get_submodule(str(node.target)).parameters())
            if held:
                reason = f"no tracer can enter it, so its {held:,} parameters are in float"
                found.setdefault(str(node.target), f"{where(node)}: {reason}")
        op = ops.of_call(node.target) if node.op in ("call_function", "call_method") else None
        if op is None or op.kind != "product":
            continue
        given = ops.arguments(node.target, node.args, node.kwargs)
        # What is added: to the scores of an attention, and by addmm.
        added = given.get("attn_mask"), given.get("input") if "beta" in op.signature else None
        behind = {each: _parameters_behind(gm, each) for each in node.all_input_nodes if each not in added}
        if None not in behind.values():
            continue  # what is computed from parameters alone is itself a weight
        for operand, paths in behind.items():
            shape = shape_of(operand)
            if len(shape) < 2 or not paths:
                continue
            reason = "it is no linear layer of data and this parameter alone"
            if len(shape) > 2:
                reason = f"its weight has {len(shape)} axes, {shape}, and linear layers have 2"
            found.setdefault(paths[0].removesuffix(".weight"), f"{where(node)}: {reason}")
    return found


def _parameters_behind(gm: GraphModule, operand: Node) -> tuple[str, ...] | None:
    """Return the parameters that a value is computed from; ``None`` where data takes part, but for its size or type."""
    behind = list(ancestors([operand], lambda node: node.op == "get_attr" or "tensor_meta" in node.meta))
    if any(node.op == "placeholder" for node in behind):
        return None
    held = {str(node.target): -prod(shape_of(node)) for node in behind if node.op == "get_attr"}
    paths = (path for path in held if isinstance(tensor_at(gm, path), nn.Parameter))
    return tuple(sorted(paths, key=held.__getitem__))


def weight_argument(node: Node) -> Node:
    """Return the node that is the weight of a functional layer."""
    weight = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
    assert isinstance(weight, Node)
    return weight


def find_quantizable_layers(gm: GraphModule, spec: QuantSpec) -> tuple[QuantizableLayer, ...]:
    """Return every layer that can be quantized, with its bits, in execution order."""
    layers = layers_with_weights(gm)
    owners = {layer.node for layer in layers}
    behind, before = (
        descendants(gm.graph.nodes, owners),
        set(ancestors(source for node in owners for source in node.all_input_nodes)),
    )
    result = []
    for layer in layers:
        if not quantizable(gm, layer):
            continue
        first = layer.inputs[0] not in behind
        end = first or layer.node not in before
        shortcut = is_shortcut(gm, layer, owners)
        bits = spec.bits_for(layer.path, end=end, shortcut=shortcut)
        result.append(QuantizableLayer(layer, first, end, shortcut, bits))
    spec.check_overrides(each.path for each in result)
    return tuple(result)


def is_shortcut(gm: GraphModule, layer: Layer, owners: set[Node]) -> bool:
    """Whether a layer is a 1x1 convolution on a shortcut, as `QuantSpec` defines it."""
    kernel = _weight_shape(gm, layer)[2:]
    if not layer.op.startswith("conv") or any(size != 1 for size in kernel):
        return False
    branch, join = layer.node, _only_user(layer.node)
    while join is not None and not adds(join):
        if join in owners or len(activations_of(join)) != 1:
            return False
        branch, join = join, _only_user(join)
    if join is None:
        return False
    fork = layer.inputs[0]
    while len(fork.users) < 2:
        sources = activations_of(fork)
        if fork in owners or len(sources) != 1:
            return False
        fork = sources[0]
    others = [source for source in activations_of(join) if source is not branch]
    return any(_layers_between(fork, other, owners) >= 2 for other in others)


def _weight_shape(gm: GraphModule, layer: Layer) -> tuple[int, ...]:
    if layer.node.op == "call_module":
        op = table_of(gm).of(gm, layer.node)
        return tuple(tensor_of(gm.get_submodule(layer.path), op.weight if op else "weight").shape)
    meta = weight_argument(layer.node).meta.get("tensor_meta")
    return tuple(meta.shape) if meta is not None else tuple(gm.get_parameter(layer.weights[0]).shape)


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _layers_between(start: Node, end: Node, owners: set[Node]) -> int:
    """Count the layers on the paths from ``start`` to ``end``; 0 where there is no path."""
    return len(descendants(start.graph.nodes, [start]) & set(ancestors([end])) & owners)
