"""Convolutions and transposed convolutions over one, two and three axes."""

import torch
from torch import nn, randn

from nce_fx.ops import output_shapes, work
from nce_fx.ops.op import Op, WeightLayout
from nce_fx.ops.rules import affine, weighted

_FOLLOWS = ("in_channels", "out_channels", "groups")


def _convolution(axes: int, module: type[nn.Module]) -> Op:
    return Op(
        name=f"conv{axes}d",
        kind="weighted",
        modules=(module,),
        signature="input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1",
        channels=weighted.convolution(axes),
        catch="call",
        macs=work.conv(axes),
        quantize=WeightLayout(0),
        fold=affine.rows,
        follows=_FOLLOWS,
        shape=output_shapes.convolution(axes),
        example=lambda: (randn(2, 8, *[5] * axes), randn(6, 8, *[3] * axes), randn(6), [1] * axes, [1] * axes),
    )


def _transposed(axes: int, module: type[nn.Module]) -> Op:
    return Op(
        name=f"conv_transpose{axes}d",
        kind="weighted",
        modules=(module,),
        signature="input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1",
        channels=weighted.transposed_convolution(axes),
        catch="call",
        macs=work.conv(axes, transposed=True),
        quantize=WeightLayout(1),
        fold=affine.columns,
        follows=_FOLLOWS,
        example=lambda: (randn(2, 8, *[3] * axes), randn(8, 6, *[2] * axes), randn(6), [2] * axes),
    )


ROWS = (
    _convolution(1, nn.Conv1d),
    _convolution(2, nn.Conv2d),
    _convolution(3, nn.Conv3d),
    _transposed(1, nn.ConvTranspose1d),
    _transposed(2, nn.ConvTranspose2d),
    _transposed(3, nn.ConvTranspose3d),
    Op(
        name="convolution",
        kind="weighted",
        signature="input, weight, bias, stride, padding, dilation, transposed, output_padding, groups",
        spellings={torch.convolution: ""},
        channels=weighted.any_convolution,
        catch="call",
        macs=work.convolution,
        quantize=WeightLayout(0),
        fold=affine.rows_or_columns,
        follows=("groups",),
        example=lambda: (randn(2, 8, 5, 5), randn(6, 8, 3, 3), randn(6), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    ),
)
