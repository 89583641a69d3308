"""The parameters and buffers of a graph, with the weights that weight normalization computes in their place."""

from torch.fx import GraphModule, Node

from nce_fx.ids.space import Tensors
from nce_fx.ops import OPS


def tensors_of(gm: GraphModule) -> Tensors:
    """Return the parameters and buffers of a graph by path, such as ``tensors_of(gm).tensors["conv1.weight"]``."""
    return Tensors.of(gm, _normalizes)


def _normalizes(node: Node) -> bool:
    return OPS.of_call(node.target) is OPS["_weight_norm"]
