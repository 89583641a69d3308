"""Functions of each element: activations, arithmetic, dropout, and what makes constants like another tensor.

Every other ATen op that PyTorch tags as pointwise is followed without a row; a row says what the tag does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn, rand, randn

from nce_fx.ops import output_shapes
from nce_fx.ops.op import AS_RUN, NOTHING, Op, Sign, same_order
from nce_fx.ops.rules import elementwise, weighted


def _activation(name: str, *modules: type[nn.Module], signature: str = "input", sign: Sign = "any", **also: Any) -> Op:
    return Op(
        name=name,
        kind="pointwise",
        modules=modules,
        signature=signature,
        channels=elementwise.pointwise,
        sign=sign,
        shape=output_shapes.same if modules else AS_RUN,
        example=lambda: (randn(2, 8),),
        **also,
    )


def _arithmetic(
    name: str, example: Callable[[], tuple[Any, ...]], sign: Sign = "any", spellings: Mapping[Any, str] = NOTHING
) -> Op:
    signature = "input, other, alpha=1"
    return Op(
        name=name,
        kind="pointwise",
        signature=signature,
        channels=elementwise.pointwise,
        sign=sign,
        spellings=spellings,
        shape=output_shapes.arithmetic,
        example=example,
    )


def _two() -> tuple[Any, ...]:
    return rand(2, 8) + 0.5, rand(2, 8) + 0.5


def _dropout(
    name: str, *modules: type[nn.Module], axes: int = 2, sign: Sign = "kept", spellings: Mapping[Any, str] = NOTHING
) -> Op:
    return Op(
        name=name,
        kind="pointwise",
        modules=modules,
        signature="input, p=0.5, training=True, inplace=False",
        channels=elementwise.pointwise,
        memory="view",
        sign=sign,
        shape=output_shapes.same,
        by_mode=True,
        spellings=spellings,
        example=lambda: (randn(2, 8, *[5] * axes), 0.5, False),
    )


ROWS = (
    _activation("relu", nn.ReLU, sign="never_negative"),
    _activation("relu6", nn.ReLU6, sign="never_negative"),
    _activation("sigmoid", nn.Sigmoid, sign="never_negative"),
    _activation("hardsigmoid", nn.Hardsigmoid, sign="never_negative"),
    _activation("softplus", nn.Softplus, signature="input, beta=1, threshold=20", sign="never_negative"),
    _activation("abs", sign="never_negative", spellings=same_order("absolute")),
    _activation("square", sign="never_negative"),
    _activation("exp", sign="never_negative"),
    _activation("silu", nn.SiLU),
    _activation("gelu", nn.GELU, signature="input, approximate='none'"),
    _activation("mish", nn.Mish),
    _activation("hardswish", nn.Hardswish),
    _activation("tanh", nn.Tanh),
    _activation("elu", nn.ELU, signature="input, alpha=1.0"),
    _activation("leaky_relu", nn.LeakyReLU, signature="input, negative_slope=0.01"),
    Op(
        name="prelu",
        kind="pointwise",
        modules=(nn.PReLU,),
        signature="input, weight",
        channels=weighted.prelu,
        catch="call",
        follows=("num_parameters",),
        example=lambda: (randn(2, 8), rand(8)),
    ),
    _arithmetic("add", _two, sign="kept"),
    _arithmetic("mul", _two, sign="kept", spellings=same_order("multiply")),
    _arithmetic("sub", _two, spellings=same_order("subtract")),
    _arithmetic("div", lambda: (randn(2, 8), 2.0), spellings=same_order("divide", "true_divide")),
    _arithmetic("maximum", _two, sign="kept"),
    _arithmetic("minimum", _two, sign="kept"),
    Op(
        name="nn.Identity",
        kind="pointwise",
        modules=(nn.Identity,),
        signature="input",
        channels=elementwise.pointwise,
        sign="kept",
        memory="view",
        shape=output_shapes.same,
        example=lambda: (randn(2, 8),),
    ),
    _dropout("dropout", nn.Dropout),
    _dropout("dropout1d", nn.Dropout1d, axes=1),
    _dropout("dropout2d", nn.Dropout2d, spellings=same_order("feature_dropout")),
    _dropout("dropout3d", nn.Dropout3d, axes=3),
    # What they drop takes a negative value.
    _dropout("alpha_dropout", nn.AlphaDropout, sign="any"),
    _dropout("feature_alpha_dropout", nn.FeatureAlphaDropout, sign="any"),
)
