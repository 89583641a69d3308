"""Products of data and a matrix of parameters, however they are written, become calls of ``F.linear``.

    x @ w.T + b   torch.addmm(b, x, w)   torch.einsum("bi,oi->bo", x, w)   x @ self.proj   GPT-2's Conv1D

are linear layers: as such they are counted, resized and quantized.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from nce_fx.ops import Ops


def products_to_linear(gm: GraphModule, ops: Ops) -> bool:
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
        found = _linear(ops, node, matrices) if node.op in ("call_function", "call_method") else None
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


def _linear(ops: Ops, node: Node, matrices: set[Node]) -> tuple[Node, Node, bool, Node | None] | None:
    """Return data, matrix, whether the matrix is (out, in), and bias of a product that is a linear layer."""
    args: Any = node.args
    bias: Node | None = None
    op = ops.of_call(node.target)
    if op is None or op.kind != "product" or node.kwargs:
        return None
    if op is ops["einsum"]:
        return _einsum(node, matrices)
    if op is ops["addmm"] and len(args) == 3 and isinstance(args[0], Node) and args[0].op == "get_attr":
        bias, args = args[0], args[1:]
    elif op is not ops["matmul"] or len(args) != 2:
        return None
    data, weight = args
    if not isinstance(data, Node) or not isinstance(weight, Node):
        return None
    if weight in matrices:
        return data, weight, False, bias
    source = weight.args[0] if weight.args else None
    if isinstance(source, Node) and source in matrices and _turns(ops, weight):
        return data, source, True, bias
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
