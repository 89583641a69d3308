"""Products of data and a matrix made of parameters, however they are written, become calls of ``F.linear``.

    x @ w.T + b   torch.addmm(b, x, w)   torch.einsum("bi,oi->bo", x, w)   x @ self.proj   GPT-2's Conv1D   W @ x

are linear layers: as such they are counted, resized and quantized. Where the matrix stands at the left, or the letters
of an einsum in another order, axes of the data are moved before and after.
"""

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from nce_fx.ops import Ops
from nce_fx.ops.work import ancestors, descendants, is_floating, shape_of
from nce_fx.paths import tensor_at


@dataclass(frozen=True)
class _Product:
    """A product that is a linear layer: ``x @ w`` has ``_Product(x, w, turned=False)``."""

    data: Any
    weight: Any
    turned: bool
    """Whether the matrix is (out, in), as a linear layer has it."""
    bias: Any = None
    """What is added."""
    reads: int = -1
    """The axis of the data that is summed over."""
    makes: int = -1
    """The axis of the result that is made."""


def products_to_linear(gm: GraphModule, ops: Ops) -> bool:
    """Make linear layers of the products of data and a matrix of parameters; say whether there was one.

    The shapes of the graph's values are known, and have to be found again afterwards.
    """
    of_data, matrices = _sorted(gm)
    if not matrices:
        return False
    changed = False
    for node in list(gm.graph.nodes):
        found = _product(ops, node, matrices) if node.op in ("call_function", "call_method") else None
        if found is not None and found.data in of_data:
            _place(gm, node, found, adds=found.bias in of_data)
            changed = True
    return changed


def _sorted(gm: GraphModule) -> tuple[set[Node], set[Node]]:
    """Return the nodes whose value depends on an input, and the matrices that are made of parameters alone."""
    of_data = descendants(gm.graph.nodes, gm.graph.find_nodes(op="placeholder"))
    held = gm.graph.find_nodes(op="get_attr")
    trained = [node for node in held if isinstance(tensor_at(gm, str(node.target)), nn.Parameter)]
    return of_data, {node for node in descendants(gm.graph.nodes, trained) - of_data if _is_whole(node)}


def _is_whole(node: Node) -> bool:
    """Whether a value is a matrix of the sizes of a parameter that it is made of, not one that was cut or folded."""
    if _rank(node) != 2 or not is_floating(node):
        return False
    sizes = sorted(shape_of(node))
    return any(each.op == "get_attr" and sorted(shape_of(each)) == sizes for each in ancestors([node]))


def _rank(node: Any) -> int:
    return len(shape_of(node)) if isinstance(node, Node) else 0


def _place(gm: GraphModule, node: Node, found: _Product, *, adds: bool) -> None:
    """Turn a node into a linear layer, with the axes moved around it that have to be; data is added by itself."""
    data, weight = found.data, found.weight
    with gm.graph.inserting_before(node):
        if found.reads != -1:
            data = gm.graph.call_method("movedim", (data, found.reads, -1))
        if not found.turned:
            weight = gm.graph.call_method("t", (weight,))
    node.op, node.target = "call_function", F.linear
    node.args, node.kwargs = (data, weight, None if adds else found.bias), {}
    made = [data, weight]
    if adds or found.makes != -1:
        with gm.graph.inserting_after(node):
            if adds:
                after = gm.graph.call_function(operator.add, (node, found.bias))
            else:
                after = gm.graph.call_method("movedim", (node, -1, found.makes))
        node.replace_all_uses_with(after, lambda user: user is not after)
        made.append(after)
    for each in made:
        each.stack_trace = each.stack_trace or node.stack_trace


def _product(ops: Ops, node: Node, matrices: set[Node]) -> _Product | None:
    op = ops.of_call(node.target)
    if op is None or op.kind != "product":
        return None
    if op is ops["einsum"]:
        return _einsum(node, matrices)
    given = ops.arguments(node.target, node.args, node.kwargs)
    if op is ops["addmm"]:
        plain = given.get("beta", 1) == 1 and given.get("alpha", 1) == 1 and isinstance(given["input"], Node)
        return _matmul(ops, given["mat1"], given["mat2"], matrices, given["input"]) if plain else None
    if op is ops["matmul"]:
        return _matmul(ops, given["input"], given["other"], matrices)
    if op is ops["mv"]:
        return _matmul(ops, given["input"], given["vec"], matrices)
    if op is ops["inner"] and given["other"] in matrices:
        return _Product(given["input"], given["other"], True)
    return _tensordot(given, matrices) if op is ops["tensordot"] else None


def _tensordot(given: Mapping[str, Any], matrices: set[Node]) -> _Product | None:
    dims = given.get("dims", 2)
    if given.get("dims_other") is not None:
        dims = (dims, given["dims_other"])  # as torch.export writes it
    reads, axis = ([-1], [0]) if dims == 1 else dims if isinstance(dims, list | tuple) else ([], [])
    if given["other"] not in matrices or len(reads) != 1 or _rank(given["input"]) < 1:
        return None
    rank = _rank(given["input"])
    return _Product(given["input"], given["other"], axis[0] % 2 == 1, None, reads[0] % rank - rank)


def _matmul(ops: Ops, left: Any, right: Any, matrices: set[Node], bias: Node | None = None) -> _Product | None:
    if right in matrices:
        source = right.args[0] if right.args else None
        turned = isinstance(source, Node) and source in matrices and _turns(ops, right)
        return _Product(left, source if turned else right, turned, bias)
    if left in matrices and bias is None and _rank(right) > 0:
        axis = -1 if _rank(right) == 1 else -2
        return _Product(right, left, True, None, axis, axis)
    return None


def _turns(ops: Ops, node: Node) -> bool:
    """Whether a node swaps the axes of a matrix: tried on one."""
    op, rest = ops.of_call(node.target), node.args[1:]
    if op is None or op.memory != "view" or node.kwargs or len(node.all_input_nodes) > 1:
        return False
    matrix = torch.arange(6).view(2, 3)
    call: Any = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    try:
        turned = call(matrix, *rest)
    except (RuntimeError, TypeError, IndexError, ValueError):
        return False
    return isinstance(turned, torch.Tensor) and torch.equal(turned, matrix.T)


def _einsum(node: Node, matrices: set[Node]) -> _Product | None:
    args: Any = node.args
    operands = list(args[1]) if len(args) == 2 and isinstance(args[1], list | tuple) else list(args[1:])
    letters = (
        re.fullmatch(r"([.\w]+),([.\w]+)->([.\w]+)", str(args[0]).replace(" ", "")) if len(operands) == 2 else None
    )
    if letters is None or node.kwargs:
        return None
    data, matrix, out = letters.groups()
    if operands[1] not in matrices:
        operands, (data, matrix) = operands[::-1], (matrix, data)
    named = data.replace("...", "")
    if operands[1] not in matrices or "." in matrix or len({*named}) != len(named):
        return None
    read = [letter for letter in matrix if letter in data and letter not in out]
    made = [letter for letter in matrix if letter not in data and letter in out]
    # What hidden axes stand before is told from the end.
    before = [term.partition("...")[0] for term in (data, out) if "..." in term]
    if len(read) != 1 or len(made) != 1 or data.replace(read[0], "") != out.replace(made[0], "") or any(before):
        return None
    reads, makes = (term.index(letter) - len(term) for term, letter in ((data, read[0]), (out, made[0])))
    return _Product(operands[0], operands[1], matrix[0] == made[0], None, reads, makes)
