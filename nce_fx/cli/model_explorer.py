"""A network for Google's Model Explorer (https://github.com/google-ai-edge/model-explorer): a graph, and data of nodes.

The graph is one collection of one graph, ``{"label": ..., "graphs": [{"id": ..., "nodes": [...]}]}``. A node has the
name of its fx node for an id, its operation for a label, its module for a namespace, and as attributes its shape, costs
and bits, and where a layer makes channels their group and width, before and after. The other file colours nodes by how
much noise in a layer's weight and output hurts, ``{graph id: {"results": {node id: {"value": ...}}}}``.
"""

from typing import Any

from torch.fx import GraphModule

from nce_fx.export.network import to_networkx
from nce_fx.report.records import RewriteReport

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
