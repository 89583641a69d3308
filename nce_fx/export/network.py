"""The traced graph as a networkx graph, for people and for algorithms that know nothing of torch."""

import networkx as nx
from torch.fx import GraphModule

from nce_fx.ops.layers import find_layers
from nce_fx.ops.work import shape_of
from nce_fx.passes.analysis.channels import ChannelGraph, analyze_channels
from nce_fx.passes.analysis.cost import CostReport, analyze_cost, quantizer_bits
from nce_fx.passes.analysis.sensitivity.report import group_shares
from nce_fx.paths import operation


def to_networkx(gm: GraphModule, channels: ChannelGraph | None = None, cost: CostReport | None = None) -> nx.DiGraph:
    """Return a directed graph with a node per fx node and an edge per value that one reads from another.

    Node attributes: ``kind`` (fx's opcode), ``op`` (the layer's operation, else module type or function name),
    ``layer`` (path in the cost report, or ``None``), ``shape``, ``macs``, ``params``, ``bits`` (that the value was
    rounded to, or ``None``), ``groups`` (ids of the channel groups on its axes, in order).

    Raises:
        ChannelError: the graph has no channel analysis.
    """
    channels = channels or analyze_channels(gm)
    cost = cost or analyze_cost(gm, channels)
    layers = {layer.node: layer for layer in find_layers(gm)}
    graph = nx.DiGraph()
    for node in gm.graph.nodes:
        layer = layers.get(node)
        path = layer.path if layer else str(node.target) if node.op == "call_module" else None
        costs = cost.nodes.get(path) if path is not None else None
        graph.add_node(
            node.name,
            kind=node.op,
            op=layer.op if layer else operation(gm, node),
            layer=path if costs else None,
            shape=shape_of(node),
            macs=costs.macs if costs else 0,
            params=costs.params if costs else 0,
            bits=quantizer_bits(gm, node),
            groups=tuple(group_shares(channels, channels.value_axes.get(node.name, ()))),
        )
        graph.add_edges_from((read.name, node.name) for read in node.all_input_nodes)
    return graph
