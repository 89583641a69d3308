"""Functions of each element: activations, arithmetic, dropout, and what makes constants like another tensor.

Every other ATen op that PyTorch tags as pointwise is followed without a row; a row says what the tag does not.
"""

from collections.abc import Callable
from typing import Any

from torch import nn, rand, randn

from nce_fx.ops import output_shapes
from nce_fx.ops.op import Absent, family, same_order
from nce_fx.ops.rules import elementwise, spectral, weighted


def _row() -> tuple[Any, ...]:
    return (randn(2, 8),)


def _two() -> tuple[Any, ...]:
    return rand(2, 8) + 0.5, rand(2, 8) + 0.5


def _image(axes: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (randn(2, 8, *[5] * axes), 0.5, False)


_elementwise = family(kind="pointwise", channels=elementwise.pointwise, signature="input", example=_row)
_activation = family(
    kind="pointwise", channels=elementwise.pointwise, signature="input", example=_row, shape=output_shapes.same
)
_arithmetic = family(
    kind="pointwise",
    channels=elementwise.pointwise,
    signature="input, other, alpha=1",
    shape=output_shapes.arithmetic,
)
_dropout = family(
    kind="pointwise",
    channels=elementwise.pointwise,
    signature="input, p=0.5, training=True, inplace=False",
    shape=output_shapes.same,
    memory="view",
    by_mode=True,
)

ROWS = (
    _activation("relu", nn.ReLU, sign="never_negative"),
    _activation("relu6", nn.ReLU6, sign="never_negative"),
    _activation("sigmoid", nn.Sigmoid, sign="never_negative"),
    _activation("hardsigmoid", nn.Hardsigmoid, sign="never_negative"),
    _activation("softplus", nn.Softplus, signature="input, beta=1, threshold=20", sign="never_negative"),
    _elementwise("abs", channels=spectral.magnitude, sign="never_negative", spellings=same_order("absolute")),
    _elementwise("square", sign="never_negative"),
    _elementwise("exp", sign="never_negative"),
    _activation("silu", nn.SiLU),
    _activation("gelu", nn.GELU, signature="input, approximate='none'"),
    _activation("mish", nn.Mish),
    _activation("hardswish", nn.Hardswish),
    _activation("tanh", nn.Tanh),
    _activation("elu", nn.ELU, signature="input, alpha=1.0"),
    _activation("leaky_relu", nn.LeakyReLU, signature="input, negative_slope=0.01"),
    _elementwise(
        "prelu",
        nn.PReLU,
        signature="input, weight",
        channels=weighted.prelu,
        catch="call",
        follows=("num_parameters",),
        example=lambda: (randn(2, 8), rand(8)),
    ),
    _elementwise(
        "rrelu",
        nn.RReLU,
        signature="input, lower=0.125, upper=0.3333333333333333, training=False, inplace=False",
        by_mode=True,
    ),
    _elementwise(
        "rrelu_with_noise",
        signature="input, noise, lower=0.125, upper=0.3333333333333333, training=False",
        example=Absent("rrelu calls it, with room for the slopes that it draws"),
    ),
    _arithmetic("add", _two, sign="kept"),
    _arithmetic("mul", _two, sign="kept", spellings=same_order("multiply")),
    _arithmetic("sub", _two, spellings=same_order("subtract")),
    _arithmetic("div", lambda: (randn(2, 8), 2.0), spellings=same_order("divide", "true_divide")),
    _arithmetic("maximum", _two, sign="kept"),
    _arithmetic("minimum", _two, sign="kept"),
    _activation("nn.Identity", nn.Identity, sign="kept", memory="view"),
    _dropout("dropout", _image(2), nn.Dropout, sign="kept"),
    _dropout("dropout1d", _image(1), nn.Dropout1d, sign="kept"),
    _dropout("dropout2d", _image(2), nn.Dropout2d, sign="kept", spellings=same_order("feature_dropout")),
    _dropout("dropout3d", _image(3), nn.Dropout3d, sign="kept"),
    # What they drop takes a negative value.
    _dropout("alpha_dropout", _image(2), nn.AlphaDropout),
    _dropout("feature_alpha_dropout", _image(2), nn.FeatureAlphaDropout),
)
