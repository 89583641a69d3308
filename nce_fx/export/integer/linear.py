"""A linear layer of integers, or a 1x1 convolution whose output is wanted in float: MatMulIntegerToFloat.

    y = (sum of x q) * (s_x * s_w) + bias

The sum is exact. Where a weight's levels need nine bits (8 bits of SAWB), ``q`` stays eight bits and half a level times
the sum of x is added: one more column, of ones, of a MatMulInteger. Where few rows meet a weight that comes from memory
each time, it stays packed, see `nce_fx.export.integer.few_rows`.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, TensorProto

from nce_fx.export.integer import few_rows
from nce_fx.export.integer.onnx_nodes import CONTRIB, Array, Nodes, Writer, attributes
from nce_fx.export.integer.tensors import IntegerTensor, stored
from nce_fx.export.integer.weights import WholeWeight, whole_weight, write_int8
from nce_fx.passes.transform.quantize import IntegerWeight


@dataclass(frozen=True)
class Linear:
    """A linear layer in whole numbers, such as ``Linear(node, "fc", ...)``, ready to be written."""

    node: NodeProto
    name: str
    """Of the weight."""
    weight: WholeWeight
    """(inputs, outputs)."""
    bias: str
    """Name of the bias; empty where there is none."""
    axes: int
    """Axes of a convolution's tensors, whose channels are moved to the end and back; 0 for a linear layer."""
    shape: tuple[int, ...] | None
    """Of the input, channels last; ``None`` where it is of any size."""
    result: str
    """Name of its output."""
    packed: bool = False
    """Whether the weight stays packed."""


def find_linear(
    nodes: Nodes, node: NodeProto, integers: dict[str, IntegerTensor], weights: Mapping[str, IntegerWeight]
) -> Linear | str | None:
    """Return a linear layer whose input and weight are integers; why one stays in float, in words; else ``None``."""
    if node.op_type == "Conv":
        return _pointwise(nodes, node, integers, weights)
    if node.op_type not in ("Gemm", "MatMul") or (found := nodes.weight(node.input[1])) is None:
        return None
    name, turned = found
    weight = weights[name]
    settings = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0} | attributes(node)
    if node.input[0] not in integers:
        return "its input is not quantized"
    plain = (settings["transA"], settings["alpha"], settings["beta"]) == (0, 1.0, 1.0)
    if not plain or weight.integers.dim() != 2:
        return "its product is scaled or transposed"
    whole = whole_weight(weight)
    if whole is None:
        return "its weight's levels are no multiples of one number"
    if bool(settings["transB"]) != turned:
        unit, shift = (np.broadcast_to(array, _kept(array)).T for array in (whole.unit, whole.shift))
        whole = WholeWeight(whole.values.T, unit, whole.factor, shift, whole.bits)
    if whole.unit.ndim == 2 and whole.unit.shape[0] > 1:
        return "its weight has a scale for each input"
    return Linear(node, name, whole, _bias(node), 0, nodes.shape(node.input[0]), node.output[0])


def with_bias(nodes: Nodes, node: NodeProto, layers: Mapping[str, Linear]) -> Linear | None:
    """Return a linear layer with the bias that a node of its own adds, as ``Add(MatMul(x, w), b)`` of tokens."""
    if node.op_type != "Add":
        return None
    for product, other in (node.input, reversed(node.input)):
        layer, bias = layers.get(product), nodes.array(other)
        if layer is None or bias is None or layer.bias or layer.axes or len(nodes.readers[product]) > 1:
            continue
        fits = bias.shape == layer.weight.values.shape[1:] and bias.dtype == np.float32
        if fits and product not in nodes.outputs:
            return replace(layer, bias=other, result=node.output[0])
    return None


def _bias(node: NodeProto) -> str:
    return node.input[2] if len(node.input) > 2 else ""


