"""Rounding with a straight-through gradient, written out so that a training step saves and computes little.

Plain autograd would keep four copies of every activation (divided, clipped, rounded, scaled). Here the forward pass
works in place, and keeps its input alone; or, where memory is dearer, its output, which the next layer keeps anyway,
and one byte an element. In `nce_fx.quantizers.saved_tensors.compact_saving` weights are kept as integers, by their
layer too.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nce_fx.quantizers.base import FLOOR, Grid, at_least, level, whole, working
from nce_fx.quantizers.saved_tensors import Packed, pack_levels, packs_activations, register
from nce_fx.quantizers.transforms import StraightThrough, Transformable, is_transformed, reads_numbers


def clip_round(x: Tensor, extent: Tensor, steps: float, grid: Grid) -> Tensor:
    """Quantize with the scale ``extent / steps``, which may be learned.

        y = (q + offset) * scale,   q = round(clip(x / scale - offset, low, high))

    Gradients: dy/dx is 1 from the lowest level up to, and without, the highest, else 0. dy/dextent is y / extent where
    x is clipped, else 0: of an unsigned range whose highest level is the extent, PACT's "1 where x >= clip".

    Shapes: x any; extent 0-dimensional; y as x.
    """
    function: type[Function] = _ClipRound
    if torch.compiler.is_compiling() or is_transformed():
        function = _ClipRoundTraced
    elif x.device.type == "cpu" and not packs_activations():
        function = _ClipRoundKeeping
    return function.apply(x, working(extent), steps, grid)  # type: ignore[no-any-return, no-untyped-call]


class _ClipRound(Function):
    """Least memory: keep y, which the next layer keeps anyway, and one byte an element: is it inside the range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, extent: Tensor, steps: float, grid: Grid) -> Tensor:
        """Quantize."""
        scale = _scale(extent, steps)
        place = working(x) / scale
        if grid.offset:
            place = place.sub_(grid.offset)
        q = place.clamp(grid.low, _before(grid.high, place.dtype))
        packed = None
        if any(ctx.needs_input_grad[:2]):
            inside = place.eq(q)
            q.round_()
            packed = pack_levels(q, scale, grid.offset, x.dtype, grid.low) if packs_activations() else None
            y = level(q, scale, grid).to(x.dtype)
            ctx.steps, ctx.packed = steps, packed and (packed.offset, packed.work, packed.dtype)
            ctx.save_for_backward(packed.values if packed else y, inside, scale)
            return register(y, packed)
        return level(q.round_(), scale, grid).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Pass inside the range; what is clipped pulls on the scale."""
        y, inside, scale = ctx.saved_tensors
        passed = inside.to(grad.dtype).mul_(grad)
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None
        if ctx.packed:
            y = Packed(y, scale, *ctx.packed).unpack()
        pull = dot(grad - passed, y) / (scale * ctx.steps)
        return passed, pull, None, None


class _ClipRoundKeeping(Function):
    """Least time on a CPU: keep x, so that torch's own kernels find what is clipped, in one pass over it each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, extent: Tensor, steps: float, grid: Grid) -> Tensor:
        """Quantize."""
        ctx.steps, ctx.grid = steps, grid
        ctx.save_for_backward(x, extent)
        scale = _scale(extent, steps)
        return level(whole(working(x), scale, grid), scale, grid).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Pass inside the range; what is clipped pulls on the extent."""
        x, extent = ctx.saved_tensors
        reach = max(float(extent), FLOOR * ctx.steps)
        lower, upper = (reach * ((end + ctx.grid.offset) / ctx.steps) for end in ctx.grid[:2])
        # torch's bounds are both open, ours is closed below.
        below, above = (_before(bound, x.dtype) for bound in (lower, upper))
        passed = torch.ops.aten.hardtanh_backward(grad, x, below, upper)
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None
        # What is clipped above pulls by the highest level, and what is clipped below by the lowest.
        clipped = torch.ops.aten.threshold_backward(grad, x, above)
        pull = float(clipped.sum(dtype=extent.dtype)) * (upper / reach)
        if lower:
            torch.ops.aten.hardtanh_backward.grad_input(grad, x, -math.inf, lower, grad_input=clipped)
            pull += float(clipped.sum(dtype=extent.dtype)) * (lower / reach)
        return passed, gradient(pull, extent), None, None


def _scale(extent: Tensor, steps: float) -> Tensor:
    return at_least(extent, FLOOR * steps) / steps


def _before(bound: float, dtype: torch.dtype) -> float:
    """The largest number of ``dtype`` below a bound: a range is closed below and open above."""
    if dtype is torch.float32:  # NumPy takes a tenth of the time, many times a step
        return float(np.nextafter(np.float32(bound), np.float32(-math.inf)))
    return float(torch.nextafter(torch.tensor(bound, dtype=dtype), torch.tensor(-math.inf, dtype=dtype)))


class _ClipRoundTraced(Transformable):
    """Under a compiler: keep x, from which it can fuse all else into the neighbours; it may choose to keep less.

    And under ``torch.func``, where no number can be read off a tensor.
    """

    @staticmethod
    def forward(x: Tensor, extent: Tensor, steps: float, grid: Grid) -> Tensor:
        """Quantize."""
        scale = _scale(extent, steps)
        return level(whole(working(x), scale, grid), scale, grid).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep x."""
        x, extent, ctx.steps, ctx.grid = inputs
        ctx.save_for_backward(x, extent)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """As in eager mode."""
        x, extent = ctx.saved_tensors
        grid, scale = ctx.grid, _scale(extent, ctx.steps)
        place = working(x) / scale - grid.offset
        inside = (place >= grid.low) & (place < grid.high)
        passed = torch.where(inside, grad, 0.0)
        ends = torch.where(inside, 0.0, place.clamp(grid.low, grid.high) + grid.offset)
        return passed, (grad * ends).sum() / ctx.steps, None, None


