"""The traced graph for others: as a networkx graph, for people and for algorithms that know nothing of torch, and for
Google's Model Explorer (https://github.com/google-ai-edge/model-explorer), a graph and data of nodes.

The explorer's graph is one collection of one graph, ``{"label": ..., "graphs": [{"id": ..., "nodes": [...]}]}``. A node
has the name of its fx node for an id, its operation for a label, its module for a namespace, and as attributes its
shape, costs and bits, and where a layer makes channels their group and width, before and after. The other file colours
nodes by how much noise in a layer's weight and output hurts, ``{graph id: {"results": {node id: {"value": ...}}}}``.
"""

from typing import Any

import networkx as nx
from torch.fx import GraphModule

from nce_fx.arguments import checked
from nce_fx.ops.layers import find_layers
from nce_fx.ops.work import shape_of
from nce_fx.passes.analysis.channels import ChannelGraph, analyze_channels
from nce_fx.passes.analysis.cost import CostReport, analyze_cost, quantizer_bits
from nce_fx.passes.analysis.sensitivity.report import group_shares
from nce_fx.paths import operation
from nce_fx.report.records import RewriteReport


@checked
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


_GRADIENT = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#c9402b"}]


def model_explorer(gm: GraphModule, label: str, report: RewriteReport | None = None) -> tuple[Any, Any]:
    """Return the graph and the data of its nodes, as JSON values.

    Args:
        gm: any graph of nce-fx.
        label: what the graph is called, such as a model's name; its id as well.
        report: of the rewrite that made it, for widths and sensitivities.

    Raises:
        ChannelError: the graph has no channel analysis.
    """
    network = to_networkx(gm)
    groups = report.groups if report is not None else ()
    widths = {producer.removesuffix(".weight"): group for group in groups for producer in group.producers}
    noise = {layer.name: layer.weight + layer.activation for layer in report.layers} if report is not None else {}
    nodes, results = [], {}
    for name, about in network.nodes(data=True):
        attributes = {
            "shape": "x".join(map(str, about["shape"] or ())),
            "macs": f"{about['macs']:,}" if about["macs"] else "",
            "params": f"{about['params']:,}" if about["params"] else "",
            "bits": str(about["bits"] or ""),
        }
        path = about["layer"] or ""
        if path in widths:
            attributes |= {"group": widths[path].id, "width": f"{widths[path].before} to {widths[path].after}"}
        edges = [{"sourceNodeId": source, "sourceNodeOutputId": "0"} for source in network.predecessors(name)]
        nodes.append(
            {
                "id": name,
                "label": about["op"],
                "namespace": "/".join(path.split(".")[:-1]),
                "attrs": [{"key": key, "value": value} for key, value in attributes.items() if value],
                "incomingEdges": [edge | {"targetNodeInputId": str(index)} for index, edge in enumerate(edges)],
            }
        )
        if path in noise:
            results[name] = {"value": noise[path]}
    graph = {"label": label, "graphs": [{"id": label, "nodes": nodes}]}
    return graph, {label: {"results": results, "gradient": _GRADIENT}}
