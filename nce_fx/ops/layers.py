"""The layers of a graph: its nodes that multiply and accumulate or look up, as the table of operations says."""

from dataclasses import replace

from torch.fx import GraphModule

from nce_fx.ops.op import Absent
from nce_fx.ops.table import table_of
from nce_fx.ops.work import Layer, unchanged


def find_layers(gm: GraphModule) -> tuple[Layer, ...]:
    """Return every layer of the graph in execution order; a module that is called twice appears twice."""
    trained = {path for path, _ in gm.named_parameters(remove_duplicate=False)}
    found = []
    with unchanged(gm.graph):
        for node in gm.graph.nodes:
            op = table_of(gm).nearest(gm, node)
            if op is not None and not isinstance(op.macs, Absent):
                layer = op.macs(gm, node)
                if op.kind == "product" and not layer.work:
                    continue  # an elementwise product, however it is written
                weights = tuple(path for path in layer.weights if path in trained)
                found.append(replace(layer, weights=weights, kind=op.kind))
    return tuple(found)
