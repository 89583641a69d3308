"""The formats: what each puts into an ONNX graph for a quantized weight, and for a quantized activation.

`nce_fx.export.integer` writes "integer", where a node stands for a layer with all that lies behind it.

    int2    weights    packed INT2 (INT4 from 3, INT8 from 5 bits) -> DequantizeLinear
            activation Div -> Round -> Clip -> Mul, in float: exact at every optimization level of onnxruntime;
                       learned thresholds by comparisons, see `nce_fx.export.thresholds`, in qcdq as well
    qcdq    weights    int8 -> DequantizeLinear
            activation QuantizeLinear -> Clip -> DequantizeLinear: onnxruntime computes in integers
    qonnx   weights    float -> Quant;   activation Quant

Levels are ``(q + offset) * scale``. DequantizeLinear computes ``(q - zero point) * scale``, so a whole offset is a zero
point. Half an offset (SAWB and DoReFa have no zero among their levels) is no zero point:

    int2    DequantizeLinear(q, 1) -> Add(offset) -> Mul(scale): the same three roundings as in PyTorch, bit for bit
    qcdq    2q + 1 with half the scale: (2q + 1) * (s / 2) = (q + 1/2) * s exactly, a power of two rounds nothing.
            Up to 7 bits; with 8 bits 2q + 1 is no int8, and the weight is written as in int2.
    qonnx   2q + 1 with half the scale, too, and so Quant says one bit more: what reads QONNX wants no zero point (the
            qonnx package counts others as float, its conversion to QCDQ and FPGA flows refuse them), and nothing
            between the Quant of a weight and its layer. What else such flows ask for is in `nce_fx.export.qonnx`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nce_fx.errors import ExportError
from nce_fx.export.levels import ActivationLevels
from nce_fx.export.qonnx import suit_flows
from nce_fx.export.thresholds import count_below
from nce_fx.passes.transform.quantize import IntegerWeight
from nce_fx.registry import Registry

Array = np.ndarray[Any, Any]
QONNX_DOMAIN = "qonnx.custom_op.general"


@dataclass(frozen=True)
class Piece:
    """Nodes in the order they run, and the constants they read."""

    nodes: tuple[NodeProto, ...]
    constants: tuple[TensorProto, ...]


class Pieces(NamedTuple):
    """What a format writes for a quantized weight, and for a quantized activation."""

    weight: Callable[[str, IntegerWeight, str, bool], Piece]
    """(name of the weight, its integers, name of the result, whether a MatMul reads it) -> nodes."""
    activation: Callable[[str, ActivationLevels, str, str], Piece]
    """(name of the quantizer, its levels, name of the tensor it reads, name of the result) -> nodes."""


@dataclass(frozen=True)
class Format:
    """One way to write a quantized network in ONNX."""

    opset: int
    ir_version: int
    domains: Mapping[str, int]
    """Operator sets beside ONNX's own."""
    pieces: Pieces | None
    """What is written for each quantizer; ``None``: the graph is written as a whole, see `nce_fx.export.integer`."""
    exact_when_optimized: bool = True
    """Whether onnxruntime's optimizations leave the numbers as they are, up to rounding."""
    finish: Callable[[ModelProto, Mapping[str, ActivationLevels]], None] | None = None
    """What is changed in the graph once quantizers are written: (model, its quantizers of activations)."""
    says: str = ""
    """What it is for, in a few words."""


def int2_weight(name: str, weight: IntegerWeight, result: str, matmul: bool = False) -> Piece:
    """Integers packed to 2, 4 or 8 bits, and what turns them into levels."""
    # onnxruntime fuses DequantizeLinear and MatMul, also across a Transpose, into MatMulNBits, which rounds activations
    # and is wrong where the columns are no multiple of four. A Mul between the two keeps them apart.
    return _dequantize(name, weight, result, packed_type(weight.bits), apart=matmul)


def packed_type(bits: int) -> Any:
    """Return the least type that NumPy and ONNX have for so many bits."""
    if bits <= 2:
        return ml_dtypes.int2
    return ml_dtypes.int4 if bits <= 4 else np.int8


