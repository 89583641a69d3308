"""Folding BatchNorm into the layer before it, for deployment.

    BN(W x + b) = (f W) x + (b - mean) f + beta,   f = gamma / sqrt(var + eps), one number per output channel

In a float layer the weight is multiplied by f. In a quantized layer it is the weight's *scale* that is multiplied: the
integers stay the ones the network was trained with, each output channel has its own scale, and the node
``<layer>_weight_quant`` stays in its place (`nce_fx.quantizers.scaled`). Either way the bias is new.

The folded graph computes what the graph computed in evaluation mode, up to rounding in the last place. Behind a 2-bit
quantizer a value that lies on the border of two levels may then fall on the other side.
"""

import copy
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from nce_fx.ops import Absent, table_of
from nce_fx.ops.given_weight import module_called
from nce_fx.ops.layers import find_layers
from nce_fx.ops.rules.affine import Affine
from nce_fx.ops.table import argument_names
from nce_fx.ops.work import Layer, shape_of
from nce_fx.passes.transform.quantize.quantizable_layers import quantizable, weight_argument
from nce_fx.paths import called, read_at, tensor_at
from nce_fx.pipeline import Given, Pass
from nce_fx.plan import WidthPlan, model_fingerprint
from nce_fx.quantizers import WeightQuantizer
from nce_fx.quantizers.scaled import ScaledWeight


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold every BatchNorm that directly follows a convolution or linear layer and is the only one to read it.

    The result is in evaluation mode. Left as they are: a BatchNorm without running statistics, one behind a layer whose
    weight other layers use too or is computed in the graph, and one whose channels are not the layer's.
    """

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        """Return the folded graph."""
        result = copy.deepcopy(gm).eval()
        readers, folded = _readers(result), 0
        for layer in find_layers(result):
            norm = _norm_after(result, layer) if quantizable(result, layer) else None
            if norm is not None and len(layer.weights) == 1 and readers[layer.weights[0]] == 1:
                folded += _fold(result, layer, *norm)
        if not folded:
            return gm
        result.recompile()
        result.meta.setdefault("plan", WidthPlan({}, {}, model_fingerprint(gm)))
        return result


def _readers(gm: GraphModule) -> Counter[str]:
    """Return how many nodes read each parameter, as it is or through its quantizer; a module reads its own."""
    found: Counter[str] = Counter()
    for node in gm.graph.nodes:
        if node.op == "call_module":
            found.update(f"{node.target}.{name}" for name in gm.get_submodule(str(node.target))._parameters)
        elif node.op == "get_attr":
            for user in node.users:
                found[str(node.target)] += 1 if called(gm, user, WeightQuantizer) is None else len(user.users)
    return found


def _norm_after(gm: GraphModule, layer: Layer) -> tuple[Node, Affine] | None:
    """Return the norm that alone reads a layer, along the channels that it makes, as a factor and a shift for each."""
    node = next(iter(layer.node.users)) if len(layer.node.users) == 1 else None
    ops = table_of(gm)
    op = None if node is None else ops.nearest(gm, node)
    if node is None or op is None or isinstance(op.affine, Absent) or node.all_input_nodes[0] is not layer.node:
        return None
    if len(shape_of(layer.node)) - 1 - layer.spatial != 1:
        return None  # of (N, L, C), BatchNorm1d normalizes L
    arguments = {} if node.op == "call_module" else ops.arguments(node.target, node.args, node.kwargs)
    found = op.affine(gm, node, arguments)
    return None if found is None else (node, found)


@torch.no_grad()
def _fold(gm: GraphModule, layer: Layer, norm: Node, affine: Affine) -> bool:
    """Fold one norm; False where the layer takes none in, or its weight is computed in the graph."""
    node, path = layer.node, layer.weights[0]
    op, weight = table_of(gm).of(gm, node), gm.get_parameter(path)
    held = module_called(node)
    own = held is not None and op is not None and op.kind == "custom" and hasattr(gm.get_submodule(held), "bias")
    if op is None or isinstance(op.fold, Absent) or not (own or "bias" in argument_names(op.signature)):
        return False
    inner: WeightQuantizer | None = None
    if node.op != "call_module":
        source = quantizer = weight_argument(node)
        inner = called(gm, quantizer, WeightQuantizer)
        if inner is not None:
            source = quantizer.args[0]  # type: ignore[assignment]
        if source.op != "get_attr":
            return False
    factor = op.fold(layer, affine.factor.to(weight.dtype), weight)
    owner, _, leaf = path.rpartition(".")
    bias = _bias(gm, node)
    if inner is not None:
        gm.add_submodule(str(quantizer.target), ScaledWeight(inner, factor).eval())
    else:
        setattr(gm.get_submodule(owner), leaf, nn.Parameter(weight * factor))
    shift = affine.shift if bias is None else affine.shift + bias * affine.factor
    _set_bias(gm, node, owner, leaf, nn.Parameter(shift.to(weight.dtype)))
    norm.replace_all_uses_with(node)
    gm.graph.erase_node(norm)
    if norm.op == "call_module" and not any(other.target == norm.target for other in gm.graph.nodes):
        gm.delete_submodule(str(norm.target))
    return True


def _bias(gm: GraphModule, node: Node) -> Tensor | None:
    if (held := module_called(node)) is not None:
        bias = gm.get_submodule(held).bias
        return bias if isinstance(bias, Tensor) else None
    position = _bias_position(gm, node)
    value = node.args[position] if len(node.args) > position else node.kwargs.get("bias")
    return tensor_at(gm, str(value.target)) if isinstance(value, Node) else None


def _bias_position(gm: GraphModule, node: Node) -> int:
    return argument_names(table_of(gm).signatures[node.target]).index("bias")


def _set_bias(gm: GraphModule, node: Node, owner: str, weight: str, bias: nn.Parameter) -> None:
    """Give a layer a bias; a function gets it as a parameter beside its weight."""
    module = gm.get_submodule(owner)
    if module_called(node) is not None:
        module.bias = bias
        return
    name = "bias" if weight == "weight" else f"{weight}_bias"
    if hasattr(module, name):
        delattr(module, name)
    module.register_parameter(name, bias)
    path = f"{owner}.{name}" if owner else name
    with gm.graph.inserting_before(node):
        read = read_at(gm, path)
    if len(node.args) > (position := _bias_position(gm, node)):
        node.update_arg(position, read)
    else:
        node.update_kwarg("bias", read)
    gm.graph.eliminate_dead_code(lambda dead: dead.op != "get_attr")
