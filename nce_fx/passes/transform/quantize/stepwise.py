"""BatchNorm whose numbers are the same in every runtime: one multiplication, one addition, each rounded for itself.

In evaluation mode PyTorch's own kernel fuses the two on some processors and takes an approximate root, onnxruntime's
does neither; what they give differs in its last bit, and a quantizer may round it to another level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm


class _Stepwise(_BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training or mean is None or variance is None:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        # Square roots in float32 have another last bit wherever MKL computes them; in double nothing is left of that.
        deviation = torch.sqrt(variance.double() + self.eps)
        factor = torch.reciprocal(deviation) if self.weight is None else self.weight / deviation
        shift = -mean * factor if self.bias is None else self.bias - mean * factor
        shape = (-1, *[1] * (input.dim() - 2))
        return input * factor.to(input.dtype).view(shape) + shift.to(input.dtype).view(shape)


class StepwiseBatchNorm1d(_Stepwise, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, step by step in evaluation mode."""


class StepwiseBatchNorm2d(_Stepwise, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, step by step in evaluation mode."""


class StepwiseBatchNorm3d(_Stepwise, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, step by step in evaluation mode."""


_STEPWISE: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: StepwiseBatchNorm1d,
    nn.BatchNorm2d: StepwiseBatchNorm2d,
    nn.BatchNorm3d: StepwiseBatchNorm3d,
}
_PLAIN = {stepwise: plain for plain, stepwise in _STEPWISE.items()}


def make_stepwise(gm: GraphModule) -> None:
    """Make PyTorch's BatchNorm modules compute step by step, in place; subclasses of them stay as they are."""
    for module in gm.modules():
        module.__class__ = _STEPWISE.get(type(module), type(module))


def make_plain(gm: GraphModule) -> None:
    """Take `make_stepwise` back."""
    for module in gm.modules():
        module.__class__ = _PLAIN.get(type(module), type(module))
