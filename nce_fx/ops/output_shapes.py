"""Shapes of what operations make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def convolved(
    sizes: Sequence[int], kernel: Sequence[int], stride: Any, padding: Any, dilation: Any = 1
) -> tuple[int, ...]:
    """Return the lengths that axes have after a convolution along them; options are numbers or one for each axis."""
    if padding == "same":
        return tuple(sizes)
    around = each(0 if padding == "valid" else padding, len(sizes))
    options = (kernel, each(stride, len(sizes)), around, each(dilation, len(sizes)))
    return tuple(
        (size + 2 * beside - spread * (taps - 1) - 1) // step + 1
        for size, taps, step, beside, spread in zip(sizes, *options, strict=True)
    )


def each(value: Any, axes: int) -> Sequence[int]:
    """Return an option as one number for each axis."""
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values
