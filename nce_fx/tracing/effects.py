"""What a node does beside the value that it returns: it keeps statistics, or writes to a tensor that it is given."""

from torch.fx import GraphModule, Node

from nce_fx.ops import table_of
from nce_fx.ops.liveness import overwritten


def has_an_effect(node: Node) -> bool:
    """Whether a node does something though nobody reads its result, so that a graph without it is not the model."""
    gm = node.graph.owning_module
    assert gm is not None
    return node.is_impure() or bool(overwritten(gm, node)) or _keeps_statistics(gm, node)


def _keeps_statistics(gm: GraphModule, node: Node) -> bool:
    """Whether training a node changes buffers, as a BatchNorm does; the module may be read elsewhere, or after it."""
    if node.op == "call_module":
        return any(True for _ in gm.get_submodule(str(node.target)).buffers())
    ops = table_of(gm)
    known = node.op == "call_function" and node.target in ops.signatures
    held = ops.arguments(node.target, node.args, node.kwargs) if known else {}
    return isinstance(held.get("running_mean"), Node)
