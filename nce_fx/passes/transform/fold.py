"""Folding BatchNorm into the layer before it, for deployment.

    BN(W x + b) = (f W) x + (b - mean) f + beta,   f = gamma / sqrt(var + eps), one number per output channel

In a float layer the weight is multiplied by f. In a quantized layer it is the weight's *scale* that is multiplied: the
integers stay the ones the network was trained with, each output channel has its own scale, and the node
``<layer>_weight_quant`` stays in its place (`nce_fx.quantizers.scaled`). Either way the bias is new.

The folded graph computes what the graph computed in evaluation mode, up to rounding in the last place. Behind a 2-bit
quantizer a value that lies on the border of two levels may then fall on the other side.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.nn.modules.batchnorm import _BatchNorm

from nce_fx.ops import OPS
from nce_fx.passes.analysis.layers import Layer, find_layers
from nce_fx.passes.transform.quantize.quantizable_layers import quantizable, weight_argument
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
        layers = [layer for layer in find_layers(result) if quantizable(result, layer)]
        uses: dict[str, int] = {}
        for layer in layers:
            for path in layer.weights:
                uses[path] = uses.get(path, 0) + 1
        folded = 0
        for layer in layers:
            normalization = _normalization_after(result, layer)
            if normalization is None or len(layer.weights) != 1 or uses[layer.weights[0]] > 1:
                continue
            folded += _fold(result, layer, normalization)
        if not folded:
            return gm
        result.recompile()
        result.meta.setdefault("plan", WidthPlan({}, {}, model_fingerprint(gm)))
        return result


class _Normalization(NamedTuple):
    node: Node
    factor: Tensor
    shift: Tensor
    """What is added to (b * factor)."""


def _normalization_after(gm: GraphModule, layer: Layer) -> _Normalization | None:
    """Return the BatchNorm that alone reads a layer, as one factor and one shift per channel."""
    if len(layer.node.users) != 1:
        return None
    node = next(iter(layer.node.users))
    values = _statistics(gm, node)
    if values is None or node.all_input_nodes[0] is not layer.node:
        return None
    mean, variance, gamma, beta, eps = values
    meta = layer.node.meta.get("tensor_meta")
    if layer.op == "linear" and (meta is None or len(meta.shape) != 2):
        return None  # of (N, L, C), BatchNorm1d normalizes L
    factor = (variance + eps).rsqrt()
    factor = factor * gamma if gamma is not None else factor
    shift = -mean * factor
    return _Normalization(node, factor, shift + beta if beta is not None else shift)


def _statistics(gm: GraphModule, node: Node) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, float] | None:
    """Mean, variance, gamma, beta and eps of a BatchNorm in evaluation mode, in any spelling."""
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        if not isinstance(module, _BatchNorm) or module.running_mean is None or module.running_var is None:
            return None
        return module.running_mean, module.running_var, module.weight, module.bias, module.eps
    if OPS.spellings.get(node.target) is not OPS["batch_norm"]:
        return None
    given: dict[str, Any] = {"training": False, "eps": 1e-5, "weight": None, "bias": None}
    given |= OPS.arguments(node.target, node.args, node.kwargs)
    tensors = [given[name] for name in ("running_mean", "running_var", "weight", "bias")]
    if given["training"] is not False or any(not _is_constant(value) for value in tensors) or tensors[0] is None:
        return None
    mean, variance, gamma, beta = (None if value is None else _constant(gm, value) for value in tensors)
    assert mean is not None
    assert variance is not None
    return mean, variance, gamma, beta, float(given["eps"])


def _is_constant(value: Any) -> bool:
    return value is None or (isinstance(value, Node) and value.op == "get_attr")


def _constant(gm: GraphModule, node: Node) -> Tensor:
    value: Any = gm
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value


@torch.no_grad()
def _fold(gm: GraphModule, layer: Layer, normalization: _Normalization) -> bool:
    """Fold one BatchNorm; False where the layer's weight is computed in the graph."""
    node, path = layer.node, layer.weights[0]
    weight = gm.get_parameter(path)
    quantizer: Node | None = None
    if node.op != "call_module":
        source = weight_argument(node)
        if source.op == "call_module" and isinstance(gm.get_submodule(str(source.target)), WeightQuantizer):
            quantizer, source = source, source.args[0]  # type: ignore[assignment]
        if source.op != "get_attr":
            return False
    factor = _per_output_channel(normalization.factor.to(weight.dtype), weight, layer)
    owner, _, leaf = path.rpartition(".")
    bias = _bias(gm, node)
    if quantizer is not None:
        inner = gm.get_submodule(str(quantizer.target))
        assert isinstance(inner, WeightQuantizer)
        place, _, name = str(quantizer.target).rpartition(".")
        setattr(gm.get_submodule(place), name, ScaledWeight(inner, factor).eval())
    else:
        setattr(gm.get_submodule(owner), leaf, nn.Parameter(weight * factor))
    shift = normalization.shift if bias is None else normalization.shift + bias * normalization.factor
    _set_bias(gm, node, owner, leaf, nn.Parameter(shift.to(weight.dtype)))
    normalization.node.replace_all_uses_with(node)
    gm.graph.erase_node(normalization.node)
    called = normalization.node.target
    if normalization.node.op == "call_module" and not any(other.target == called for other in gm.graph.nodes):
        gm.delete_submodule(str(called))
    return True


def _per_output_channel(factor: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """Shape a factor per output channel so that it multiplies a weight.

    A transposed convolution has its weight as (in, out / groups, ...), with the inputs of one group after another.
    """
    tail = [1] * (weight.dim() - 2)
    if "transpose" not in layer.op:
        return factor.reshape(-1, 1, *tail)
    groups = factor.numel() // weight.shape[1]
    rows = factor.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
    return rows.reshape(weight.shape[0], weight.shape[1], *tail)


def _bias(gm: GraphModule, node: Node) -> Tensor | None:
    if node.op == "call_module":
        bias = gm.get_submodule(str(node.target)).bias
        return bias if isinstance(bias, Tensor) else None
    value = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return _constant(gm, value) if isinstance(value, Node) else None


def _set_bias(gm: GraphModule, node: Node, owner: str, weight: str, bias: nn.Parameter) -> None:
    """Give a layer a bias; a function gets it as a parameter beside its weight."""
    module = gm.get_submodule(owner)
    if node.op == "call_module":
        module.bias = bias
        return
    name = "bias" if weight == "weight" else f"{weight}_bias"
    if hasattr(module, name):
        delattr(module, name)
    module.register_parameter(name, bias)
    path = f"{owner}.{name}" if owner else name
    with gm.graph.inserting_before(node):
        read = gm.graph.create_node("get_attr", path, name=path.replace(".", "_"))
    read.meta["tensor_meta"] = _extract_tensor_metadata(bias.detach())
    if len(node.args) > 2:
        node.update_arg(2, read)
    else:
        node.update_kwarg("bias", read)
    gm.graph.eliminate_dead_code(lambda dead: dead.op != "get_attr")
