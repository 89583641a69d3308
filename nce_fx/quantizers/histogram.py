"""What calibration keeps of a tensor: how often each bfloat16 number came up in it.

Every value is counted, as the nearest of the 65,536 bfloat16 numbers, which is at most 0.4 % off. Counts are whole
numbers, so they add up to the same whatever batches the values come in, in whatever order, however they lie in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
