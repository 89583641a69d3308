"""Quantized weights as the int8 tensors that QLinearConv and MatMulInteger read, from packed initializers.

    packed INT2 -> Cast INT8 -> Mul factor -> Add shift

onnxruntime computes these once, when a session is made (a QLinearAdd in place of two it would compute in each run). The
levels of a weight are ``(q + offset) * scale``; made whole (SAWB's offset is one half), they are at most 3 at 2 bits,
and int8 has room for 42 times that. The larger they are, the finer is the bias that is added to a sum. A channel whose
sign changes is written with ``-1 - q`` for ``q``.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from nce_fx.export.formats import packed_type
from nce_fx.export.integer.onnx_nodes import Array, Writer
from nce_fx.passes.transform.quantize import IntegerWeight

_INT8 = 127


@dataclass(frozen=True)
class WholeWeight:
    """A weight as whole numbers: ``values * unit``."""

    values: Array
    """int64, the shape of the weight."""
    unit: Array
    """Double precision, shaped to broadcast over the weight."""
    factor: int
    """``values = q * factor + shift``."""
    shift: Array
    """int64, shaped as ``unit``."""
    bits: int

    @property
    def largest(self) -> int:
        """The largest magnitude: ``3`` of -3, -1, 1 and 3."""
        return int(np.abs(self.values).max(initial=0))


def whole_weight(weight: IntegerWeight) -> WholeWeight | None:
    """Return a weight as whole numbers, ``None`` where its levels are no multiples of one (one bit of minmax)."""
    scale = weight.scale.cpu().numpy().astype(np.float64)
    offset = np.broadcast_to(weight.offset.cpu().numpy().astype(np.float64), scale.shape)
    factor = 2 if np.any(offset != np.round(offset)) else 1
    shift = np.round(offset * factor)
    if np.any(shift != offset * factor):
        return None
    values = weight.integers.cpu().numpy().astype(np.int64) * factor + shift.astype(np.int64)
    return WholeWeight(values, scale / factor, factor, shift.astype(np.int64), weight.bits)


def multiple(weight: WholeWeight) -> int:
    """Return how many times larger int8 can hold a weight, such as ``63``; 0 where it does not hold it as it is."""
    return min(_INT8 // max(weight.largest, 1), _INT8 // weight.factor)


def write_int8(writer: Writer, name: str, weight: WholeWeight, times: int, negative: Array) -> str:
    """Write ``values * times``, the sign changed where ``negative`` says so, and return the tensor's name.

    Args:
        writer: what is written to.
        name: of the packed initializer; the result's says how it was made, such as ``_times_84_shifted``.
        weight: the numbers.
        times: so many times larger.
        negative: bool, (channels, 1, ...): what broadcasts over the weight.
    """
    if weight.bits > 4:
        values = np.where(negative, -weight.values, weight.values) * times
        return writer.constant(name, values.astype(np.int8))
    q = (weight.values - weight.shift) // weight.factor
    packed = writer.constant(name, np.where(negative, -1 - q, q).astype(packed_type(weight.bits)))
    factor = weight.factor * times
    # Sums of int8 wrap around, so that only the result has to fit.
    shift = np.where(negative, factor - weight.shift * times, weight.shift * times).astype(np.int8)
    # As many axes as the weight has: onnxruntime takes ten times as long for a single number and a 1x1 kernel.
    last = _once(writer, "Cast", [packed], f"{packed}_int8", to=TensorProto.INT8)
    if factor != 1:
        last = _once(writer, "Mul", [last, writer.number(np.int8(factor), shift.ndim)], f"{packed}_times_{factor}")
    if shift.any():
        alike = bool((shift == shift.flat[0]).all())
        by = writer.number(shift.flat[0], shift.ndim) if alike else writer.constant(f"{packed}_shift", shift)
        last = _once(writer, "Add", [last, by], f"{last}_shifted")
    return last


def _once(writer: Writer, op: str, read: list[str], result: str, **settings: int) -> str:
    return result if result in writer.written else writer.node(op, read, result, None, **settings)


def write_float(writer: Writer, name: str, weight: IntegerWeight) -> str:
    """Write a weight as PyTorch's floats, ``q * scale``, computed once, when a session is made; return its name."""
    q = weight.integers.cpu().numpy()
    kind = packed_type(weight.bits)
    packed = writer.constant(name, q.astype(kind))
    scale = weight.scale.cpu().numpy()
    scale = scale.reshape((1,) * (q.ndim - scale.ndim) + scale.shape)
    offset = np.broadcast_to(weight.offset.cpu().numpy(), scale.shape)
    result = writer.free(f"{packed}_quant")
    last = writer.node("Cast", [packed], f"{result}_wide", to=TensorProto.FLOAT)
    if np.any(offset):
        last = writer.node("Add", [last, writer.constant(f"{result}_offset", offset)], f"{result}_shifted")
    return writer.node("Mul", [last, writer.constant(f"{result}_scale", scale)], result)
