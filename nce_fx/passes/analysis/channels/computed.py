"""Weights that the graph computes from parameters, and when one can be kept as a parameter instead.

A standardized weight depends on all its inputs at once: no change to what it is computed from divides one channel among
copies. But its value can be divided, so a resize puts the value in the place of the parameter it is computed from.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.fx import GraphModule, Interpreter, Node

from nce_fx.tracing.exported import evaluating


def sources(weight: Node) -> tuple[Node, ...]:
    """Return the nodes that a weight is computed from, in order, itself last; nothing where an input has a part."""
    found: dict[Node, None] = {}

    def visit(node: Node) -> bool:
        if node not in found:
            if node.op == "placeholder" or not all(map(visit, node.all_input_nodes)):
                return False
            found[node] = None
        return True

    return tuple(found) if visit(weight) else ()


def stands_alone(weight: Node, parameter: Collection[str], trained: Collection[str]) -> bool:
    """Whether one layer alone reads a weight, computed from one parameter (by all its paths) that nothing else needs.

    Where others are trained as well (a gain for each filter), they would have nothing left to do.
    """
    inside = frozenset(sources(weight))

    def apart(node: Node) -> bool:
        if node.op == "get_attr" and node.target in parameter:
            return node in inside and all(user in inside for user in node.users)
        if node.op == "call_module":
            return node not in inside and not any(path.startswith(f"{node.target}.") for path in parameter)
        return node.op != "get_attr" or node not in inside or node.target not in trained

    return bool(inside) and len(weight.users) == 1 and all(map(apart, weight.graph.nodes))


def value_of(gm: GraphModule, weight: Node) -> torch.Tensor:
    """Compute a weight from its parameters, as in evaluation mode."""
    run = Interpreter(gm, garbage_collect_values=False)
    with evaluating(gm), torch.no_grad():
        for node in sources(weight):
            run.env[node] = run.run_node(node)
    value: torch.Tensor = run.env[weight]
    return value.detach()


def keep(gm: GraphModule, weight: Node, parameter: str) -> None:
    """Read a parameter where a weight was computed, and drop what computed it."""
    chain = sources(weight)
    with gm.graph.inserting_before(weight):
        kept = gm.graph.get_attr(parameter)
    kept.meta = dict(weight.meta)
    weight.replace_all_uses_with(kept)
    for node in reversed(chain):
        if not node.users:
            gm.graph.erase_node(node)
