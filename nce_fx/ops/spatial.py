"""Pooling, resampling and padding: other places, the same channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn, randn

from nce_fx.ops.op import Op, Sign, same


def _image(axes: int, *rest: Any) -> tuple[Any, ...]:
    return (randn(2, 8, *[4] * axes), *rest)


def _pool(
    name: str, axes: int, *rest: Any, modules: tuple[type[nn.Module], ...], sign: Sign = "kept", **also: Any
) -> Op:
    example: Callable[[], tuple[Any, ...]] = partial(_image, axes, *rest)
    return Op(name=name, kind="spatial", modules=modules, signature="input, *size", sign=sign, example=example, **also)


ROWS = (
    _pool("max_pool1d", 1, [2], modules=(nn.MaxPool1d,), spellings=same("max_pool1d_with_indices")),
    _pool("max_pool2d", 2, [2, 2], modules=(nn.MaxPool2d,), spellings=same("max_pool2d_with_indices")),
    _pool("max_pool3d", 3, [2, 2, 2], modules=(nn.MaxPool3d,), spellings=same("max_pool3d_with_indices")),
    _pool("avg_pool1d", 1, [2], modules=(nn.AvgPool1d,)),
    _pool("avg_pool2d", 2, [2, 2], modules=(nn.AvgPool2d,)),
    _pool("avg_pool3d", 3, [2, 2, 2], modules=(nn.AvgPool3d,)),
    _pool("adaptive_avg_pool1d", 1, [2], modules=(nn.AdaptiveAvgPool1d,)),
    _pool("adaptive_avg_pool2d", 2, [2, 2], modules=(nn.AdaptiveAvgPool2d,), spellings=same("_adaptive_avg_pool2d")),
    _pool("adaptive_avg_pool3d", 3, [2, 2, 2], modules=(nn.AdaptiveAvgPool3d,), spellings=same("_adaptive_avg_pool3d")),
    _pool("adaptive_max_pool1d", 1, [2], modules=(nn.AdaptiveMaxPool1d,)),
    _pool("adaptive_max_pool2d", 2, [2, 2], modules=(nn.AdaptiveMaxPool2d,)),
    _pool("adaptive_max_pool3d", 3, [2, 2, 2], modules=(nn.AdaptiveMaxPool3d,)),
    # Bicubic resampling goes below its smallest value.
    _pool("interpolate", 2, 8, modules=(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), sign="any"),
    Op(
        name="pad",
        kind="spatial",
        signature="input, pad, mode='constant', value=None",
        example=lambda: (randn(2, 8, 4, 4), (1, 1, 0, 2)),
    ),
    *(
        Op(
            name=f"nn.{kind.__name__}",
            kind="spatial",
            modules=(kind,),
            signature="input",
            sign="kept",
            example=partial(_image, axes),
        )
        for axes, kinds in (
            (1, (nn.ZeroPad1d, nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d)),
            (2, (nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)),
            (3, (nn.ZeroPad3d, nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad3d)),
        )
        for kind in kinds
    ),
)
