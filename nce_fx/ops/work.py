"""The nodes that multiply and accumulate: what they read, which weights they own, and how much work they do.

The work of a node is a sum of products of axis lengths, kept as references to axes so that it can be evaluated at any
widths. For everything with a weight it is *rows x numel(weight)*: a convolution has one row per output position, a
transposed one per input position, a linear layer one per token.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from nce_fx.paths import tensor_at


class Axis(NamedTuple):
    """One axis of a value (by node name) or of a parameter (by path)."""

    source: str
    position: int
    parameter: bool = False


class Work(NamedTuple):
    """MACs as a product of axis lengths, and whether one operand is a weight (else both are activations)."""

    axes: tuple[Axis, ...]
    weighted: bool = True


@dataclass(frozen=True)
class Layer:
    """One use of a multiply-accumulate operation or of a lookup table."""

    path: str
    """The module's path; for raw parameters the parameter's path without a trailing ``.weight``."""
    node: Node
    op: str
    weights: tuple[str, ...]
    """Paths of the parameters that are multiplied with activations; empty where both operands are activations."""
    inputs: tuple[Node, ...]
    """The values it multiplies; for lookup tables, the indices."""
    work: tuple[Work, ...]
    kind: str = ""
    """What kind of operation its row says it is: ``"weighted"``, ``"product"``, ``"lookup"``."""
    spatial: int = 0
    """How many axes of its output come after the channels: 2 of a ``conv2d``."""
    transposed: bool = False
    """Whether its weight has the channels that it reads first."""


Rule = Callable[[GraphModule, Node], Layer]


def shape_of(node: Node) -> tuple[int, ...]:
    """Return the traced shape of a node's value; empty where it is not one tensor."""
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))


def is_floating(node: Node) -> bool:
    """Whether a node's value is one tensor of real numbers."""
    dtype = getattr(node.meta.get("tensor_meta"), "dtype", None)
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def ancestors(nodes: Iterable[Any], through: Callable[[Node], bool] = lambda node: True) -> Iterator[Node]:
    """Yield every node that some values are computed from, each once, themselves first; what is no node is left out.

    ``through`` says of each node that is read whether it is looked at.
    """
    pending, seen = list(nodes), set()
    while pending:
        current = pending.pop()
        if isinstance(current, Node) and current not in seen:
            seen.add(current)
            yield current
            pending.extend(filter(through, current.all_input_nodes))


def descendants(nodes: Iterable[Node], sources: Iterable[Node]) -> set[Node]:
    """Return ``sources`` with what is computed from them of ``nodes``, which come in the order of their graph."""
    found = set(sources)
    for node in nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


_from_inputs: ContextVar[Set[Node]] = ContextVar("_from_inputs", default=frozenset())


@contextmanager
def unchanged(graph: Graph) -> Iterator[None]:
    """Look up once what an input has a part in: inside the block the graph stays as it is.

    Else each layer of a long network asks, back to its input, and all of them together take the square of its length.
    """
    before = _from_inputs.set(descendants(graph.nodes, graph.find_nodes(op="placeholder")))
    try:
        yield
    finally:
        _from_inputs.reset(before)


def source_parameters(node: Any) -> tuple[str, ...]:
    """Return the paths of the parameters that a value is computed from, or nothing where an input has a part in it.

    The largest is first: what a weight is computed from is that rather than what scales it.
    """
    if isinstance(node, Node) and node in _from_inputs.get():
        return ()
    paths: dict[str, int] = {}
    for current in ancestors([node]):
        if current.op == "placeholder":
            return ()
        if current.op == "get_attr":
            paths[str(current.target)] = -prod(shape_of(current))
    return tuple(sorted(paths, key=paths.__getitem__))


_OF_A_WEIGHT = re.compile(r"(\.parametrizations\.weight\..*|\.weight(_orig|_mask|_[guv])?)$")
"""What is behind a module's path in the name of its weight, or of what that is computed from."""


def layer_path(node: Node, weights: tuple[str, ...]) -> str:
    """Return how reports name a layer: its module, else its first parameter, else its node."""
    if node.op == "call_module":
        return str(node.target)
    if not weights:
        return node.name
    path = _OF_A_WEIGHT.sub("", weights[0])
    plain = weights[0] in (path, f"{path}.weight")
    # A spectral norm's products are no layers of the module, and compute its weight.
    return path if plain or any(value.op == "placeholder" for value in ancestors([node])) else node.name


def _argument(node: Node, index: int, *names: str) -> Any:
    if index < len(node.args):
        return node.args[index]
    return next((node.kwargs[name] for name in names if name in node.kwargs), None)


def _axes(node: Node, *, but: int | None = None) -> tuple[Axis, ...]:
    rank = len(shape_of(node))
    left_out = None if but is None else but % rank
    return tuple(Axis(node.name, index) for index in range(rank) if index != left_out)


def _parameter_axes(gm: GraphModule, path: str) -> tuple[Axis, ...]:
    return tuple(Axis(path, index, True) for index in range(tensor_at(gm, path).dim()))


