"""A product of few rows with a weight that stays packed: MatMulNBits, whose time is that of reading the weight.

    numbers, less what stands for zero -> a 127 behind every 127 of them -> MatMulNBits -> Add    whole numbers

MatMulNBits cuts a row into blocks of 128, and rounds each to int8 so that its largest magnitude becomes 127. With a 127
in every block, which meets a weight of zero, that rounds nothing, and sums are MatMulInteger's. A weight's levels are
``q * factor + shift``, of which q is packed; what the shift adds is the sum of the row, times that.
"""

from collections.abc import Iterable

import numpy as np
from onnx import NodeProto, TensorProto

from nce_fx.export.integer.onnx_nodes import CONTRIB, Array, Writer
from nce_fx.export.integer.tensors import IntegerTensor, stored
from nce_fx.export.integer.weights import WholeWeight

FEW = 3
"""Rows up to which packed weights are faster; from four on int8 is."""

CACHE = 2**22
"""Bytes of int8 weights, of all such layers together, from which on they come from memory each time. Out of a cache
MatMulInteger is the faster one."""

_SMALL = 2**16
"""Numbers in a weight below which the nodes around the product take longer than the product."""

_BLOCK = 128
"""Numbers of a row in a block. With 32 or 64 the product takes up to twice as long, with 256 thirty times."""

_LARGEST = 127


def suits(shape: tuple[int, ...] | None, weight: WholeWeight, tensor: IntegerTensor) -> bool:
    """Whether a layer can be written so, and is large enough; ``shape`` of its input, ``None``: of any size."""
    few = shape is not None and int(np.prod(shape[:-1])) <= FEW
    return few and weight.bits <= 2 and tensor.reach <= _LARGEST and weight.values.size >= _SMALL


def come_from_memory(weights: Iterable[WholeWeight]) -> bool:
    """Whether so many weights, 1 byte each, are more than a cache of ``CACHE`` bytes holds."""
    return sum(weight.values.size for weight in weights) >= CACHE


def write(
    writer: Writer,
    node: NodeProto,
    name: str,
    weight: WholeWeight,
    tensor: IntegerTensor,
    source: str,
    shape: tuple[int, ...],
) -> str:
    """Write the sums of a product as ``MatMulNBits``, whole numbers in float, and return their name.

    Args:
        writer: what is written to.
        node: the layer.
        name: of its weight.
        weight: (inputs, outputs).
        tensor: what the layer reads.
        source: its numbers, as they are stored, a row along the last axis.
        shape: theirs.
    """
    data, result, (inputs, outputs) = stored(writer, tensor), node.output[0], weight.values.shape
    blocks = -(-inputs // _LARGEST)
    row = writer.node("Cast", [source], f"{result}_numbers", node, to=TensorProto.FLOAT)
    if tensor.zero:
        zero = writer.constant(f"{data.zero}_float", np.float32(tensor.zero * tensor.whole))
        row = writer.node("Sub", [row, zero], f"{result}_centred", node)
    padded = _pad(writer, row, blocks * _LARGEST - inputs, 0, f"{result}_whole_blocks", node)
    cut = _reshape(writer, padded, (*shape[:-1], blocks, _LARGEST), f"{result}_blocks", node)
    filled = _pad(writer, cut, _BLOCK - _LARGEST, _LARGEST, f"{result}_filled", node)
    filled = _reshape(writer, filled, (*shape[:-1], blocks * _BLOCK), f"{result}_row", node)
    scales = writer.constant(f"{name}_block_scale", np.full(outputs * blocks, weight.factor, np.float32))
    sums = writer.node(
        "MatMulNBits",
        [filled, writer.constant(name, _packed(weight, blocks)), scales],
        f"{result}_products",
        node,
        domain=CONTRIB,
        K=blocks * _BLOCK,
        N=outputs,
        bits=2,
        block_size=_BLOCK,
        accuracy_level=4,
    )
    shift = np.broadcast_to(weight.shift, (1, outputs))[0].astype(np.float32)
    if not shift.any():
        return sums
    total = writer.node("ReduceSum", [row, writer.constant("at_-1", np.array([-1], np.int64))], f"{result}_total", node)
    if np.ptp(shift):
        total = writer.node("Mul", [total, writer.constant(f"{name}_shift", shift)], f"{result}_shift", node)
    elif shift[0] != 1:
        total = writer.node("Mul", [total, writer.constant(f"{name}_shift", shift[0])], f"{result}_shift", node)
    return writer.node("Add", [sums, total], f"{result}_sums", node)


def _pad(writer: Writer, source: str, count: int, value: float, result: str, node: NodeProto) -> str:
    """Write so many more numbers at the end of the last axis."""
    if not count:
        return source
    ends, last = writer.constant(f"ends_{count}", np.array([0, count], np.int64)), np.array([-1], np.int64)
    filler = writer.constant(f"number_{value}_float", np.float32(value))
    return writer.node("Pad", [source, ends, filler, writer.constant("at_-1", last)], result, node)


def _reshape(writer: Writer, source: str, shape: tuple[int, ...], result: str, node: NodeProto) -> str:
    return writer.node("Reshape", [source, writer.constant(f"{result}_shape", np.array(shape, np.int64))], result, node)


def _packed(weight: WholeWeight, blocks: int) -> Array:
    """Return q + 2, four to a byte, the first in the lowest bits: uint8 (outputs, blocks, bytes of a block)."""
    q = (weight.values - weight.shift) // weight.factor
    numbers = np.full((q.shape[1], blocks, _BLOCK), 2, np.uint8)  # stands for zero
    rows = np.full((q.shape[1], blocks * _LARGEST), 2, np.uint8)
    rows[:, : len(q)] = q.T + 2
    numbers[:, :, :_LARGEST] = rows.reshape(-1, blocks, _LARGEST)
    places = np.array([0, 2, 4, 6], np.uint8)
    packed: Array = np.bitwise_or.reduce(numbers.reshape(-1, blocks, _BLOCK // 4, 4) << places, axis=-1)
    return packed
