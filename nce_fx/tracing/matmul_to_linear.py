"""Products of data and a matrix of parameters, however they are written, become calls of ``F.linear``.

    x @ w.T + b   torch.addmm(b, x, w)   torch.einsum("bi,oi->bo", x, w)   x @ self.proj   GPT-2's Conv1D

are linear layers: as such they are counted, resized and quantized.
"""

from __future__ import annotations

import operator
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten

_PRODUCTS = frozenset(
    {operator.matmul, torch.matmul, torch.mm, "matmul", "mm", "__matmul__", aten.matmul.default, aten.mm.default}
)
_SUMS = frozenset({torch.addmm, aten.addmm.default})
_EINSUMS = frozenset({torch.einsum, aten.einsum.default})
_TURNS = frozenset({torch.t, "t", aten.t.default, aten.numpy_T.default})
_SWAPS = frozenset(
    {torch.transpose, torch.permute, torch.swapaxes, "transpose", "permute", "swapaxes"}
    | {aten.transpose.int, aten.permute.default}
)


def products_to_linear(gm: GraphModule) -> bool:
    """Make linear layers of the products of data and a matrix of parameters; say whether there was one."""
    matrices = {
        node
        for node in gm.graph.find_nodes(op="get_attr")
        if isinstance(value := _attribute(gm, str(node.target)), nn.Parameter)
        and value.dim() == 2
        and value.is_floating_point()
    }
    if not matrices:
        return False
    of_data = _of_data(gm)
    changed = False
    for node in list(gm.graph.nodes):
        found = _linear(node, matrices) if node.op in ("call_function", "call_method") else None
        if found is not None and found[0] in of_data:
            data, weight, is_turned, bias = found
            if not is_turned:
                with gm.graph.inserting_before(node):
                    weight = gm.graph.call_method("t", (weight,))
                    weight.stack_trace = node.stack_trace
            node.op, node.target = "call_function", F.linear
            node.args, node.kwargs = (data, weight, bias), {}
            changed = True
    return changed


def _linear(node: Node, matrices: set[Node]) -> tuple[Node, Node, bool, Node | None] | None:
    """Return data, matrix, whether the matrix is (out, in), and bias of a product that is a linear layer."""
    args: Any = node.args
    bias: Node | None = None
    if node.kwargs:
        return None
    if node.target in _EINSUMS:
        return _einsum(node, matrices)
    if node.target in _SUMS and len(args) == 3 and isinstance(args[0], Node) and args[0].op == "get_attr":
        bias, args = args[0], args[1:]
    elif node.target not in _PRODUCTS or len(args) != 2:
        return None
    data, weight = args
    if not isinstance(data, Node) or not isinstance(weight, Node):
        return None
    if weight in matrices:
        return data, weight, False, bias
    source = weight.args[0] if weight.args else None
    if isinstance(source, Node) and source in matrices and _turns(weight):
        return data, source, True, bias
    return None


def _turns(node: Node) -> bool:
    """Whether a node swaps the axes of a matrix."""
    rest = node.args[1:]
    if node.target in _TURNS:
        return not rest
    if node.target is getattr:
        return rest in (("T",), ("mT",))
    axes = rest[0] if len(rest) == 1 else rest
    numbers = isinstance(axes, list | tuple) and all(isinstance(axis, int) for axis in axes)
    return node.target in _SWAPS and numbers and {axis % 2 for axis in axes} == {0, 1}  # type: ignore[union-attr, operator]


def _einsum(node: Node, matrices: set[Node]) -> tuple[Node, Node, bool, Node | None] | None:
    args: Any = node.args
    operands = list(args[1]) if len(args) == 2 and isinstance(args[1], list | tuple) else list(args[1:])
    letters = re.fullmatch(r"([.\w]+),(\w\w)->([.\w]+)", str(args[0]).replace(" ", "")) if len(operands) == 2 else None
    if letters is None or operands[1] not in matrices or not isinstance(operands[0], Node):
        return None
    data, matrix, out = letters.groups()
    for read, made, is_turned in ((matrix[1], matrix[0], True), (matrix[0], matrix[1], False)):
        plain = data.endswith(read) and out == data[:-1] + made and made not in data
        if plain and len(set(data.replace("...", ""))) == len(data.replace("...", "")):
            return operands[0], operands[1], is_turned, None
    return None


def _of_data(gm: GraphModule) -> set[Node]:
    """Return the nodes whose value depends on an input of the graph."""
    found: set[Node] = set()
    for node in gm.graph.nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _attribute(gm: GraphModule, path: str) -> Any:
    value: Any = gm
    for name in path.split("."):
        value = getattr(value, name, None)
    return value
