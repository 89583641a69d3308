"""Convolutions and transposed convolutions over one, two and three axes."""

from __future__ import annotations

import torch
from torch import nn, randn

from nce_fx.ops import work
from nce_fx.ops.op import Op, WeightLayout
from nce_fx.ops.rules import weighted

_CONVOLUTION = "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1"
_TRANSPOSED = "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1"

ROWS = (
    Op(
        name="conv1d",
        kind="weighted",
        modules=(nn.Conv1d,),
        signature=_CONVOLUTION,
        channels=weighted.convolution(1),
        catch="call",
        macs=work.conv(1),
        quantize=WeightLayout(0),
        example=lambda: (randn(2, 8, 7), randn(6, 8, 3), randn(6), [1], [1]),
    ),
    Op(
        name="conv2d",
        kind="weighted",
        modules=(nn.Conv2d,),
        signature=_CONVOLUTION,
        channels=weighted.convolution(2),
        catch="call",
        macs=work.conv(2),
        quantize=WeightLayout(0),
        example=lambda: (randn(2, 8, 5, 5), randn(6, 8, 3, 3), randn(6), [1, 1], [1, 1]),
    ),
    Op(
        name="conv3d",
        kind="weighted",
        modules=(nn.Conv3d,),
        signature=_CONVOLUTION,
        channels=weighted.convolution(3),
        catch="call",
        macs=work.conv(3),
        quantize=WeightLayout(0),
        example=lambda: (randn(2, 8, 4, 4, 4), randn(6, 8, 3, 3, 3), randn(6), [1, 1, 1], [1, 1, 1]),
    ),
    Op(
        name="conv_transpose1d",
        kind="weighted",
        modules=(nn.ConvTranspose1d,),
        signature=_TRANSPOSED,
        channels=weighted.transposed_convolution(1),
        catch="call",
        macs=work.conv(1, transposed=True),
        quantize=WeightLayout(1),
        example=lambda: (randn(2, 8, 5), randn(8, 6, 3), randn(6), [2]),
    ),
    Op(
        name="conv_transpose2d",
        kind="weighted",
        modules=(nn.ConvTranspose2d,),
        signature=_TRANSPOSED,
        channels=weighted.transposed_convolution(2),
        catch="call",
        macs=work.conv(2, transposed=True),
        quantize=WeightLayout(1),
        example=lambda: (randn(2, 8, 4, 4), randn(8, 6, 3, 3), randn(6), [2, 2]),
    ),
    Op(
        name="conv_transpose3d",
        kind="weighted",
        modules=(nn.ConvTranspose3d,),
        signature=_TRANSPOSED,
        channels=weighted.transposed_convolution(3),
        catch="call",
        macs=work.conv(3, transposed=True),
        quantize=WeightLayout(1),
        example=lambda: (randn(2, 8, 3, 3, 3), randn(8, 6, 2, 2, 2), randn(6), [2, 2, 2]),
    ),
    Op(
        name="convolution",
        kind="weighted",
        signature="input, weight, bias, stride, padding, dilation, transposed, output_padding, groups",
        spellings={torch.convolution: ""},
        channels=weighted.any_convolution,
        catch="call",
        macs=work.convolution,
        quantize=WeightLayout(0),
        example=lambda: (randn(2, 8, 5, 5), randn(6, 8, 3, 3), randn(6), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    ),
)
