"""From a staircase to a multiplication: exact whole-number arithmetic for BatchNorm and what follows it.

A convolution of whole numbers gives a whole number n; PyTorch's BatchNorm, ReLU and quantizer make a level of it. Where
the level rises is found by asking for it, in PyTorch's own float32: nothing is left of how those numbers were come by.
onnxruntime's QLinearConv gives

    level = round((fineness * n + bias) * ratio),   bias a whole number, ratio a float32

with round to even. For each channel any bias and ratio do that rise at the same n, and there is some room: a rise may
lie anywhere between (fineness * (t - 1) + bias) and (fineness * t + bias). For a given bias each rise allows an
interval of ratios; a bias is good when these intersect. The finer the sum, the more of them there are. How much room
they leave is a concave function of the bias, so that the best one is found, and where that is none, there is none.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nce_fx.export.integer.onnx_nodes import Array

_LARGEST = 2**31 - 1
_SEARCHED = 8
"""How far from the line's own bias the best one is looked for, in units of the sum, to both sides."""


@dataclass(frozen=True)
class Staircase:
    """Where the levels of each channel rise: ``rises[c, k]`` is the least sum of channel c with ``levels[k]``."""

    levels: Array
    """The levels above the lowest that the staircase reaches, ascending: (levels,)."""
    rises: Array
    """The least sum with that level or a higher one, ``-reach`` where the lowest sum has it already, ``reach + 1``
    where none has: (channels, levels)."""
    reach: Array
    """The largest sum, and minus the least one: (channels, 1)."""


@dataclass(frozen=True)
class Requantization:
    """What stands for a staircase in ``QLinearConv``: a bias and a ratio for each channel."""

    bias: Array
    """int32: (channels,)."""
    ratio: Array
    """The ratio that was wanted, before scales were rounded: double precision (channels,)."""
    misses: Array
    """Rises that are at another sum than they should: (channels,)."""


def find_rises(level: Callable[[Array], Array], levels: Array, reach: Array) -> Staircase:
    """Find where ``level(sums)``, which never falls, reaches each level: (channels, n) -> (channels, n)."""
    low = np.broadcast_to(-reach - 1, (len(reach), len(levels))).astype(np.int64)
    high = np.broadcast_to(reach + 1, low.shape).astype(np.int64)
    while np.any(high - low > 1):
        middle = (low + high) // 2
        there = level(middle) >= levels
        low, high = np.where(there, low, middle), np.where(there, middle, high)
    return Staircase(levels, high, reach)


def line_through(stairs: Staircase) -> tuple[Array, Array]:
    """Return a line through the stairs of each channel, as slope and start: ``([0.5], [3.0])``.

    It is for stairs that nothing else says one of; both are (channels,).
    Of one rise any line will do that gives no further level within the reach.
    """
    reach = stairs.reach[:, 0]
    inside = (stairs.rises > -stairs.reach) & (stairs.rises <= stairs.reach)
    some = inside.any(1)
    first, last = inside.argmax(1), inside.shape[1] - 1 - inside[:, ::-1].argmax(1)
    channels = np.arange(len(reach))
    begin, end = stairs.rises[channels, first], stairs.rises[channels, last]
    height = stairs.levels[last] - stairs.levels[first]
    alone = 0.45 / np.maximum(reach, 1)
    slope = np.where(end > begin, height / np.maximum(end - begin, 1), alone)
    start = stairs.levels[first] - 0.5 - slope * (begin - 0.5)
    constant = stairs.levels[0] - 1 + (stairs.rises <= -stairs.reach).sum(1)
    return np.where(some, slope, alone / 2), np.where(some, start, constant)


def requantize(
    stairs: Staircase, slope: Array, start: Array, fineness: int, rounded: Callable[[Array], Array]
) -> Requantization:
    """Find bias and ratio of each channel, so that ``round((sum * fineness + bias) * ratio)`` rises as the stairs do.

    Args:
        stairs: the rises.
        slope: levels a unit of the sum, as the line through the stairs has it, positive: (channels,).
        start: the line's level at a sum of zero: (channels,).
        fineness: what the sum is multiplied with.
        rounded: what becomes of wanted ratios once they are the quotient of three float32 scales.
    """
    room = _LARGEST - fineness * stairs.reach[:, 0]
    # A channel that hardly moves, or not at all, still needs a bias that int32 holds.
    line = np.maximum(slope / fineness, (np.abs(start) + 1) / room)
    center = np.clip(np.round(start / line), -room, room)

    def inverses(bias: Array) -> tuple[Array, Array]:
        least, most = _inverse_ratios(stairs, bias, fineness)
        return np.maximum(least, 0.5 / line), np.minimum(most, 2 / line)

    def slack(bias: Array) -> Array:
        least, most = inverses(bias)
        # Of two that are equally good, the one nearer to the line.
        result: Array = (most - least) * line - 1e-9 * np.abs(bias - center)
        return result

    low, high = (np.clip(center + side * _SEARCHED * fineness, -room, room) for side in (-1, 1))
    while np.any(low < high):
        middle = np.floor((low + high) / 2)
        right = slack(middle + 1) > slack(middle)
        low, high = np.where(right, middle + 1, low), np.where(right, high, middle)
    bias, (least, most) = low, inverses(low)
    inverse = (least + most) / 2
    misses = count_misses(stairs, bias, rounded(1 / inverse), fineness)
    # Where values lie on the border of two levels, only the line itself may do.
    plain = count_misses(stairs, center, rounded(line), fineness)
    keep = plain < misses
    ratio = np.where(keep, line, 1 / inverse)
    return Requantization(np.where(keep, center, bias).astype(np.int32), ratio, np.where(keep, plain, misses))


def _ends(stairs: Staircase, bias: Array, fineness: int) -> tuple[Array, Array]:
    """The sums, fine and with a bias, just before and at each rise; infinite where no sum is there."""
    before = np.where(stairs.rises > -stairs.reach, fineness * (stairs.rises - 1) + bias[:, None], -np.inf)
    at = np.where(stairs.rises <= stairs.reach, fineness * stairs.rises + bias[:, None], np.inf)
    return before, at


def _inverse_ratios(stairs: Staircase, bias: Array, fineness: int) -> tuple[Array, Array]:
    """Return the least and the largest 1 / ratio for which every rise is where it should be."""
    before, at = _ends(stairs, bias, fineness)
    border = stairs.levels - 0.5
    above = border > 0
    least = np.where(above, before, at) / border
    most = np.where(above, at, before) / border
    return least.max(1, initial=-np.inf), most.min(1, initial=np.inf)


def count_misses(stairs: Staircase, bias: Array, ratio: Array, fineness: int) -> Array:
    """Count, by channel, the rises that ``round((sum * fineness + bias) * ratio)`` has elsewhere: (channels,)."""
    before, at = _ends(stairs, bias, fineness)
    early = np.isfinite(before) & (np.rint(before.astype(np.float32) * ratio[:, None]) >= stairs.levels)
    late = np.isfinite(at) & (np.rint(at.astype(np.float32) * ratio[:, None]) < stairs.levels)
    misses: Array = (early | late).sum(1)
    return misses
