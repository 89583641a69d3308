"""Norms as one factor and one shift for each channel, and how the layer before them takes these in."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.fx import GraphModule, Node

from nce_fx.ops.work import Layer
from nce_fx.paths import tensor_at


class Affine(NamedTuple):
    """A norm in evaluation mode: ``x * factor + shift``, both (channels,)."""

    factor: Tensor
    shift: Tensor


AffineRule = Callable[[GraphModule, Node, dict[str, Any]], Affine | None]
"""(graph, node, arguments of its call by their names; none for a module) -> what it is in evaluation mode."""
FoldRule = Callable[[Layer, Tensor, Tensor], Tensor]
"""(layer, a factor for each channel that it makes, its weight) -> the factors, shaped to multiply the weight."""


def batch_norm(gm: GraphModule, node: Node, arguments: dict[str, Any]) -> Affine | None:
    """Return what a batch norm is where its statistics are fixed, such as ``Affine(gamma / sigma, beta - mean * ...)``.

    ``None`` where they are the batch's, or not known: a function has to be given them as constants of the graph.
    """
    given: dict[str, Any] = {"training": False, "eps": 1e-5, "weight": None, "bias": None} | arguments
    if node.op == "call_module":
        module: Any = gm.get_submodule(str(node.target))
        given |= {name: getattr(module, name) for name in ("running_mean", "running_var", "weight", "bias", "eps")}
    tensors = [given[name] for name in ("running_mean", "running_var", "weight", "bias")]
    known = all(value is None or isinstance(value, Tensor) or value.op == "get_attr" for value in tensors)
    if given["training"] is not False or not known or tensors[0] is None:
        return None
    mean, variance, gamma, beta = (tensor_at(gm, str(v.target)) if isinstance(v, Node) else v for v in tensors)
    factor = (variance + float(given["eps"])).rsqrt()
    factor = factor if gamma is None else factor * gamma
    shift = -mean * factor
    return Affine(factor, shift if beta is None else shift + beta)


def rows(layer: Layer, factor: Tensor, weight: Tensor) -> Tensor:
    """Return factors for a weight (out, in, ...), ``(64, 1, 1, 1)`` for a convolution with 64 outputs."""
    return factor.reshape(-1, *[1] * (weight.dim() - 1))


def columns(layer: Layer, factor: Tensor, weight: Tensor) -> Tensor:
    """Return factors for a weight (in, out / groups, ...), a transposed convolution's: ``(in, out / groups, 1, 1)``.

    The inputs of one group lie after another, and so do their factors.
    """
    groups = factor.numel() // weight.shape[1]
    each = factor.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
    return each.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))


def rows_or_columns(layer: Layer, factor: Tensor, weight: Tensor) -> Tensor:
    """Return the factors of ``aten.convolution``, whose ``transposed`` says which of the two its weight has."""
    return (columns if layer.transposed else rows)(layer, factor, weight)
