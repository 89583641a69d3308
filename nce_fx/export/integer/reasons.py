"""Why a node computes in float, in words."""

from onnx import NodeProto

from nce_fx.export.integer.onnx_nodes import is_activation, is_marker
from nce_fx.export.integer.partition import QUESTIONS, Partition, moves
from nce_fx.export.integer.sources import MOVES
from nce_fx.export.levels import WEIGHT
from nce_fx.export.onnx_names import owner

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FREE = {*MOVES, *QUESTIONS, "Constant", "Cast", "Concat", "Split", "Gather", "Expand", "Range", "ConstantOfShape"}
"""Operators that compute nothing."""


def float_nodes(plan: Partition) -> dict[str, str]:
    """Return every node that computes in float -> why: ``{"fc": "its input is not quantized"}``."""
    found: dict[str, tuple[str, str]] = {}
    for node in plan.nodes.all:
        output = node.output[0] if node.output else ""
        if output not in plan.wanted or is_activation(node) or is_marker(node, WEIGHT) or node.op_type in _FREE:
            continue
        if output in plan.linear or output in plan.counted or moves(plan, node):
            continue
        reason = _layer(plan, node) if node.op_type in LAYERS else _other(plan, node)
        if reason:
            name = owner(node) or output
            operators = found[name][0] + ", " if name in found else ""
            found[name] = operators + node.op_type, reason
    return {name: f"{operators}: {reason}" for name, (operators, reason) in found.items()}


def _layer(plan: Partition, node: NodeProto) -> str:
    output = node.output[0]
    if output in plan.refused:
        return plan.refused[output]
    if plan.nodes.weight(node.input[1]) is None:
        return "its weight is not quantized, or it has none"
    if node.op_type == "ConvTranspose":
        return "onnxruntime has none of integers"
    if node.input[0] not in plan.integers:
        return "its input is not quantized"
    return _reader(plan, output)


def _reader(plan: Partition, tensor: str) -> str:
    """Say who wants a convolution's output in float."""
    while True:
        readers = plan.nodes.readers.get(tensor, [])
        if tensor in plan.nodes.outputs:
            return "its output is the network's"
        if len(readers) != 1 or is_activation(readers[0]):
            names = ", ".join(dict.fromkeys(owner(reader) or reader.op_type for reader in readers))
            return f"several read it: {names}" if len(readers) > 1 else "what lies behind it is no staircase"
        (node,) = readers
        if (
            node.op_type not in ("BatchNormalization", "Relu", "Clip", "Mul", "Add")
            or len([name for name in node.input if name and plan.nodes.array(name) is None]) > 1
        ):
            hint = ', which sums="int8" quantizes' if node.op_type == "Add" else ""
            return f"{owner(node) or node.op_type} ({node.op_type}) reads it in float{hint}"
        tensor = node.output[0]


def _other(plan: Partition, node: NodeProto) -> str:
    computed = [name for name in node.input if name and plan.nodes.array(name) is None]
    if not any(name in plan.wanted for name in computed):
        return ""
    if node.output[0] in plan.refused:
        return plan.refused[node.output[0]]
    if node.op_type != "Add" or len(computed) < 2:
        return "computed as in PyTorch"
    quantized = all(name in plan.integers for name in computed)
    return "its output is not quantized" if quantized else 'it reads a float, which sums="int8" quantizes'