def _dequantize(name: str, weight: IntegerWeight, result: str, kind: Any, *, apart: bool = False) -> Piece:
    q, scale, offset = _arrays(weight)
    integers = numpy_helper.from_array(q.astype(kind), name)
    axis = _axis(scale, q.ndim)
    low, high = -(2 ** (_width(kind) - 1)), 2 ** (_width(kind) - 1) - 1
    whole = bool(np.all((offset == np.round(offset)) & (-offset >= low) & (-offset <= high)))
    if whole and axis is not None and not apart:
        shape = () if scale.size == 1 else (-1,)
        factors = numpy_helper.from_array(scale.reshape(shape), f"{name}_scale")
        inputs, constants = [name, factors.name], [integers, factors]
        if np.any(offset):
            zero = np.broadcast_to(-offset, scale.shape).reshape(shape).astype(kind)
            constants.append(numpy_helper.from_array(zero, f"{name}_zero_point"))
            inputs.append(constants[-1].name)
        node = _node("DequantizeLinear", inputs, result, **({"axis": axis} if scale.size > 1 else {}))
        return Piece((node,), tuple(constants))
    one = _tensor(1.0, f"{name}_one")
    # As many axes as the weight has: onnxruntime takes ten times as long for a single number and a 1x1 kernel.
    factors = numpy_helper.from_array(_of_rank(_shortest(scale), q.ndim), f"{name}_scale")
    nodes = [_node("DequantizeLinear", [name, one.name], f"{name}_integers")]
    constants = [integers, one, factors]
    if np.any(offset):
        constants.append(numpy_helper.from_array(_of_rank(_shortest(offset), q.ndim), f"{name}_offset"))
        nodes.append(_node("Add", [nodes[-1].output[0], constants[-1].name], f"{name}_shifted"))
    nodes.append(_node("Mul", [nodes[-1].output[0], factors.name], result))
    return Piece(tuple(nodes), tuple(constants))


def int2_activation(name: str, levels: ActivationLevels, source: str, result: str) -> Piece:
    """The quantizer's own arithmetic."""
    low, high, offset = levels.grid
    if levels.thresholds:
        nodes, constants = count_below(name, levels, source, f"{name}_count", TensorProto.FLOAT)
        first, scale = _scalars(name, first=low + offset, scale=levels.scale)
        nodes.append(_node("Add", [f"{name}_count", first.name], f"{name}_shifted"))
        return Piece((*nodes, _node("Mul", [f"{name}_shifted", scale.name], result)), (*constants, first, scale))
    scale, low_end, high_end = _scalars(name, scale=levels.scale, low=low, high=high)
    constants, nodes = [scale, low_end, high_end], [_node("Div", [source, scale.name], f"{name}_steps")]
    steps, whole = f"{name}_steps", f"{name}_clipped"
    if offset:
        (shift,) = _scalars(name, offset=offset)
        constants.append(shift)
        nodes.append(_node("Sub", [steps, shift.name], f"{name}_centred"))
        steps = f"{name}_centred"
    nodes.append(_node("Round", [steps], f"{name}_whole"))
    nodes.append(_node("Clip", [f"{name}_whole", low_end.name, high_end.name], whole))
    if offset:
        nodes.append(_node("Add", [whole, f"{name}_offset"], f"{name}_shifted"))
        whole = f"{name}_shifted"
    nodes.append(_node("Mul", [whole, scale.name], result))
    return Piece(tuple(nodes), tuple(constants))


def qcdq_weight(name: str, weight: IntegerWeight, result: str, matmul: bool = False) -> Piece:
    """An int8 with one scale, or one per channel, and no offset where it can do without."""
    _, scale, offset = _arrays(weight)
    if weight.bits < 8 and np.all(offset == 0.5) and _axis(scale, weight.integers.dim()) is not None:
        weight = _odd(weight)
    return _dequantize(name, weight, result, np.int8)


def _odd(weight: IntegerWeight) -> IntegerWeight:
    """The same levels without the offset of 1/2, as odd integers."""
    odd = weight.integers.to(torch.int16) * 2 + 1
    return IntegerWeight(odd, weight.scale / 2, weight.offset * 0, weight.bits + 1, weight.dtype)


def qcdq_activation(name: str, levels: ActivationLevels, source: str, result: str) -> Piece:
    """QuantizeLinear, Clip to fewer bits than the container has, DequantizeLinear."""
    low, high, offset = levels.grid
    if offset or levels.thresholds:
        return int2_activation(name, levels, source, result)  # one signed bit, where zero is no level; thresholds
    signed = low == -(2 ** (levels.bits - 1))
    kind, zero = (np.int8, 0) if signed else (np.uint8, -low)
    scale = _tensor(levels.scale, f"{name}_scale")
    point = numpy_helper.from_array(np.array(zero, kind), f"{name}_zero_point")
    constants = [scale, point]
    nodes = [_node("QuantizeLinear", [source, scale.name, point.name], f"{name}_integers")]
    integers = f"{name}_integers"
    if levels.bits < 8:
        ends = [
            numpy_helper.from_array(np.array(end + zero, kind), f"{name}_{word}")
            for end, word in ((low, "low"), (high, "high"))
        ]
        constants += ends
        nodes.append(_node("Clip", [integers, *(end.name for end in ends)], f"{name}_clipped"))
        integers = f"{name}_clipped"
    nodes.append(_node("DequantizeLinear", [integers, scale.name, point.name], result))
    return Piece(tuple(nodes), tuple(constants))


