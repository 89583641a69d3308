"""The size of the batch, where a model writes it down: followed where that can be, else kept and said.

    y.view(16, -1)     ->  y.view(y.size(0), -1)          of a model that was traced with a batch of 16

Whether it was followed is tried: of other batches the graph returns what the model does. Where the model runs with no
other, of a batch of two it returns what it returns of each, one after the other.
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import TensorMetadata
from torch.utils._pytree import tree_leaves, tree_map

from nce_fx.batches import FIXED_SIZE, leading_size
from nce_fx.by_mode import is_by_mode
from nce_fx.ops import Op, Ops
from nce_fx.ops.liveness import has_an_effect
from nce_fx.ops.table import argument_names
from nce_fx.tracing.equivalence import MODES, agrees, difference_of, outputs_of
from nce_fx.tracing.inputs import Inputs


def follow_batch(gm: GraphModule, model: nn.Module, inputs: Inputs, ops: Ops) -> bool:
    """Put the size of the batch in the place of the number that a graph holds instead; say whether there was one.

    Nothing is changed where the graph does not follow other batches then; nor where the model itself runs with others,
    unless its graph is said to take one size alone, as where what the model keeps from its last call has that size.
    """
    size, fixed = leading_size(inputs.values), gm.meta.get(FIXED_SIZE)
    found = [] if size is None else list(_written_down(gm, size, ops))
    if size is None or not (found or fixed):
        return False
    others = [_of_size(inputs, count, size) for count in (2 * size, 1 if size > 1 else 3)]
    call = inputs.filled(others[0])
    runs = outputs_of(model, call.args, call.kwargs) is not None
    if runs and fixed is None:
        return False
    gm.meta.pop(FIXED_SIZE, None)
    before = [(node, node.args) for node, _ in found]
    for node, argument in found:
        _replace(gm, node, argument, size)
    gm.recompile()
    if runs and all(agrees(model, gm, inputs, values, mode) for values in others for mode in MODES):
        return True
    if not runs and _one_after_the_other(gm, inputs, size):
        return True
    for node, args in before:
        node.args = args
    gm.graph.eliminate_dead_code(has_an_effect)
    gm.recompile()
    if fixed is not None:
        gm.meta[FIXED_SIZE] = fixed
    return False


def _of_size(inputs: Inputs, count: int, size: int) -> dict[str, Any]:
    """Return a batch of so many samples of those that there are, in turn."""

    def taken(value: Any) -> Any:
        whole = isinstance(value, Tensor) and value.dim() and value.shape[0] == size
        return value[torch.arange(count, device=value.device) % size] if whole else value

    return {name: tree_map(taken, value) for name, value in inputs.named.items()}


def _one_after_the_other(gm: GraphModule, inputs: Inputs, size: int) -> bool:
    """Whether of two batches in one a graph returns what it returns of each."""

    def join(a: Any, b: Any) -> Any:
        return torch.cat([a, b]) if isinstance(a, Tensor) and a.dim() and a.shape[0] == size else a

    flipped = tree_map(lambda v: v.flip(tuple(range(v.dim()))) if isinstance(v, Tensor) else v, inputs.named)
    both = {name: tree_map(join, value, flipped[name]) for name, value in inputs.named.items()}
    runs = [outputs_of(gm, tuple(values.values()), {}) for values in (inputs.named, flipped, both)]
    first, second, all_of = map(tree_leaves, runs)
    if any(run is None for run in runs) or not len(first) == len(second) == len(all_of):
        return False
    batched = [
        (torch.cat([a, b]), c)
        for a, b, c in zip(first, second, all_of, strict=True)
        if isinstance(a, Tensor) and a.dim() and a.shape[0] == size
    ]
    return bool(batched) and all(difference_of(wanted, value) is None for wanted, value in batched)


def _written_down(gm: GraphModule, size: int, ops: Ops) -> Iterator[tuple[Node, int]]:
    """Yield the nodes that hold the size of the batch as the first of the sizes that they make, and which argument; and
    those that choose it in one mode alone.
    """
    for node in gm.graph.nodes:
        if is_by_mode(node):
            yield from ((node, size) for each in node.args[:2] if type(each) is int and each == size)
            continue
        op = ops.of_call(node.target) if node.op in ("call_function", "call_method") else None
        if op is None or not _takes_sizes(op) or len(node.args) < 2 or node.kwargs:
            continue
        sizes: Any = node.args[1]
        first = sizes[0] if isinstance(sizes, list | tuple) and sizes else sizes
        if type(first) is not int or not first or first % size:
            continue
        # Windows of all images lie in one axis: a view keeps their number, (8, 4, 24) to (8, 4, 2, 12) of two images.
        if first == size or _leads(node.args[0], size) or _leads(node.args[0], first):
            yield node, first


def _takes_sizes(op: Op) -> bool:
    """Whether an operation is given the sizes of what it makes after the value that it is called on."""
    second = argument_names(op.signature)[1:2]
    return op.kind == "movement" and bool(second) and second[0].lstrip("*") in ("shape", "size", "sizes")


def _leads(node: Any, size: int) -> bool:
    meta = node.meta.get("tensor_meta") if isinstance(node, Node) and node.op != "get_attr" else None
    return isinstance(meta, TensorMetadata) and len(meta.shape) > 0 and meta.shape[0] == size


def _replace(gm: GraphModule, node: Node, first: int, size: int) -> None:
    source: Any = node.args[0]
    if _leads(source, first):
        size = first
    if not _leads(source, size) or is_by_mode(node):
        source = next(each for each in gm.graph.nodes if _leads(each, size))
    with gm.graph.inserting_before(node):
        if isinstance(node.target, torch._ops.OpOverload):
            number = gm.graph.call_function(torch.ops.aten.sym_size.int, (source, 0))
        else:
            number = gm.graph.call_method("size", (source, 0))
        number.stack_trace = node.stack_trace
        if first != size:
            number = gm.graph.call_function(operator.mul, (number, first // size))
    if is_by_mode(node):
        node.args = tuple(number if type(each) is int and each == first else each for each in node.args)
        return
    sizes: Any = node.args[1]
    node.update_arg(1, type(sizes)([number, *sizes[1:]]) if isinstance(sizes, list | tuple) else number)
