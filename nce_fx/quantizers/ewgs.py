"""Element-wise gradient scaling, for any quantizer (Lee, Kim and Ham 2021, "Network quantization with element-wise
gradient scaling", arXiv 2104.00903).

    g' = g (1 + delta sign(g) (x - y) / step),   y = Q(x)

A step against g' moves x further where it leads towards a border between two levels' ranges, and less where it leads
back to the level. g' takes the place of the gradient that comes back to the quantizer, so what is learned of the range
sees it as well, as published. There distances are in units of the whole range, here in steps, from -1/2 to 1/2. What
lies beyond the range is clipped first, so its distance is none: were it 1/2 for all of them, the sizes of gradients
would add up to one direction for a learned clip value, and take it to nothing.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nce_fx.quantizers.transforms import Transformable


def scale_gradient(y: Tensor, x: Tensor, step: Tensor | float, delta: float) -> Tensor:
    """Return ``y``, which is ``x`` on its levels, with the gradient that comes back to it scaled element by element.

    Shapes: y and x any, alike; step broadcasts over them.
    """
    if not delta or not y.numel() or not torch.is_grad_enabled():
        return y
    levels = y.detach()
    distance = x.detach().clamp(*levels.aminmax()).sub_(levels).div_(step)
    if isinstance(step, Tensor) and step.numel() > 1:
        # The outermost levels are those of each channel.
        distance = distance.masked_fill(distance.abs() > 0.5, 0.0)
    return _ElementScaled.apply(y, distance.to(y.dtype), delta)  # type: ignore[no-any-return]


class _ElementScaled(Transformable):
    """The identity, and the scaled gradient. Keeps the distances."""

    @staticmethod
    def forward(y: Tensor, distance: Tensor, delta: float) -> Tensor:
        """Return y."""
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the distances."""
        _, distance, ctx.delta = inputs
        ctx.save_for_backward(distance)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient."""
        (distance,) = ctx.saved_tensors
        return torch.addcmul(grad, grad.abs(), distance, value=ctx.delta), None, None
