"""Which values of a graph can never be negative: what comes out of a ReLU, and what keeps its sign on the way."""

from torch.fx import GraphModule, Node

from nce_fx.ops.op import Op
from nce_fx.ops.table import OPS, table_of


def is_relu(gm: GraphModule, node: Node) -> bool:
    """Whether a node is a ReLU in any spelling."""
    return table_of(gm).of(gm, node) is OPS["relu"]


def never_negative(gm: GraphModule, node: Node) -> bool:
    """Whether a graph without quantizers alone shows that a value is never negative."""
    pending, seen = [node], set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if not current.op.startswith("call_"):
            return False
        op = table_of(gm).of(gm, current)
        if op is None or op.sign == "any":
            return False
        if op.sign == "kept":
            if not current.all_input_nodes or _has_negative_number(op, current):
                return False
            pending.extend(current.all_input_nodes)
    return True


def _has_negative_number(op: Op, node: Node) -> bool:
    """Whether a sum or product has a negative number in it (``x - 1`` written as ``x + -1``, ``alpha=-1``)."""
    numbers = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, (int, float))]
    return op.kind == "pointwise" and any(number < 0 for number in numbers)