def _weight_axes(gm: GraphModule, weight: Any) -> tuple[Axis, ...]:
    """Axes of a module's own weight (a path) or of the value that serves as the weight (a node)."""
    return _parameter_axes(gm, weight) if isinstance(weight, str) else _axes(weight)


def _operands(node: Node, first: int = 0, weight: str = "weight") -> tuple[Node, Any, tuple[str, ...]]:
    """The input, the weight and the weight's parameters of ``op(input, weight, ...)`` in any spelling."""
    if node.op == "call_module":
        path = f"{node.target}.{weight}"
        return node.all_input_nodes[0], path, (path,)
    value = _argument(node, first + 1, "weight", "other", "mat2", "batch2", "vec")
    return _argument(node, first, "input", "self", "mat1", "batch1", "mat"), value, source_parameters(value)


def rows_times_weight(op: str, axis: int, weight: str = "weight", transposed: bool = False) -> Rule:
    """Return the rule of what multiplies every row with its whole weight; all axes but one count the rows.

    Args:
        op: what reports call it.
        axis: the one of the channels, counted from the end.
        weight: the attribute that is a module's weight; a function has it as its second argument.
        transposed: whether the rows are the input's, as a transposed convolution has them, not the output's.
    """

    def rule(gm: GraphModule, node: Node) -> Layer:
        inputs, value, weights = _operands(node, weight=weight)
        axes = _axes(inputs if transposed else node, but=axis) + _weight_axes(gm, value)
        work, read = (Work(axes, bool(weights)),), (inputs,) if weights else (inputs, value)
        path = layer_path(node, weights)
        return Layer(path, node, op, weights, read, work, spatial=-1 - axis, transposed=transposed)

    return rule


def conv(spatial: int, *, transposed: bool = False) -> Rule:
    """Return the rule of a convolution over so many axes."""
    name = "conv_transpose" if transposed else "conv"
    return rows_times_weight(f"{name}{spatial}d", -1 - spatial, transposed=transposed)


def convolution(gm: GraphModule, node: Node) -> Layer:
    """``aten.convolution``: the number of spatial axes and the direction are arguments."""
    return conv(len(shape_of(_argument(node, 1))) - 2, transposed=bool(node.args[6]))(gm, node)


def matmul(first: int = 0) -> Rule:
    """Return the rule of a matrix product whose operands begin at this argument: the last axis is summed over."""
    return lambda gm, node: _contracted(node, (-1,), first)


def inner(gm: GraphModule, node: Node) -> Layer:
    """The last axes of both operands are summed over; all others stay."""
    return _contracted(node, (-1,))


def tensordot(gm: GraphModule, node: Node) -> Layer:
    """Axes of the first operand that ``dims`` names, or so many of its last, are summed over; all others stay."""
    dims = _argument(node, 2, "dims")
    if isinstance(dims, int):
        return _contracted(node, tuple(range(-dims, 0)))
    return _contracted(node, tuple(dims if isinstance(dims[0], int) else dims[0]))


def _contracted(node: Node, summed: tuple[int, ...], first: int = 0) -> Layer:
    """The layer of a product of two tensors, the first at this argument, some of whose axes are summed over."""
    left, right, _ = _operands(node, first)
    weights = source_parameters(right) or source_parameters(left)
    inputs = tuple(side for side in (left, right) if not weights or source_parameters(side) != weights)
    axes = (*_axes(node), *(Axis(left.name, axis % len(shape_of(left))) for axis in summed))
    return Layer(layer_path(node, weights), node, "matmul", weights, inputs, (Work(axes, bool(weights)),))


def einsum(gm: GraphModule, node: Node) -> Layer:
    """Left to right, two operands at a time: the product of the lengths of every letter that takes part.

    A letter of one operand alone is summed before. Where none is summed over, the product is elementwise: no MACs.
    """
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    nodes = [operand for operand in operands if isinstance(operand, Node)]
    terms, _, result = str(equation).replace(" ", "").partition("->")
    letters = [_letters(term, len(shape_of(value))) for term, value in zip(terms.split(","), nodes, strict=True)]
    home = {x: Axis(value.name, i) for value, term in zip(nodes, letters, strict=True) for i, x in enumerate(term)}
    weights = tuple(path for value in nodes for path in source_parameters(value))
    kept = set(letters[0])
    work = []
    for index in range(1, len(letters)):
        taking_part = sorted(kept | set(letters[index]))
        needed = set(result).union(*letters[index + 1 :]) if result else set(taking_part)
        summed = [letter for letter in taking_part if letter not in needed and not letter.startswith(".")]
        before = (kept ^ set(letters[index])).intersection(summed)
        if set(summed) - before:
            work.append(Work(tuple(home[x] for x in taking_part if x not in before), bool(weights)))
        kept = set(taking_part) - set(summed)
    inputs = tuple(value for value in nodes if not source_parameters(value))
    return Layer(layer_path(node, weights), node, "einsum", weights, inputs, tuple(work))


