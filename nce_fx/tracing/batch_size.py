"""The size of the batch, where a model writes it down: followed where that can be, else kept and said.

    y.view(16, -1)     ->  y.view(y.size(0), -1)          of a model that was traced with a batch of 16

Whether it was followed is tried: of a batch of two the graph returns what it returns of each, one after the other.
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import TensorMetadata
from torch.utils._pytree import tree_leaves, tree_map

from nce_fx.batches import leading_size
from nce_fx.ops import Op, Ops
from nce_fx.ops.liveness import has_an_effect
from nce_fx.ops.table import argument_names
from nce_fx.tracing.equivalence import difference_of, outputs_of
from nce_fx.tracing.inputs import Inputs


def follow_batch(gm: GraphModule, model: nn.Module, inputs: Inputs, ops: Ops) -> bool:
    """Put the size of the batch in the place of the number that a graph holds instead; say whether there was one.

    Nothing is changed where the model itself runs with other batches, or where the graph does not follow them then.
    """
    size = leading_size(inputs.values)
    found = [] if size is None else list(_written_down(gm, size, ops))
    if size is None or not found:
        return False
    flipped = tree_map(lambda v: v.flip(tuple(range(v.dim()))) if isinstance(v, Tensor) else v, inputs.named)
    both = {name: _joined(value, flipped[name], size) for name, value in inputs.named.items()}
    call = inputs.filled(both)
    if outputs_of(model, call.args, call.kwargs) is not None:
        return False
    before = [(node, node.args) for node, _ in found]
    for node, argument in found:
        _replace(gm, node, argument, size)
    gm.recompile()
    parts = [outputs_of(gm, tuple(values.values()), {}) for values in (inputs.named, flipped)]
    got = outputs_of(gm, tuple(both.values()), {})
    if all(each is not None for each in (*parts, got)) and _one_after_the_other(parts, got, size):
        return True
    for node, args in before:
        node.args = args
    gm.graph.eliminate_dead_code(has_an_effect)
    gm.recompile()
    return False


def _joined(a: Any, b: Any, size: int) -> Any:
    def join(x: Any, y: Any) -> Any:
        return torch.cat([x, y]) if isinstance(x, Tensor) and x.dim() and x.shape[0] == size else x

    return tree_map(join, a, b)


def _one_after_the_other(parts: list[Any], got: Any, size: int) -> bool:
    first, second = (tree_leaves(part) for part in parts)
    all_of = tree_leaves(got)
    if not len(first) == len(second) == len(all_of):
        return False
    batched = [
        (torch.cat([a, b]), c)
        for a, b, c in zip(first, second, all_of, strict=True)
        if isinstance(a, Tensor) and a.dim() and a.shape[0] == size
    ]
    return bool(batched) and all(difference_of(wanted, value) is None for wanted, value in batched)


def _written_down(gm: GraphModule, size: int, ops: Ops) -> Iterator[tuple[Node, int]]:
    """Yield the nodes that hold the size of the batch as the first of the sizes that they make, and which argument."""
    for node in gm.graph.nodes:
        op = ops.of_call(node.target) if node.op in ("call_function", "call_method") else None
        if op is None or not _takes_sizes(op) or len(node.args) < 2 or node.kwargs:
            continue
        sizes: Any = node.args[1]
        first = sizes[0] if isinstance(sizes, list | tuple) and sizes else sizes
        if type(first) is int and first and (first == size or (first % size == 0 and _leads(node.args[0], size))):
            yield node, first


def _takes_sizes(op: Op) -> bool:
    """Whether an operation is given the sizes of what it makes after the value that it is called on."""
    second = argument_names(op.signature)[1:2]
    return op.kind == "movement" and bool(second) and second[0].lstrip("*") in ("shape", "size", "sizes")


def _leads(node: Any, size: int) -> bool:
    meta = node.meta.get("tensor_meta") if isinstance(node, Node) else None
    return isinstance(meta, TensorMetadata) and len(meta.shape) > 0 and meta.shape[0] == size


def _replace(gm: GraphModule, node: Node, first: int, size: int) -> None:
    source: Any = node.args[0]
    if not _leads(source, size):
        source = next(each for each in gm.graph.nodes if _leads(each, size))
    with gm.graph.inserting_before(node):
        if isinstance(node.target, torch._ops.OpOverload):
            number = gm.graph.call_function(torch.ops.aten.sym_size.int, (source, 0))
        else:
            number = gm.graph.call_method("size", (source, 0))
        number.stack_trace = node.stack_trace
        if first != size:
            number = gm.graph.call_function(operator.mul, (number, first // size))
    sizes: Any = node.args[1]
    node.update_arg(1, type(sizes)([number, *sizes[1:]]) if isinstance(sizes, list | tuple) else number)
