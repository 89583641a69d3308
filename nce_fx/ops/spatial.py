"""Pooling, resampling and padding: other places, the same channels."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn, rand, randn

from nce_fx.ops import output_shapes
from nce_fx.ops.op import Absent, Op, Sign, family, same_order
from nce_fx.ops.rules import mixing, movement


def _image(axes: int, *rest: Any) -> tuple[Any, ...]:
    return (randn(2, 8, *[4] * axes), *rest)


def _pool(
    name: str, axes: int, *rest: Any, modules: tuple[type[nn.Module], ...] = (), sign: Sign = "kept", **also: Any
) -> Op:
    example: Callable[[], tuple[Any, ...]] = partial(_image, axes, *rest)
    return Op(
        name=name,
        kind="spatial",
        modules=modules,
        signature="input, *size",
        channels=mixing.spatial(axes),
        sign=sign,
        example=example,
        **also,
    )


_calls_pad = family(kind="spatial", signature="input", channels=Absent("it calls pad"), sign="kept")
_edge_pad = family(kind="spatial", signature="input, padding", channels=movement.edge_pad, sign="kept")

ROWS = (
    _pool("max_pool1d", 1, [2], modules=(nn.MaxPool1d,), spellings=same_order("max_pool1d_with_indices")),
    _pool("max_pool2d", 2, [2, 2], modules=(nn.MaxPool2d,), spellings=same_order("max_pool2d_with_indices")),
    _pool("max_pool3d", 3, [2, 2, 2], modules=(nn.MaxPool3d,), spellings=same_order("max_pool3d_with_indices")),
    _pool("avg_pool1d", 1, [2], modules=(nn.AvgPool1d,)),
    _pool("avg_pool2d", 2, [2, 2], modules=(nn.AvgPool2d,)),
    _pool("avg_pool3d", 3, [2, 2, 2], modules=(nn.AvgPool3d,)),
    *(
        _pool(
            f"adaptive_avg_pool{axes}d",
            axes,
            [2] * axes,
            modules=(module,),
            spellings=same_order(f"_adaptive_avg_pool{axes}d") if axes > 1 else {},
            # Without values PyTorch takes the mean in Python, for which it imports its compiler: over a second.
            shape=output_shapes.adaptive(axes),
        )
        for axes, module in ((1, nn.AdaptiveAvgPool1d), (2, nn.AdaptiveAvgPool2d), (3, nn.AdaptiveAvgPool3d))
    ),
    _pool("adaptive_max_pool1d", 1, [2], modules=(nn.AdaptiveMaxPool1d,)),
    _pool("adaptive_max_pool2d", 2, [2, 2], modules=(nn.AdaptiveMaxPool2d,)),
    _pool("adaptive_max_pool3d", 3, [2, 2, 2], modules=(nn.AdaptiveMaxPool3d,)),
    # Bicubic resampling goes below its smallest value.
    _pool("interpolate", 2, 8, modules=(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), sign="any"),
    Op(
        name="pad",
        kind="spatial",
        signature="input, pad, mode='constant', value=None",
        channels=movement.pad,
        catch="call",
        example=lambda: (randn(2, 8, 4, 4), (1, 1, 0, 2)),
    ),
    *(
        _calls_pad(f"nn.{kind.__name__}", partial(_image, axes), kind)
        for axes, kinds in (
            (1, (nn.ZeroPad1d, nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d)),
            (2, (nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)),
            (3, (nn.ZeroPad3d, nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad3d)),
        )
        for kind in kinds
    ),
    *(
        _pool(f"upsample_nearest{axes}d", axes, [8] * axes, spellings=same_order(f"_upsample_nearest_exact{axes}d"))
        for axes in (1, 2, 3)
    ),
    _pool("upsample_linear1d", 1, [8], False),
    _pool("upsample_bilinear2d", 2, [8, 8], False, spellings=same_order("_upsample_bilinear2d_aa")),
    _pool("upsample_trilinear3d", 3, [8, 8, 8], False),
    _pool("upsample_bicubic2d", 2, [8, 8], False, sign="any", spellings=same_order("_upsample_bicubic2d_aa")),
    Op(
        name="grid_sampler",
        kind="spatial",
        signature="input, grid, interpolation_mode=0, padding_mode=0, align_corners=False",
        channels=mixing.sampled,
        spellings=same_order("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler"),
        # Bicubic sampling goes below its smallest value.
        example=lambda: (randn(2, 8, 4, 4), rand(2, 4, 4, 2) - 0.5, 0, 0, False),
    ),
    Op(
        name="affine_grid_generator",
        kind="spatial",
        signature="theta, size, align_corners=False",
        channels=mixing.warp,
        example=Absent("a layer makes matrices of six or twelve entries for it"),
    ),
    *(
        Op(
            name=f"max_unpool{axes}d",
            kind="spatial",
            signature="input, indices, output_size",
            channels=mixing.unpooled,
            sign="kept",
            example=Absent("a layer gives it places that a pooling made"),
        )
        for axes in (2, 3)
    ),
    Op(
        name="constant_pad_nd",
        kind="spatial",
        signature="input, pad, value=0",
        channels=movement.constant_pad,
        example=partial(_image, 2, [1, 1]),
    ),
    *(
        _edge_pad(f"{kind}_pad{axes}d", partial(_image, axes, [1, 1] * axes))
        for kind in ("reflection", "replication")
        for axes in (1, 2, 3)
    ),
)
