"""What a node does beside the value that it returns: it keeps statistics, or writes to a tensor that it is given."""

from __future__ import annotations

from torch.fx import Node

from nce_fx.ops import table_of
from nce_fx.ops.spellings import in_place


def has_an_effect(node: Node) -> bool:
    """Whether a node does something though nobody reads its result, so that a graph without it is not the model."""
    return node.is_impure() or writes(node) or _keeps_statistics(node)


def _keeps_statistics(node: Node) -> bool:
    """Whether training a node changes buffers, as a BatchNorm does; the module may be read elsewhere, or after it."""
    owner = node.graph.owning_module
    assert owner is not None
    if node.op == "call_module":
        return any(True for _ in owner.get_submodule(str(node.target)).buffers())
    ops = table_of(owner)
    known = node.op == "call_function" and node.target in ops.signatures
    held = ops.arguments(node.target, node.args, node.kwargs) if known else {}
    return isinstance(held.get("running_mean"), Node)


def writes(node: Node) -> bool:
    """Whether a node changes one of its inputs in place, so that it does something though nobody reads its result."""
    if node.op not in ("call_function", "call_method"):
        return False
    sets = "setitem" in str(getattr(node.target, "__name__", node.target))
    return sets or in_place(node.target) or bool(node.kwargs.get("inplace") or node.kwargs.get("out"))
