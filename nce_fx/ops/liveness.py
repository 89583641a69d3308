"""Which values are in memory when: the intervals that peak activation memory is the maximum over.

Views and in-place operations give no new storage; they lengthen the life of the one they look into. Nothing is assumed
to be fused or computed in place by a backend.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from nce_fx.ops.spellings import in_place
from nce_fx.ops.table import table_of


@dataclass(frozen=True)
class Storage:
    """The memory of one value: from the step that fills it to the last step that reads it (indices into the graph)."""

    node: Node
    first: int
    last: int


def storages(gm: GraphModule) -> tuple[Storage, ...]:
    """Return the storage of every value of a graph, parameters left out, in the order they are filled."""
    owner: dict[Node, Node] = {}
    first: dict[Node, int] = {}
    last: dict[Node, int] = {}
    for step, node in enumerate(gm.graph.nodes):
        for read in node.all_input_nodes:
            if owner.get(read, read) in last:
                last[owner.get(read, read)] = step
        if node.op in ("get_attr", "output"):
            continue
        if node.all_input_nodes and aliases(gm, node):
            owner[node] = owner.get(node.all_input_nodes[0], node.all_input_nodes[0])
        else:
            first[node] = last[node] = step
    return tuple(Storage(node, first[node], last[node]) for node in first)


def aliases(gm: GraphModule, node: Node) -> bool:
    """Return whether a node's value lives in the memory of its first input."""
    if isinstance(node.target, OpOverload):
        returns = node.target._schema.returns
        if returns and returns[0].alias_info is not None:
            return True
    op = table_of(gm).of(gm, node)
    return (op is not None and op.memory == "view") or writes_in_place(gm, node)


def writes_in_place(gm: GraphModule, node: Node) -> bool:
    """Return whether a node overwrites its first input."""
    if node.op == "call_module":
        return bool(getattr(gm.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    return in_place(node.target) or bool(node.kwargs.get("inplace"))
