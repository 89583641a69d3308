"""A sum of two quantized tensors, with what follows and the next quantizer, as one QLinearAdd where that is exact.

There are no more than 65,536 pairs of numbers, so all of them are asked. onnxruntime multiplies each operand with a
quotient of two scales and adds; in which order, and whether rounded once or twice, is the processor's. That tells
nothing apart where the quotients are short, or where no sum lies on the border of two levels.

Exact scales have sums on borders, and quotients such as 1/5. There the sum is in units of the finer operand, whose
quotients are whole numbers, and what of it lies between the lowest level and the highest fits eight bits. A table of
256 entries, which onnxruntime makes for QLinearLeakyRelu by dividing as PyTorch does, turns it into levels.

Scales that are not exact leave about a dozen of the pairs so near to a border of 8-bit levels that the last digits
decide. There scales are a few units in the last place away, so that all pairs are on PyTorch's level as onnxruntime
computes on x86, with and without a fused multiplication and addition; another processor may round one of the dozen
otherwise.

Where none of these will do, the sum is computed in float as PyTorch does, and rounded then.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from onnx import NodeProto

from nce_fx.export.integer.epilogue import Epilogue
from nce_fx.export.integer.onnx_nodes import CONTRIB, Array, Writer
from nce_fx.export.integer.tensors import IntegerTensor, level_numbers, stored, write_clip
from nce_fx.export.levels import ActivationLevels


@dataclass(frozen=True)
class Sum:
    """How a sum of two tensors of levels is computed: ``Sum(0.0)`` by one operator, ``Sum(0.03125, 96)`` by a table."""

    unit: float
    """What a sum is counted in before the table, 0.03125; 0: there is no table."""
    zero: int = 0
    """What stands for a sum of zero there."""
    apart: tuple[int, int, int] = (0, 0, 0)
    """Units in the last place by which the scales of operands and result are others."""


_NEAR = range(-3, 4)
_APART = sorted(product(_NEAR, _NEAR, _NEAR), key=lambda units: sum(map(abs, units)))
"""Such units for all three, the fewest first."""


def fit_sum(
    first: IntegerTensor, second: IntegerTensor, epilogue: Epilogue, levels: ActivationLevels, *, exact: bool
) -> Sum | None:
    """Return how onnxruntime's sum of integers gives PyTorch's level for every pair, ``None`` where it does not.

    Args:
        first: what is added.
        second: to what.
        epilogue: what follows.
        levels: of the quantizer.
        exact: on every processor, also where the last digits decide.
    """
    if first.whole != 1 or second.whole != 1:
        return None
    if _is_exact(first, second, epilogue, levels):
        return Sum(0.0)
    found = _by_table(first, second, epilogue, levels)
    return found if found is not None or exact else _with_others(first, second, epilogue, levels)


def _scales(first: IntegerTensor, second: IntegerTensor, levels: ActivationLevels, apart: tuple[int, ...]) -> Array:
    """Return the scales of operands and result, so many units in the last place away: float32 (3,)."""
    given = np.array([first.levels.scale, second.levels.scale, levels.scale], np.float32)
    moved: Array = (given.view(np.int32) + np.array(apart, np.int32)).view(np.float32)
    return moved


def _with_others(
    first: IntegerTensor, second: IntegerTensor, epilogue: Epilogue, levels: ActivationLevels
) -> Sum | None:
    """Look for scales that differ in the last digits and with which every pair is on PyTorch's level."""
    low, high = ends(epilogue, levels)
    a, b = np.meshgrid(np.arange(first.most + 1), np.arange(second.most + 1), indexing="ij")
    values = [
        ((numbers - t.zero) * np.float32(t.levels.scale)).astype(np.float32) for numbers, t in ((a, first), (b, second))
    ]
    wanted = level_numbers(levels, epilogue(values[0] + values[1]))
    zeros = first.zero, second.zero, float(-levels.grid.low)
    places = (values[0].astype(np.float64) + values[1]) / levels.scale
    doubt = 16 * float(np.finfo(np.float32).eps) * (np.abs(places).max() + zeros[2])
    under, over = (np.clip(np.rint(places + side * doubt), low, high) for side in (-1, 1))
    near = under != over
    if not np.array_equal(under[~near], wanted[~near]):
        return None
    for apart in _APART:
        scales = _scales(first, second, levels, apart)
        made = (_places(a[near], b[near], scales, zeros, fused=fused) - zeros[2] for fused in (True, False))
        if all(np.array_equal(np.clip(np.rint(each), low, high), wanted[near]) for each in made):
            return Sum(0.0, apart=apart)
    return None


def _places(a: Array, b: Array, scales: Array, zeros: tuple[float, float, float], *, fused: bool) -> Array:
    """Return what QLinearAdd rounds, ``a * r + (b * s + t)`` of stored numbers, in float32 as on x86."""
    ratios = scales[:2] / scales[2]
    start = np.float32(zeros[2]) - (ratios[0] * np.float32(zeros[0]) + ratios[1] * np.float32(zeros[1]))
    result = np.full(a.shape, start, np.float32)
    for numbers, ratio in ((b, ratios[1]), (a, ratios[0])):
        # A product of eight bits and 24 is exact in double precision.
        products = numbers.astype(np.float64) * ratio
        result = ((products if fused else products.astype(np.float32)) + result).astype(np.float32)
    return result


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
    scales = _scales(*operands, levels, how.apart)
    if any(how.apart):
        for place, tensor, scale in zip((1, 4), operands, scales, strict=False):
            inputs[place] = writer.constant(f"{result}_of_{tensor.name}_scale", scale)
    inputs.append(writer.constant(f"{result}_scale", scales[2]))
    inputs.append(writer.number(np.uint8(-levels.grid.low)))
    whole = (low, high) == (0, 255)
    made = result if whole else writer.free(node.output[0])
    if how.unit:
        unit = writer.constant(f"{result}_unit", np.float32(how.unit))
        zero = writer.number(np.uint8(how.zero))
        units = writer.node("QLinearAdd", [*inputs[:-2], unit, zero], f"{result}_units", node, domain=CONTRIB)
        table = [units, unit, zero, *inputs[-2:]]
        writer.node("QLinearLeakyRelu", table, made, node, domain=CONTRIB, alpha=1.0)
    else:
        writer.node("QLinearAdd", inputs, made, node, domain=CONTRIB)
    return result if whole else write_clip(writer, made, result, low, high)
