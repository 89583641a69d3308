"""Element-wise gradient scaling, for any quantizer (Lee, Kim and Ham 2021, "Network quantization with element-wise
gradient scaling", arXiv 2104.00903).

    g' = g (1 + delta sign(g) (x - y) / step),   y = Q(x)

A step against g' moves x further where it leads towards a border between two levels' ranges, and less where it leads
back to the level. g' takes the place of the gradient that comes back to the quantizer, so what is learned of the range
sees it as well, as published. There distances are in units of the whole range, here in steps, from -1/2 to 1/2. What
lies beyond the range is clipped first, so its distance is none: were it 1/2 for all of them, the sizes of gradients
would add up to one direction for a learned clip value, and take it to nothing.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nce_fx.quantizers.transforms import Transformable, reads_numbers

Ends = tuple[Tensor | float, Tensor | float]
"""The lowest and the highest level, such as 0.0 and 2.1; a tensor broadcasts over what is rounded."""
EVERYWHERE: Ends = (-math.inf, math.inf)


def scale_gradient(y: Tensor, x: Tensor, step: Tensor | float, delta: float, ends: Ends = EVERYWHERE) -> Tensor:
    """Return ``y``, which is ``x`` on its levels, with the gradient that comes back to it scaled element by element.

    Shapes: y and x any, alike; step broadcasts over them.
    """
    if not delta or not y.numel() or not torch.is_grad_enabled():
        return y
    return _ElementScaled.apply(y, x.detach(), step, delta, *ends)  # type: ignore[no-any-return]


class _ElementScaled(Transformable):
    """The identity, and the scaled gradient. Keeps x, which the quantizer keeps, and y, which the next layer keeps."""

    @staticmethod
    def forward(
        y: Tensor, x: Tensor, step: Tensor | float, delta: float, low: Tensor | float, high: Tensor | float
    ) -> Tensor:
        """Return y."""
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep x and y."""
        y, x, *numbers = inputs
        step, ctx.delta, low, high = numbers
        ctx.numbers = [None if isinstance(each, Tensor) else each for each in (step, low, high)]
        ctx.save_for_backward(y, x, *(each for each in (step, low, high) if isinstance(each, Tensor)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        """Scale the gradient."""
        y, x, *kept = ctx.saved_tensors
        rest = iter(kept)
        step, low, high = (next(rest) if each is None else each for each in ctx.numbers)
        if reads_numbers(x) and all(isinstance(each, float) or each.numel() == 1 for each in (step, low, high)):
            step, low, high = float(step), float(low), float(high)
            distance = x.clamp(low, high).sub_(y)
            scaled = torch.addcmul(grad, grad.abs(), distance, value=ctx.delta / step, out=distance)
        else:
            distance = (x.clamp(low, high) - y) / step
            scaled = torch.addcmul(grad, grad.abs(), distance.to(grad.dtype), value=ctx.delta)
        return scaled, None, None, None, None, None
