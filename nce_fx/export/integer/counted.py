"""A convolution of few products whose output is wanted in float: its sums fit eight bits, and QLinearConv counts them.

    QLinearConv, all scales one, bias so that the least sum is 0 -> DequantizeLinear, for each channel    floats

Of a depthwise one with a kernel of 5 by 5 and two bits no two sums are more than 25 * 3 * 3 = 225 apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from nce_fx.export.integer.onnx_nodes import Array, Nodes, Writer, attributes
from nce_fx.export.integer.tensors import IntegerTensor, stored
from nce_fx.export.integer.weights import WholeWeight, multiple, whole_weight, write_int8
from nce_fx.passes.transform.quantize import IntegerWeight

_MOST = 255


@dataclass(frozen=True)
class Counted:
    """Such a convolution, ready to be written: ``Counted(node, "conv.weight", ...)``."""

    node: NodeProto
    name: str
    """Of the weight."""
    weight: WholeWeight
    least: Array
    """The least sum of each channel: int64 (channels,)."""
    bias: str
    """Name of the bias; empty where there is none."""
    normalized: bool
    """Whether nothing but a BatchNorm reads it."""


def find_counted(
    nodes: Nodes, node: NodeProto, integers: Mapping[str, IntegerTensor], weights: Mapping[str, IntegerWeight]
) -> Counted | None:
    """Return a convolution of integers whose sums are so few, ``None`` where they are not."""
    if node.op_type != "Conv" or node.input[0] not in integers or (found := nodes.weight(node.input[1])) is None:
        return None
    whole, tensor = whole_weight(weights[found[0]]), integers[node.input[0]]
    if whole is None or not multiple(whole) or tensor.reach == 0:
        return None
    rows, zero = whole.values.reshape(len(whole.values), -1), int(tensor.zero * tensor.whole)
    lowest, highest = -zero, tensor.most * tensor.whole - zero
    least = np.minimum(rows * lowest, rows * highest).sum(1)
    if (np.maximum(rows * lowest, rows * highest).sum(1) - least).max(initial=0) > _MOST:
        return None
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and nodes.array(bias) is None:
        return None
    readers = nodes.readers.get(node.output[0], [])
    normalized = bool(readers) and all(reader.op_type == "BatchNormalization" for reader in readers)
    return Counted(node, found[0], whole, least, bias, normalized)


def write(writer: Writer, counted: Counted, tensor: IntegerTensor) -> None:
    """Write the convolution; its float output has the exporter's name, such as ``"conv2d_3"``."""
    node, weight, result = counted.node, counted.weight, counted.node.output[0]
    settings = {name: value for name, value in attributes(node).items() if name != "kernel_shape"}
    data, axes = stored(writer, tensor), (1,) * (weight.values.ndim - 2)
    whole = write_int8(writer, counted.name, weight, 1, np.zeros((1,) * weight.values.ndim, bool))
    one, zero = writer.constant("float_1", np.float32(1)), writer.number(np.uint8(0))
    start = writer.constant(f"{counted.name}_start", (-counted.least).astype(np.int32))
    read = [data.name, one, data.zero, whole, one, writer.number(np.int8(0)), one, zero, start]
    counts = writer.node("QLinearConv", read, f"{result}_counts", node, **settings)
    units = np.broadcast_to(weight.unit.reshape(-1) * tensor.step, counted.least.shape).astype(np.float32)
    made = f"{result}_scaled" if counted.bias else result
    if counted.bias or counted.normalized:
        scale = writer.constant(f"{counted.name}_scale", units)
        points = writer.constant(f"{counted.name}_zero_point", (-counted.least).astype(np.uint8))
        writer.node("DequantizeLinear", [counts, scale, points], made, node, axis=1)
    else:
        # onnxruntime would take what reads a DequantizeLinear, and the quantizer behind that, for one of integers.
        floats = writer.node("Cast", [counts], f"{result}_numbers", node, to=TensorProto.FLOAT)
        least = writer.constant(f"{counted.name}_least", counted.least.astype(np.float32).reshape(-1, *axes))
        sums = writer.node("Add", [floats, least], f"{result}_sums", node)
        writer.node("Mul", [sums, writer.constant(f"{counted.name}_scale", units.reshape(-1, *axes))], made, node)
    if counted.bias:
        shape = writer.constant("by_channel", np.array([-1, *axes], np.int64))
        bias = writer.node("Reshape", [counted.bias, shape], f"{result}_bias")
        writer.node("Add", [made, bias], result, node)