class StepRound(Transformable):
    """LSQ: the same forward pass as `clip_round`, and a gradient to the step from the rounding, too.

    Gradients: dy/dx is 1 strictly inside the range, else 0. dy/dscale is q + offset - x / scale inside and q + offset
    outside, summed and multiplied by ``share`` (the published 1 / sqrt(N * Qp)). ``margin`` moves both ends of the
    range outwards, in steps, for the gradients alone.

    Shapes: x any; scale 0-dimensional; y as x. Keeps x, since the rounding error of each element is part of the
    gradient, and y, which the layer that reads it keeps anyway.
    """

    @staticmethod
    def forward(x: Tensor, scale: Tensor, grid: Grid, share: float, weight: bool, margin: float = 0.0) -> Tensor:
        """Quantize."""
        return _rounded(x, scale, grid, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep x and y."""
        x, scale, ctx.grid, ctx.share, _, *margin = inputs
        ctx.margin = margin[0] if margin else 0.0
        ctx.save_for_backward(x, scale, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        """Split the gradient into what passes and what is clipped."""
        x, scale, y = ctx.saved_tensors
        grid = ctx.grid
        passed = inside(grad, x, scale, (grid.low + grid.offset - ctx.margin, grid.high + grid.offset + ctx.margin))
        pull = pull_on_step(grad, passed, x, y, scale) * ctx.share
        return passed, gradient(pull, scale), None, None, None, None


def inside(grad: Tensor, x: Tensor, scale: Tensor, ends: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """Return the gradient where x lies strictly between two ends, given in steps such as 0 and 3, else 0.

    Shapes: grad and x alike; scale and ends 0-dimensional; what is returned as grad.
    """
    if reads_numbers(x):
        step = float(scale)
        bounds = [float(end) * step for end in ends]
        return torch.ops.aten.hardtanh_backward(grad, x, *bounds)  # type: ignore[no-any-return]
    low, high = (end * scale for end in ends)
    wide = working(x)
    return torch.where((wide > low) & (wide < high), grad, 0.0)


def pull_on_step(grad: Tensor, passed: Tensor, x: Tensor, y: Tensor, scale: Tensor) -> Tensor | float:
    """Return LSQ's gradient of the step: the sum of (y - x) / scale over what passes and of y / scale over the rest.

    Shapes: grad, what passes of it, x and y alike; scale 0-dimensional, and so what is returned.
    """
    grad, passed, x, y = map(working, (grad, passed, x, y))
    if reads_numbers(x):
        return (float(dot(grad, y)) - float(dot(passed, x))) / float(scale)
    return (grad * y - passed * x).sum() / scale


def total(x: Tensor) -> Tensor | float:
    """Return the sum of all elements, such as 1.5: 0-dimensional, or a number where one may be read."""
    together = working(x).sum()
    return float(together) if reads_numbers(x) else together


def gradient(value: Tensor | float, of: Tensor) -> Tensor:
    """Return the gradient of a learned number as a tensor like it; of 0.25 where it was added up in numbers."""
    return value.to(of.dtype) if isinstance(value, Tensor) else of.new_full((), value)


class PassRound(StraightThrough):
    """Weights: the same forward pass, and the gradient goes straight through, everywhere. Keeps nothing.

    Shapes: w any; scale 0-dimensional or broadcastable, without a gradient; offset as the grid's; y as w.
    """

    @staticmethod
    def forward(w: Tensor, scale: Tensor, grid: Grid) -> Tensor:
        """Round."""
        return _rounded(w, scale, grid, weight=True)


class RangeRound(StraightThrough):
    """Weights with a zero point: y = (clip(round(w / scale - offset)) + offset) * scale, straight through.

    Shapes: w any; scale and offset broadcast over w, without a gradient; y as w.
    """

    @staticmethod
    def forward(w: Tensor, scale: Tensor, offset: Tensor, low: int, high: int) -> Tensor:
        """Round."""
        q = (working(w) / scale).sub_(offset).round_().clamp_(low, high)
        packed = pack_levels(q, scale, offset, w.dtype, low)
        return register(q.add_(offset).mul_(scale).to(w.dtype), packed)


class Nearest(StraightThrough):
    """round(x), to even at ties, with the gradient of the identity."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """Round."""
        return x.round()


def _rounded(x: Tensor, scale: Tensor, grid: Grid, weight: bool) -> Tensor:
    q = whole(working(x), scale, grid)
    packed = pack_levels(q, scale, grid.offset, x.dtype, grid.low) if weight or packs_activations() else None
    return register(level(q, scale, grid).to(x.dtype), packed)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of products. Eager mode has a kernel; a compiler fuses the plain form into what comes before."""
    if torch.compiler.is_compiling() or a.device.type != "cpu" or a.dtype not in (torch.float32, torch.float64):
        return (a * b).sum(dtype=torch.promote_types(a.dtype, torch.float32))
    return torch.dot(a.reshape(-1), b.reshape(-1))
