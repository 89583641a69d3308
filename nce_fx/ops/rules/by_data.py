"""Elements that are picked, or written to, at places that data decide: channels ride along on the other axes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from nce_fx.ids.labels import compress, core
from nce_fx.ids.value import ChannelTensor, activation, channel_tensors
from nce_fx.ops.rules.calls import opaque
from nce_fx.ops.rules.elementwise import meet


def gathered(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x.gather(1, index)``: as they were where they run along other axes than this one."""
    value, dim, index = args[0], args[1], args[2]
    if not isinstance(value, ChannelTensor) or value.is_parameter:
        return opaque(func, args, kwargs, "a weight is picked from by values")
    dim %= value.dim()
    whole = bool(value.run.decide("gathers whole", (value.labels[0],), partial(_fits, value, dim, index), dim))
    if not whole or any(value.run.carries(label, dim) for label in value.labels):
        return opaque(func, args, kwargs, "channels are picked by values")
    for axis, size in enumerate(value.shape):
        if axis != dim and index.shape[axis] != size:
            index = value.run.repeated(value, index, axis)
    labels = tuple(label.narrow(dim, 0, 1).expand(tuple(index.shape)) for label in value.labels)
    return ChannelTensor(value.run, labels[0].shape, labels, value.dtype)


def _fits(value: ChannelTensor, dim: int, index: torch.Tensor) -> bool:
    """Whether an index says for each element along the other axes what is picked, none left out."""
    return all(index.shape[k] == size for k, size in enumerate(value.shape) if k != dim)


def scattered(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x.scatter(1, index, y)``: those of both, where they run along other axes than this."""
    value, dim, index, source = args[0], args[1], args[2], args[3] if len(args) > 3 else None
    both = channel_tensors([value, source])
    axis = dim % len(value.shape)
    whole = index.dim() == 1 or _fits(value, axis, index)
    same = not isinstance(source, ChannelTensor) or index.dim() == 1 or source.shape == index.shape
    if not isinstance(value, ChannelTensor) or not whole or not same or any(each.is_parameter for each in both):
        return opaque(func, args, kwargs, "channels are written to by values")
    if any(value.run.carries(label, axis) for each in both for label in each.labels):
        return opaque(func, args, kwargs, "channels are written to by values")
    if not isinstance(source, ChannelTensor):
        return ChannelTensor(value.run, value.shape, value.labels, value.dtype)
    line = ChannelTensor(
        value.run,
        value.shape,
        tuple(label.narrow(axis, 0, 1).expand(value.shape) for label in source.labels),
        value.dtype,
    )
    return meet(value.run, value, line)


def picked_by_data(func: Any, value: ChannelTensor, indices: Sequence[Any]) -> Any:
    """Return the channels of ``x[rows, x.argmax(1)]``: as they were where they run along other axes than these."""
    run, places = value.run, [None if each is None else _places(each) for each in indices]
    given = [axis for axis, each in enumerate(places) if each is not None]
    masks = any(each.dtype in (torch.bool, torch.uint8) for each in indices if each is not None)
    channels = any(run.channel_axes(label) for each in channel_tensors(indices) for label in each.labels)
    labels = [label for label in value.labels if not any(run.carries(label, axis) for axis in given)]
    if masks or channels or (not value.is_parameter and not labels) or len(labels) != 1:
        return opaque(func, (value, indices), {}, "channels are picked by values")
    for label in value.labels:
        if label is not labels[0]:
            run.pin(run.ids(core(label)), "its rows are picked by values")
    return activation(run, compress(func(labels[0], places)), value.dtype)


def _places(index: torch.Tensor) -> torch.Tensor:
    """Return an index of the same shape that any axis has."""
    return torch.zeros(tuple(index.shape), dtype=torch.int64)