def _letters(term: str, rank: int) -> list[str]:
    """Split an einsum term into one name an axis; an ellipsis becomes ``.k``, counted from its end."""
    if "..." not in term:
        return list(term)
    before, after = term.split("...")
    hidden = rank - len(before) - len(after)
    return [*before, *(f".{hidden - i}" for i in range(hidden)), *after]


def attention(gm: GraphModule, node: Node) -> Layer:
    """``scaled_dot_product_attention``: scores (q axes x keys), then what it makes of the values, over the keys.

    What one side alone has of heads is broadcast: the scores have those of queries or keys, the result those of values,
    too.
    """
    query, key, value = (_argument(node, i, name) for i, name in enumerate(("query", "key", "value")))
    keys = Axis(key.name, len(shape_of(key)) - 2)
    heads = [
        Axis((key if of_keys != 1 == of_queries else query).name, axis)
        for axis, (of_queries, of_keys) in enumerate(zip(shape_of(query)[:-2], shape_of(key), strict=False))
    ]
    scores = Work((*heads, *_axes(query)[-2:], keys), weighted=False)
    values = Work((*_axes(node), keys), weighted=False)
    return Layer(node.name, node, "attention", (), (query, key, value), (scores, values))


def multihead(gm: GraphModule, node: Node) -> Layer:
    """``nn.MultiheadAttention``: three projections in, scores, values, one projection out."""
    path, module = str(node.target), gm.get_submodule(str(node.target))
    assert isinstance(module, nn.MultiheadAttention)
    query, key, value = (_argument(node, i, name) for i, name in enumerate(("query", "key", "value")))
    heads = Axis(f"{path}.out_proj.weight", 1, True)
    rank = len(shape_of(key))
    keys = Axis(key.name, 0 if rank == 2 or not module.batch_first else 1)
    projections = tuple(Work((*_axes(side), heads)) for side in (query, key, value))
    core = Work((*_axes(query, but=-1), keys, heads), weighted=False)
    out = Work(_axes(query, but=-1) + _parameter_axes(gm, f"{path}.out_proj.weight"))
    names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")
    own = dict(module.named_parameters())
    weights = tuple(f"{path}.{name}" for name in names if name in own)
    inputs = tuple(dict.fromkeys((query, key, value)))
    return Layer(path, node, "multihead_attention", weights, inputs, (*projections, core, core, out))


def recurrent(gm: GraphModule, node: Node) -> Layer:
    """LSTM, GRU, RNN and their cells: every step multiplies with every weight matrix once."""
    if node.op == "call_function":
        return _recurrent_function(gm, node)
    path = str(node.target)
    own = dict(gm.get_submodule(path).named_parameters())
    weights = tuple(f"{path}.{name}" for name in own if name.startswith("weight"))
    inputs = node.all_input_nodes[0]
    work = tuple(Work(_axes(inputs, but=-1) + _parameter_axes(gm, weight)) for weight in weights)
    return Layer(path, node, type(gm.get_submodule(path)).__name__.lower(), weights, (inputs,), work)


def _recurrent_function(gm: GraphModule, node: Node) -> Layer:
    """``aten.lstm(input, state, parameters, ...)`` and its like; matrices are told from biases by their rank.

    A cell, ``aten.gru_cell(input, state, w_ih, w_hh, b_ih, b_hh)``, has them one by one.
    """
    inputs, _, *parameters = node.args
    assert isinstance(inputs, Node)
    if isinstance(parameters[0], (tuple, list)):
        parameters = list(parameters[0])
    matrices = [value for value in parameters if isinstance(value, Node) and len(shape_of(value)) == 2]
    weights = tuple(path for value in matrices for path in source_parameters(value))
    work = tuple(Work(_axes(inputs, but=-1) + _axes(value)) for value in matrices)
    path = weights[0].rpartition(".")[0] or weights[0] if weights else node.name
    return Layer(path, node, _function_name(node), weights, (inputs,), work)


def _function_name(node: Node) -> str:
    """Return what kind of recurrent layer a function is: ``rnn`` for ``aten.rnn_tanh.input``."""
    schema = getattr(node.target, "_schema", None)
    name: str = schema.name.removeprefix("aten::") if schema is not None else getattr(node.target, "__name__", "")
    return name.split("_")[0]


def bilinear(gm: GraphModule, node: Node) -> Layer:
    """Every pair of rows meets the whole weight."""
    left, right = (_argument(node, index, f"input{index + 1}") for index in (0, 1))
    _, weight, weights = _operands(node, 1)
    work = Work(_axes(node, but=-1) + _weight_axes(gm, weight), bool(weights))
    return Layer(layer_path(node, weights), node, "bilinear", weights, tuple(dict.fromkeys((left, right))), (work,))


def embedding(gm: GraphModule, node: Node) -> Layer:
    """A lookup: it owns parameters and does no work."""
    if node.op == "call_module":
        weights: tuple[str, ...] = (f"{node.target}.weight",)
    else:
        weights = next(filter(None, map(source_parameters, (*node.args, *node.kwargs.values()))), ())
    inputs = tuple(value for value in node.all_input_nodes if not source_parameters(value))
    return Layer(layer_path(node, weights), node, "embedding", weights, inputs, ())
