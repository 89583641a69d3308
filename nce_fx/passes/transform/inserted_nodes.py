"""Nodes that a resize puts into a graph: gathers, shares, and what is repeated as often as something else is long."""

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from nce_fx.devices import device_of
from nce_fx.ids.labels import Ids


def multiply(result: GraphModule, before: Node, source: Any, axis: int, factors: torch.Tensor) -> Node:
    """Insert a multiplication along an axis (counted from the end)."""
    share = constant(result, before, "channel_share", factors.reshape(-1, *[1] * (-1 - axis)))
    share.meta["tensor_meta"] = _extract_tensor_metadata(result.get_buffer(str(share.target)))
    with result.graph.inserting_before(before):
        product = result.graph.call_function(operator.mul, (source, share))
    if isinstance(source, Node):
        product.meta = dict(source.meta)
    return product


def argument(node: Node, position: int | str) -> Node:
    """Return an argument by its position or its name."""
    found = node.kwargs[position] if isinstance(position, str) else node.args[position]
    assert isinstance(found, Node)
    return found


def give(node: Node, position: int | str, value: Node) -> None:
    """Give a node another argument."""
    if isinstance(position, str):
        node.update_kwarg(position, value)
    else:
        node.update_arg(position, value)


def repeat(result: GraphModule, node: Node, position: int | str, like: int | str, axis: int) -> None:
    """Repeat the one entry that an argument repeats along an axis as often as another argument is long there."""
    source, other = argument(node, position), argument(node, like)
    dims = len(source.meta["tensor_meta"].shape)
    with result.graph.inserting_before(node):
        size = result.graph.call_function(torch.ops.aten.sym_size.int, (other, axis))
        one = result.graph.call_function(torch.narrow, (source, axis, 0, 1))
        sizes = [size if k == axis else -1 for k in range(dims)]
        repeated = result.graph.call_method("expand", (one, *sizes))
    for made, length in ((one, 1), (repeated, other.meta["tensor_meta"].shape[axis])):
        meta = source.meta["tensor_meta"]
        shape = torch.Size([length if k == axis else s for k, s in enumerate(meta.shape)])
        made.meta["tensor_meta"] = meta._replace(shape=shape, stride=torch.empty(shape, device="meta").stride())
    give(node, position, repeated)


def select(result: GraphModule, before: Node, source: Node, axis: int, order: Ids) -> Node:
    """Insert a gather of channels."""
    index = constant(result, before, "channel_order", torch.from_numpy(order))
    with result.graph.inserting_before(before):
        return result.graph.call_function(torch.index_select, (source, axis, index))


def constant(result: GraphModule, before: Node, kind: str, value: torch.Tensor) -> Node:
    """Insert a constant, a buffer that moves with the module and is no part of its state; it shares no memory."""
    known = (name for name, _ in result.named_buffers(remove_duplicate=False))
    name = f"{kind}_{sum(1 for each in known if each.startswith(f'{kind}_'))}"
    result.register_buffer(name, value.to(device_of(result), copy=True), persistent=False)
    with result.graph.inserting_before(before):
        return result.graph.get_attr(name)
