"""Fourier transforms, and complex numbers made of pairs of real ones: channels ride along other axes."""

from typing import Any

from nce_fx.ids.labels import NEUTRAL, Label, constant, resized
from nce_fx.ids.value import ChannelTensor
from nce_fx.ops.rules.calls import alike_along, opaque
from nce_fx.ops.rules.elementwise import pointwise


def transform(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``torch.fft.rfft2(x)`` over axes without channels, whose last may get another length."""
    value, axes = args[0], [axis % args[0].dim() for axis in args[1]]
    run, name = value.run, func._schema.name.removeprefix("aten::_fft_")
    shape, kind = list(value.shape), value.dtype.to_complex()
    if name == "r2c" and args[3]:
        shape[axes[-1]] = shape[axes[-1]] // 2 + 1
    elif name == "c2r":
        shape[axes[-1]], kind = args[3], value.dtype.to_real()
    labels = []
    for label in value.labels:
        for axis in axes:
            if axis in run.channel_axes(label) or (run.carries(label, axis) and not run.varies(label, axis)):
                return opaque(func, args, kwargs, "its channels are mixed by a Fourier transform (fft)")
            label = alike_along(run, label, axis)
        labels.append(resized(label, shape))
    return ChannelTensor(run, shape, tuple(labels), kind)


def joined(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``torch.complex(x, y)`` and ``torch.polar``: those of both, which meet."""
    result = pointwise(func, args, kwargs)
    return ChannelTensor(result.run, result.shape, result.labels, result.dtype.to_complex())


def magnitude(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``x.abs()`` and ``x.angle()``: the same, real where they were complex."""
    result = pointwise(func, args, kwargs)
    kind = result.dtype.to_real() if result.dtype.is_complex else result.dtype
    return ChannelTensor(result.run, result.shape, result.labels, kind)


def as_pairs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``torch.view_as_real(z)``: those of ``z``, each with two numbers along a new last axis."""
    value = args[0]
    shape = (*value.shape, 2)
    labels = tuple(label.unsqueeze(-1).expand(shape) for label in value.labels)
    return ChannelTensor(value.run, shape, labels, value.dtype.to_real())


def from_pairs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``torch.view_as_complex(x)``: the two that a pair is of are copied as one."""
    value = args[0]
    run, last = value.run, value.dim() - 1
    # Of a parameter, one label runs along the pairs: whose length is two.
    whole = [label for label in value.labels if len(value.labels) == 1 or not run.varies(label, last)]
    labels: list[Label] = []
    for label in whole or [constant(NEUTRAL, value.shape)]:
        labels.append(alike_along(run, label, last).select(last, 0))
    return ChannelTensor(run, value.shape[:-1], tuple(labels), value.dtype.to_complex())
