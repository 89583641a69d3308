"""What rules share: finding the run among arguments, and the rule of an op that nobody knows."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from nce_fx.custom import missing
from nce_fx.ids.labels import FIXED, Label, constant, core
from nce_fx.ids.value import ChannelTensor, activation, channel_tensors


def label_for(value: ChannelTensor, axis: int) -> Label:
    """Return the one label of an activation, or of a parameter the label that varies along an axis."""
    labels = value.labels
    if len(labels) == 1:
        return labels[0]
    axis %= value.dim()
    return next((label for label in labels if value.run.varies(label, axis)), labels[0])


def on_meta(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an op on tensors without values, for the shapes of what it returns."""

    def strip(value: Any) -> Any:
        if isinstance(value, ChannelTensor):
            return torch.empty(value.shape, dtype=value.dtype, device="meta")
        if isinstance(value, torch.Tensor):
            return value.to("meta")
        return value

    kwargs = {key: value for key, value in kwargs.items() if key != "device"}
    return func(*tree_map(strip, args), **tree_map(strip, kwargs))


def opaque(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str | None = None) -> Any:
    """Pin every channel that reaches an op nobody knows; what comes out is fixed."""
    values = channel_tensors([args, list(kwargs.values())])
    run = values[0].run
    why = reason or missing(func)
    for value in values:
        for label in value.labels:
            run.pin(run.ids(core(label)), why)
    result = on_meta(func, args, kwargs)

    def wrap(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return activation(run, constant(FIXED, value.shape), value.dtype)
        return value

    return tree_map(wrap, result)
