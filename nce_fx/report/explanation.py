"""Why a layer's width is tied to others: its group, and the chain of nodes that carries the channels between them."""

from collections import deque
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from nce_fx.errors import InputError, source_line
from nce_fx.nearest import nearest
from nce_fx.passes.analysis.channels import ChannelGraph, ChannelGroup

_SHOWN = 8
"""Layers of a module that a message names."""


@dataclass(frozen=True)
class TiedLayer:
    """Another producer of the same group, and the nodes on the way to it, each with the user's source line."""

    producer: str
    chain: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Explanation:
    """What is known of one layer's channels."""

    name: str
    produces: ChannelGroup | None
    consumes: tuple[ChannelGroup, ...]
    ties: tuple[TiedLayer, ...]


def explain(gm: GraphModule, channels: ChannelGraph, name: str) -> Explanation:
    """Explain a layer or parameter by its path, or a graph node by its name.

    Raises:
        InputError: nothing of this name has channels; the message names the nearest.
    """
    path = name
    if not _is_known(channels, path):
        path = next((str(node.target) for node in gm.graph.nodes if node.name == name), name)
    if not _is_known(channels, path):
        known = sorted({each for group in channels for each in (*group.producers, *group.consumers)})
        inside = [each for each in known if each.startswith(f"{name}.")]
        if inside:
            more = f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else ""
            raise InputError(f"{name!r} is no layer; inside of it are {', '.join(inside[:_SHOWN])}{more}: name one")
        raise InputError(f"no layer {name!r} has channels{nearest(name, known)}: `--groups` lists them all")
    group = channels.group_of(path)
    consumes = tuple(each for each in channels if path in each.consumers)
    return Explanation(path, group, consumes, () if group is None else _ties(gm, channels, group, path))


def _ties(gm: GraphModule, channels: ChannelGraph, group: ChannelGroup, path: str) -> tuple[TiedLayer, ...]:
    before = _search(gm, channels, group, path)
    ties = []
    for producer in group.producers:
        if producer == path:
            continue
        end = next((node for node in before if _belongs(node, producer)), None)
        chain: list[tuple[str, str]] = []
        while end is not None:
            chain.append((end.name, source_line(end)))
            end = before[end]
        ties.append(TiedLayer(producer, tuple(reversed(chain))))
    return tuple(ties)


def _search(gm: GraphModule, channels: ChannelGraph, group: ChannelGroup, path: str) -> dict[Node, Node | None]:
    """Search breadth-first from a layer's nodes through nodes that carry the group; return each node's predecessor."""
    carriers = {node for node in gm.graph.nodes if _carries(channels, group, node)}
    starts = [node for node in gm.graph.nodes if _belongs(node, path)]
    before: dict[Node, Node | None] = dict.fromkeys(starts)
    queue = deque(starts)
    while queue:
        node = queue.popleft()
        for near in (*node.users, *node.all_input_nodes):
            if near in carriers and near not in before:
                before[near] = node
                queue.append(near)
    return before


def _carries(channels: ChannelGraph, group: ChannelGroup, node: Node) -> bool:
    axes = channels.value_axes.get(node.name, ())
    return any(part in group.parts for axis in axes for part, _ in axis.terms) or any(
        _belongs(node, producer) for producer in group.producers
    )


def _belongs(node: Node, path: str) -> bool:
    if node.op == "call_module":
        return str(node.target) == path
    return any(source.op == "get_attr" and str(source.target) == path for source in node.all_input_nodes)


def _is_known(channels: ChannelGraph, path: str) -> bool:
    return any(path in group.producers or path in group.consumers for group in channels)