def _pointwise(
    nodes: Nodes, node: NodeProto, integers: Container[str], weights: Mapping[str, IntegerWeight]
) -> Linear | None:
    """Return a 1x1 convolution of integers, without steps, groups or padding, as a product of matrices."""
    found, settings = nodes.weight(node.input[1]), attributes(node)
    if found is None or node.input[0] not in integers or (whole := whole_weight(weights[found[0]])) is None:
        return None
    outputs, inputs, *kernel = whole.values.shape
    steps = [*settings.get("strides", []), settings.get("group", 1)]
    if {*kernel, *steps} != {1} or any(settings.get("pads", [])):
        return None
    unit, shift = (array.reshape(1, -1) for array in (whole.unit, whole.shift))
    whole = WholeWeight(whole.values.reshape(outputs, inputs).T, unit, whole.factor, shift, whole.bits)
    shape = nodes.shape(node.input[0])
    last = None if shape is None else (shape[0], *shape[2:], shape[1])
    return Linear(node, found[0], whole, _bias(node), 2 + len(kernel), last, node.output[0])


def _kept(array: Array) -> tuple[int, ...]:
    """A shape of two axes for a scale: one number, or one a row or column."""
    return (1,) * (2 - array.ndim) + tuple(array.shape)


def write(writer: Writer, linear: Linear, tensor: IntegerTensor) -> None:
    """Write the layer as ``MatMulIntegerToFloat``; its float output has the exporter's name."""
    node, weight, name, result = linear.node, linear.weight, linear.name, linear.result
    data = stored(writer, tensor)
    source, made = data.name, result
    if linear.axes:
        last, made = [0, *range(2, linear.axes), 1], f"{result}_last"
        source = writer.node("Transpose", [source], f"{result}_first", node, perm=last)
    outputs = weight.values.shape[1]
    unit = np.broadcast_to(weight.unit * tensor.step, (1, outputs)).astype(np.float32)
    unit = unit[0, 0] if np.ptp(unit) == 0 else unit[0]
    scale = writer.constant(f"{name}_scale", unit)
    if weight.largest <= 127 and not linear.packed:
        whole = write_int8(writer, name, weight, 1, np.zeros((1, 1), bool))
        read = [source, whole, writer.constant("float_1", np.float32(1)), scale, data.zero, "", linear.bias]
        writer.node("MatMulIntegerToFloat", read[: None if linear.bias else 5], made, node, domain=CONTRIB)
    else:
        if linear.packed:
            assert linear.shape is not None
            floats = few_rows.write(writer, node, name, weight, tensor, source, linear.shape)
        else:
            sums = _nine_bits(writer, linear, source, data.zero)
            floats = writer.node("Cast", [sums], f"{result}_cast", node, to=TensorProto.FLOAT)
        scaled = writer.node("Mul", [floats, scale], f"{result}_scaled" if linear.bias else made, node)
        if linear.bias:
            writer.node("Add", [scaled, linear.bias], made, node)
    if linear.axes:
        writer.node("Transpose", [made], result, node, perm=[0, linear.axes - 1, *range(1, linear.axes - 1)])


def _nine_bits(writer: Writer, linear: Linear, source: str, zero: str) -> str:
    """Write ``(sum of x q) * factor + (sum of x) * shift``, with the sum of x from a column of ones."""
    weight, name, result = linear.weight, linear.name, linear.node.output[0]
    q = (weight.values - weight.shift) // weight.factor
    columns = np.concatenate([q, np.ones((len(q), 1), np.int64)], 1).astype(np.int8)
    both = writer.node(
        "MatMulInteger", [source, writer.constant(name, columns), zero], f"{result}_columns", linear.node
    )
    ends = [writer.constant(f"at_{end}", np.array([end], np.int64)) for end in (0, -1, 2**31 - 1)]
    last = writer.constant("at_-1", np.array([-1], np.int64))
    products = writer.node("Slice", [both, ends[0], ends[1], last], f"{result}_products", linear.node)
    total = writer.node("Slice", [both, ends[1], ends[2], last], f"{result}_total", linear.node)
    by = writer.constant(f"{name}_factor", np.int32(weight.factor))
    shifts = weight.shift.reshape(-1).astype(np.int32)
    shift = writer.constant(f"{name}_shift", shifts[0] if np.ptp(shifts) == 0 else shifts)
    first = writer.node("Mul", [products, by], f"{result}_times", linear.node)
    second = writer.node("Mul", [total, shift], f"{result}_half", linear.node)
    return writer.node("Add", [first, second], f"{result}_sums", linear.node)
