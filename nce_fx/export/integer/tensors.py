"""Activations as whole numbers: ``(stored - zero) * scale``, stored as uint8."""

from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto

from nce_fx.export.integer.onnx_nodes import Array, Writer
from nce_fx.export.levels import ActivationLevels


@dataclass(frozen=True)
class IntegerTensor:
    """A tensor of levels, stored as the level's number, ``0`` for the lowest."""

    name: str
    levels: ActivationLevels

    @property
    def zero(self) -> float:
        """The number that stands for zero, ``2.0`` of signed two bits; with one signed bit ``0.5``, between the two."""
        return -(self.levels.grid.low + self.levels.grid.offset)

    @property
    def most(self) -> int:
        """The largest number stored: ``3`` of two bits."""
        return self.levels.grid.high - self.levels.grid.low

    @property
    def whole(self) -> int:
        """What numbers are multiplied with for the zero to be whole: ``1``, or ``2`` for one signed bit."""
        return 1 if self.zero == int(self.zero) else 2

    @property
    def step(self) -> float:
        """The value of ``1``, where the zero is whole."""
        return self.levels.scale / self.whole

    @property
    def reach(self) -> int:
        """The largest magnitude in such steps: ``3`` of unsigned two bits."""
        return int(self.whole * max(self.zero, self.most - self.zero))

    def named(self, name: str) -> "IntegerTensor":
        """Return another tensor with the same levels, ``tensor.named("pool")``."""
        return replace(self, name=name)


@dataclass(frozen=True)
class Stored:
    """Names of what an operator on integers reads: ``Stored(numbers, scale, zero)``."""

    name: str
    scale: str
    zero: str
    step: float
    """The scale, exactly a float32."""

    @property
    def inputs(self) -> list[str]:
        """All three names in their usual order, as ``QLinearConv`` has them."""
        return [self.name, self.scale, self.zero]


def stored(writer: Writer, tensor: IntegerTensor, times: int = 1) -> Stored:
    """Return a tensor with its numbers multiplied, by ``4`` say, which leaves more room between two sums."""
    times = times * tensor.whole
    name = tensor.name if times == 1 else f"{tensor.name}_times_{times}"
    if times > 1 and name not in writer.written:
        writer.node("Mul", [tensor.name, writer.number(np.uint8(times))], name)
    step = np.float32(tensor.levels.scale / times)
    scale = writer.constant(f"{name}_scale", step)
    zero = writer.number(np.uint8(tensor.zero * times))
    return Stored(name, scale, zero, float(step))


def dequantize(writer: Writer, tensor: IntegerTensor, result: str, *, plain: bool = False) -> str:
    """Write a tensor as floats, ``(numbers - zero) * scale``, as PyTorch has them.

    Args:
        writer: what is written to.
        tensor: the numbers.
        result: the name of the floats.
        plain: by plain arithmetic. Where a layer reads DequantizeLinear and its output is quantized, onnxruntime takes
            its float weight for one that may be rounded to int8, and does so.
    """
    data = stored(writer, tensor)
    if not plain:
        return writer.node("DequantizeLinear", data.inputs, result)
    numbers = writer.node("Cast", [data.name], f"{result}_numbers", to=TensorProto.FLOAT)
    if tensor.zero:
        zero = writer.constant(f"{data.zero}_float", np.float32(tensor.zero * tensor.whole))
        numbers = writer.node("Sub", [numbers, zero], f"{result}_centred")
    return writer.node("Mul", [numbers, data.scale], result)


def write_clip(writer: Writer, source: str, result: str, low: int, high: int) -> str:
    """Keep numbers between two ends, both included, by ``Clip``; return their name."""
    ends = [writer.number(np.uint8(end)) for end in (low, high)]
    return writer.node("Clip", [source, *ends], result)


def level_numbers(levels: ActivationLevels, values: Array) -> Array:
    """Return what a quantizer makes of float32 values, as numbers of levels from ``grid.low``; PyTorch's arithmetic."""
    low, high, offset = levels.grid
    return np.rint(np.clip(values / np.float32(levels.scale) - np.float32(offset), low, high))