def qonnx_weight(name: str, weight: IntegerWeight, result: str, matmul: bool = False) -> Piece:
    """The levels as floats, which Quant rounds to themselves."""
    values = numpy_helper.from_array(weight.dequantize().cpu().numpy(), name)
    if bool((weight.offset == 0.5).all()):
        weight = _odd(weight)
    _, scale, offset = _arrays(weight)
    quant, constants = _quant(name, name, result, _shortest(scale), _shortest(0 - offset), weight.bits, signed=True)
    return Piece((quant,), (values, *constants))


def qonnx_activation(name: str, levels: ActivationLevels, source: str, result: str) -> Piece:
    """One Quant.

    Raises:
        ExportError: thresholds are learned, which Quant has no place for.
    """
    if levels.thresholds:
        raise ExportError(
            f"{name} has learned thresholds (n2uq), which QONNX's Quant cannot say: export to int2, qcdq or integer,"
            " or quantize activations with lsq or pact"
        )
    low, _, offset = levels.grid
    signed = low == -(2 ** (levels.bits - 1))
    zero = np.float32(0 - offset if signed else 0 - low - offset)
    quant, constants = _quant(name, source, result, np.float32(levels.scale), zero, levels.bits, signed=signed)
    return Piece((quant,), constants)


def _quant(
    name: str, source: str, result: str, scale: Any, zero: Any, bits: int, *, signed: bool
) -> tuple[NodeProto, tuple[TensorProto, ...]]:
    constants = (
        numpy_helper.from_array(np.asarray(scale, np.float32), f"{name}_scale"),
        numpy_helper.from_array(np.asarray(zero, np.float32), f"{name}_zero_point"),
        _tensor(bits, f"{name}_bits"),
    )
    inputs = [source, *(constant.name for constant in constants)]
    attributes = {"signed": int(signed), "narrow": 0, "rounding_mode": "ROUND"}
    return _node("Quant", inputs, result, domain=QONNX_DOMAIN, **attributes), constants


FORMATS: Registry[Format] = Registry(
    "formats",
    {
        "int2": Format(25, 13, {}, Pieces(int2_weight, int2_activation), says="packed weights, computed in float"),
        "integer": Format(25, 13, {"com.microsoft": 1}, None, says="packed weights, computed in integers"),
        "qcdq": Format(
            21, 10, {}, Pieces(qcdq_weight, qcdq_activation), exact_when_optimized=False, says="int8 containers"
        ),
        "qonnx": Format(
            18, 9, {QONNX_DOMAIN: 1}, Pieces(qonnx_weight, qonnx_activation), finish=suit_flows, says="for FPGA flows"
        ),
    },
    lambda value: isinstance(value, Format),
    lambda format: format.says,
)


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs, [output], name=output, **attributes)


def _scalars(name: str, **values: float) -> list[TensorProto]:
    return [_tensor(value, f"{name}_{word}") for word, value in values.items()]


def _tensor(value: float, name: str) -> TensorProto:
    return numpy_helper.from_array(np.array(value, np.float32), name)


def _arrays(weight: IntegerWeight) -> tuple[Array, Array, Array]:
    scale = weight.scale.cpu().numpy()
    offset = np.broadcast_to(weight.offset.cpu().numpy(), scale.shape)
    return weight.integers.cpu().numpy(), scale, offset


def _axis(scale: Array, dimensions: int) -> int | None:
    """The one axis along which a scale differs, 0 for a scale of the whole tensor, ``None`` where there are several."""
    axes = [axis + dimensions - scale.ndim for axis, size in enumerate(scale.shape) if size > 1]
    return None if len(axes) > 1 else (axes or [0])[0]


def _shortest(values: Array) -> Array:
    """One number where all are the same."""
    first = values.reshape(-1)[0]
    return np.asarray(first, np.float32) if np.all(values == first) else np.ascontiguousarray(values)


def _of_rank(values: Array, rank: int) -> Array:
    return values.reshape((1,) * (rank - values.ndim) + values.shape)


def _width(kind: Any) -> int:
    return {ml_dtypes.int2: 2, ml_dtypes.int4: 4}.get(kind, 8)
