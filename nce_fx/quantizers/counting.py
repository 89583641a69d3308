"""Activation quantizers whose range is found on all values that calibration saw, counted.

Every value is counted, as the nearest of the 65,536 bfloat16 numbers, which is at most 0.4 % off. Counts are whole
numbers, so they add up to the same whatever batches the values come in, in whatever order, however they lie in memory.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nce_fx.quantizers.base import FLOOR, ActivationQuantizer, Grid, working

CLIP = 8.0
"""Where a range ends without data; PACT's paper starts at 8 to 10."""
_NUMBERS = 2**16
_AT_ONCE = 2**18
"""Values counted in one go: no copy of a whole activation is made."""

Counts = NDArray[np.int64]
"""65,536 counts; the index is the number's bits."""


def count_values(x: Tensor) -> Counts:
    """Return how often each bfloat16 number comes up in a tensor of any shape; 1.0 is counted at index 0x3F80."""
    counts = np.zeros(_NUMBERS, np.int64)
    values = _in_memory_order(x.detach())
    for start in range(0, len(values), _AT_ONCE):
        bits = values[start : start + _AT_ONCE].to(torch.bfloat16).view(torch.int16)
        if bits.device.type == "cpu":
            counts += np.bincount(bits.numpy().view(np.uint16), minlength=_NUMBERS)
        else:
            counts += torch.bincount(bits.int().bitwise_and_(_NUMBERS - 1), minlength=_NUMBERS).cpu().numpy()
    return counts


def counted(counts: Counts) -> tuple[NDArray[np.float64], Counts]:
    """Return the numbers that came up, in rising order, and how often each did."""
    found = np.flatnonzero(counts)
    bits = torch.from_numpy(found.astype(np.uint16).view(np.int16))
    numbers: NDArray[Any] = bits.view(torch.bfloat16).double().numpy()
    order = np.argsort(numbers)
    return numbers[order], counts[found][order]


def _in_memory_order(x: Tensor) -> Tensor:
    """Return the values as one row, without a copy where they lie dense in memory, in whatever format."""
    strides = x.stride()
    return x.permute(sorted(range(x.dim()), key=lambda axis: -strides[axis])).reshape(-1)


def best_clip(values: NDArray[np.float64], counts: Counts, grid: Grid) -> tuple[float, float]:
    """Return the clip of least squared error between max|x| / 32 and max|x|, and by how much less than with zeros.

    First among 41 candidates, eight an octave, then among those around the best, 64 an octave: 1.1 % apart.

    Args:
        values: what there is to quantize, in rising order.
        counts: how often each value is there.
        grid: what it is rounded to.
    """
    top = float(np.abs(values[[0, -1]]).max())
    if not math.isfinite(top):
        return top, 0.0
    # Every candidate's error follows from sums over the runs of values that it rounds to one level.
    many = np.append(0, np.cumsum(counts))
    sums = np.append(0.0, np.cumsum(values * counts))
    levels = np.arange(grid.low, grid.high + 1) + grid.offset
    best = 0.0
    for octaves in (np.arange(41) / 8, np.arange(-8, 9) / 64):
        candidates = np.clip(best - octaves, -5.0, 0.0)
        scales = np.maximum(top * 2.0**candidates, FLOOR)[:, None] / grid.reach
        cuts = np.searchsorted(values, scales * (levels[:-1] + 0.5))
        ends = np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (0, len(values))))
        errors = (scales * levels * (scales * levels * np.diff(many[ends]) - 2 * np.diff(sums[ends]))).sum(1)
        best = float(candidates[int(errors.argmin())])
    return float(top * 2.0**best), float(errors.min())


class CountingQuantizer(ActivationQuantizer):
    """Base of the quantizers that count the values of each calibration batch, such as PACT, for ``estimate``."""

    _counts: Counts | None = None

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Count the values of one calibration batch."""
        super().observe(x)
        counts = count_values(working(x))
        self._counts = counts if self._counts is None else self._counts + counts

    def observed(self) -> tuple[NDArray[np.float64], Counts]:
        """Return the values that were counted, in rising order, and how often each came; counting starts anew."""
        assert self._counts is not None
        found, self._counts = counted(self._counts), None
        return found

    def estimate(self) -> float:
        """Return the step of least squared error on all that was counted, with even levels."""
        values, counts = self.observed()
        return best_clip(values, counts, self.grid)[0] / self.grid.reach
