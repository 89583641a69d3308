"""BatchNorm whose numbers are the same in every runtime: one multiplication, one addition, each rounded for itself.

In evaluation mode PyTorch's own kernel fuses the two on some processors and takes an approximate root, onnxruntime's
does neither; what they give differs in its last bit, and a quantizer may round it to another level.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm

from nce_fx.ops import OPS


class StepwiseBatchNorm(_BatchNorm):
    """A BatchNorm, step by step in evaluation mode; it knows what it was."""

    plain: Any
    """The class of PyTorch's that it is, but for this."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized input."""
        mean, variance = self.running_mean, self.running_var
        if self.training or mean is None or variance is None:
            result: Tensor = self.plain.forward(self, input)
            return result
        self._check_input_dim(input)
        # Square roots in float32 have another last bit wherever MKL computes them; in double nothing is left of that.
        deviation = torch.sqrt(variance.double() + self.eps)
        factor = torch.reciprocal(deviation) if self.weight is None else self.weight / deviation
        shift = -mean * factor if self.bias is None else self.bias - mean * factor
        shape = (-1, *[1] * (input.dim() - 2))
        return input * factor.to(input.dtype).view(shape) + shift.to(input.dtype).view(shape)

    def _check_input_dim(self, input: Tensor) -> None:
        self.plain._check_input_dim(self, input)


def make_stepwise(gm: GraphModule) -> None:
    """Make PyTorch's BatchNorm modules compute step by step, in place; subclasses of them stay as they are."""
    for module in gm.modules():
        if type(module) in OPS["batch_norm"].modules:
            module.plain, module.__class__ = type(module), StepwiseBatchNorm  # type: ignore[assignment]


def make_plain(gm: GraphModule) -> None:
    """Take `make_stepwise` back."""
    for module in gm.modules():
        if isinstance(module, StepwiseBatchNorm):
            module.__class__ = module.__dict__.pop("plain")
