"""A sum of two quantized tensors, with what follows and the next quantizer, as one QLinearAdd where that is exact.

There are no more than 65,536 pairs of numbers, so all of them are asked. onnxruntime multiplies each operand with a
quotient of two scales and adds; in which order, and whether rounded once or twice, is the processor's. That tells
nothing apart where the quotients are short, or where no sum lies on the border of two levels.

Exact scales have sums on borders, and quotients such as 1/5. There the sum is in units of the finer operand, whose
quotients are whole numbers, and what of it lies between the lowest level and the highest fits eight bits. A table of
256 entries, which onnxruntime makes for QLinearLeakyRelu by dividing as PyTorch does, turns it into levels.

Where neither will do, the sum is computed in float as PyTorch does, and rounded then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from nce_fx.export.integer.epilogue import Epilogue
from nce_fx.export.integer.onnx_nodes import CONTRIB, Writer
from nce_fx.export.integer.tensors import IntegerTensor, level_numbers, stored, write_clip
from nce_fx.export.levels import ActivationLevels


@dataclass(frozen=True)
class Sum:
    """How a sum of two tensors of levels is computed: ``Sum(0.0)`` by one operator, ``Sum(0.03125, 96)`` by a table."""

    unit: float
    """What a sum is counted in before the table, 0.03125; 0: there is no table."""
    zero: int = 0
    """What stands for a sum of zero there."""


def fit_sum(first: IntegerTensor, second: IntegerTensor, epilogue: Epilogue, levels: ActivationLevels) -> Sum | None:
    """Return how onnxruntime's sum of integers gives PyTorch's level for every pair, ``None`` where it does not."""
    if first.whole != 1 or second.whole != 1:
        return None
    return Sum(0.0) if _is_exact(first, second, epilogue, levels) else _by_table(first, second, epilogue, levels)


def _by_table(first: IntegerTensor, second: IntegerTensor, epilogue: Epilogue, levels: ActivationLevels) -> Sum | None:
    scales = [float(np.float32(tensor.levels.scale)) for tensor in (first, second)]
    unit = min(scales)
    times = [scale / unit for scale in scales]
    if any(ratio != round(ratio) or ratio > 255 for ratio in times):
        return None
    low, high = (
        int(sum(ratio * (end - t.zero) for ratio, t, end in zip(times, (first, second), at, strict=True)))
        for at in ((0, 0), (first.most, second.most))
    )
    sums = np.arange(low, high + 1)
    wanted = level_numbers(levels, epilogue((sums * np.float32(unit)).astype(np.float32)[None]))[0]
    # Below the first and above the last of these the level is the same everywhere.
    changes = np.flatnonzero(np.diff(wanted))
    least, most = (sums[changes[0]], sums[changes[-1] + 1]) if len(changes) else (0, 0)
    zero = int(np.clip(-least, 0, 255))
    held = np.clip(sums, -zero, 255 - zero)
    made = np.rint((held * np.float32(unit)).astype(np.float32) / np.float32(levels.scale))
    fits = -zero <= least and most <= 255 - zero
    return Sum(unit, zero) if fits and np.array_equal(np.clip(made, *ends(epilogue, levels)), wanted) else None


def _is_exact(first: IntegerTensor, second: IntegerTensor, epilogue: Epilogue, levels: ActivationLevels) -> bool:
    """Whether a single QLinearAdd gives PyTorch's level for every pair."""
    low, high = ends(epilogue, levels)
    a, b = (np.arange(tensor.most + 1) - tensor.zero for tensor in (first, second))
    values = [(numbers * np.float32(t.levels.scale)).astype(np.float32) for numbers, t in ((a, first), (b, second))]
    wanted = level_numbers(levels, epilogue(values[0][:, None] + values[1][None, :]))
    ratios = [float(np.float32(t.levels.scale) / np.float32(levels.scale)) for t in (first, second)]
    places = (a * ratios[0])[:, None] + (b * ratios[1])[None, :]
    # Nothing is rounded where all ratios are short numbers: then only ties have to go the same way.
    short = all(float(np.float32(ratio)) == ratio and _significant(ratio) <= 8 for ratio in ratios)
    exact_ratios = all(
        ratio * float(np.float32(levels.scale)) == float(np.float32(t.levels.scale))
        for ratio, t in zip(ratios, (first, second), strict=True)
    )
    largest = sum(tensor.most * ratio for tensor, ratio in zip((first, second), ratios, strict=True)) - levels.grid.low
    doubt = 0.0 if short and exact_ratios else float(np.finfo(np.float32).eps) * largest
    got = [np.clip(np.rint(places + sign * doubt), low, high) for sign in (-1, 1)]
    return bool(np.array_equal(got[0], wanted) and np.array_equal(got[1], wanted))


def _significant(number: float) -> int:
    """How many binary digits a number has, from the first to the last that is not zero."""
    mantissa = int(np.frexp(number)[0] * 2**53)
    return 53 - ((mantissa & -mantissa).bit_length() - 1)


def ends(epilogue: Epilogue, levels: ActivationLevels) -> tuple[int, int]:
    """Return the least and the largest level that can come out, such as ``(0, 3)`` of two unsigned bits."""
    edges = level_numbers(levels, epilogue(np.array([[-1e30, 1e30]], np.float32)))[0]
    return int(edges[0]), int(edges[1])


def write(
    writer: Writer,
    node: NodeProto,
    operands: tuple[IntegerTensor, IntegerTensor],
    how: Sum,
    epilogue: Epilogue,
    levels: ActivationLevels,
    result: str,
) -> str:
    """Write the sum of integers, and return the name of the numbers, such as ``"relu_numbers"``."""
    low, high = (end - levels.grid.low for end in ends(epilogue, levels))
    inputs = [name for tensor in operands for name in stored(writer, tensor).inputs]
    inputs.append(writer.constant(f"{result}_scale", np.float32(levels.scale)))
    inputs.append(writer.constant(f"{result}_number_of_zero", np.uint8(-levels.grid.low)))
    whole = (low, high) == (0, 255)
    made = result if whole else writer.free(node.output[0])
    if how.unit:
        unit = writer.constant(f"{result}_unit", np.float32(how.unit))
        zero = writer.constant(f"{result}_unit_zero_point", np.uint8(how.zero))
        units = writer.node("QLinearAdd", [*inputs[:-2], unit, zero], f"{result}_units", node, domain=CONTRIB)
        table = [units, unit, zero, *inputs[-2:]]
        writer.node("QLinearLeakyRelu", table, made, node, domain=CONTRIB, alpha=1.0)
    else:
        writer.node("QLinearAdd", inputs, made, node, domain=CONTRIB)
    return result if whole else write_clip(writer, made, result, low, high)
