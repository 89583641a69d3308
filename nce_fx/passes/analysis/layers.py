"""The layers of a graph: its nodes that multiply and accumulate or look up, as the table of operations says."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import GraphModule, Node

from nce_fx.ops import Absent, table_of
from nce_fx.ops.work import Axis, Layer, Rule, Work, layer_path, made_from, shape_of, source_parameters

__all__ = ["Axis", "Layer", "Work", "find_layers", "layer_path", "made_from", "shape_of", "source_parameters"]


def find_layers(gm: GraphModule) -> tuple[Layer, ...]:
    """Return every layer of the graph in execution order; a module that is called twice appears twice."""
    trained = {path for path, _ in gm.named_parameters(remove_duplicate=False)}
    found = []
    for node in gm.graph.nodes:
        rule = _rule_of(gm, node)
        if rule is not None:
            layer = rule(gm, node)
            found.append(replace(layer, weights=tuple(path for path in layer.weights if path in trained)))
    return tuple(found)


def _rule_of(gm: GraphModule, node: Node) -> Rule | None:
    """Return the rule of a node, or ``None`` where it is no layer; a subclass counts as what it is derived from."""
    ops = table_of(gm)
    if node.op == "call_module":
        rows = [
            ops.spellings[kind] for kind in type(gm.get_submodule(str(node.target))).__mro__ if kind in ops.spellings
        ]
    else:
        found = ops.of(gm, node)
        rows = [] if found is None else [found]
    return next((row.macs for row in rows if not isinstance(row.macs, Absent)), None)
