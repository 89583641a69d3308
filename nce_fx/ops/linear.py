"""Linear and bilinear layers."""

from torch import nn, randn

from nce_fx.ops import output_shapes, work
from nce_fx.ops.op import Absent, Op, WeightLayout
from nce_fx.ops.rules import affine, weighted

ROWS = (
    Op(
        name="linear",
        kind="weighted",
        modules=(nn.Linear,),
        signature="input, weight, bias=None",
        channels=weighted.linear,
        catch="call",
        macs=work.rows_times_weight("linear", -1),
        quantize=WeightLayout(0),
        fold=affine.rows,
        follows=("in_features", "out_features"),
        shape=output_shapes.linear,
        example=lambda: (randn(2, 8), randn(6, 8), randn(6)),
    ),
    Op(
        name="bilinear",
        kind="weighted",
        modules=(nn.Bilinear,),
        signature="input1, input2, weight, bias=None",
        channels=weighted.bilinear,
        catch="call",
        macs=work.bilinear,
        fold=Absent("only what can be quantized is folded into"),
        follows=("in1_features", "in2_features", "out_features"),
        example=lambda: (randn(2, 8), randn(2, 8), randn(6, 8, 8), randn(6)),
    ),
)
