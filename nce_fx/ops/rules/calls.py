"""What rules share: finding the run among arguments, and the rule of an op that nobody knows, with how to add one."""

import inspect
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from nce_fx.ids.labels import FIXED, Label, constant, core, varies
from nce_fx.ids.rule_interface import RuleInterface
from nce_fx.ids.value import ChannelTensor, activation, channel_tensors


def label_for(value: ChannelTensor, axis: int) -> Label:
    """Return the label of an activation; of a parameter, ``linear.weight`` say, the one that varies along an axis."""
    labels = value.labels
    if len(labels) == 1:
        return labels[0]
    axis %= value.dim()
    return next((label for label in labels if value.run.varies(label, axis)), labels[0])


def alike_along(run: RuleInterface, label: Label, axis: int) -> Label:
    """Return a label whose entries along an axis are tied to the first: the places of ``F.max_pool2d(x, 2)``."""
    if not run.varies(label, axis):
        return label
    first = label.narrow(axis, 0, 1).expand(label.shape)
    run.tie(label, first)
    return first


def on_meta(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what an op gives on tensors without values, for its shapes: ``on_meta(aten.avg_pool2d, (x, 2), {})``."""

    def strip(value: Any) -> Any:
        if isinstance(value, ChannelTensor):
            return torch.empty(value.shape, dtype=value.dtype, device="meta")
        if isinstance(value, torch.Tensor):
            return value.to("meta")
        return value

    kwargs = {key: value for key, value in kwargs.items() if key != "device"}
    return func(*tree_map(strip, args), **tree_map(strip, kwargs))


def opaque(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str | None = None) -> Any:
    """Pin every channel that reaches an op nobody knows, and return fixed values of the shapes that it makes.

    Args:
        func: such as ``aten.cumsum.default``.
        args: of the call.
        kwargs: of the call.
        reason: why they are pinned; by default that it has no rule, with the entry to write.
    """
    values = channel_tensors([args, list(kwargs.values())])
    run = values[0].run
    why = reason or missing(func)
    for value in values:
        for label in value.labels:
            run.pin(run.ids(core(label)), why)
    result = on_meta(func, args, kwargs)
    weights = values if all(value.is_parameter for value in values) else []

    def wrap(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            like = next((each for each in weights if each.shape == value.shape), None)
            if like is not None:
                # A weight that is computed in a way of its own still makes the channels of its parameter, all pinned.
                made = (
                    label if label.dim() and varies(label, 0) else constant(FIXED, label.shape) for label in like.labels
                )
                return ChannelTensor(run, like.shape, tuple(made), value.dtype)
            return activation(run, constant(FIXED, value.shape), value.dtype)
        return value

    return tree_map(wrap, result)


def missing(target: Any) -> str:
    """Return in words that something has no rule, with the entry to write: ``@nce_fx.channel_rule(...)``."""
    if isinstance(target, nn.Module):
        name = type(target).__name__
        entry = f"@nce_fx.channel_rule(lambda module, {_arguments(type(target).forward, 1)}: ...) above class {name}"
    elif isinstance(target, torch._ops.OpOverload):
        packet = target._schema.name.replace("::", ".")
        names = ", ".join(argument.name for argument in target._schema.arguments)
        name, entry = packet.removeprefix("aten."), f"nce_fx.channel_rule(lambda {names}: ...)(torch.ops.{packet})"
        if name != packet:
            entry = f"a row of the table of operations, nce_fx.ops.Op(name={name!r}, ...)"
    else:
        name = getattr(target, "__name__", str(target))
        entry = f"@nce_fx.channel_rule(lambda {_arguments(target, 0)}: ...) above def {name}"
    return f"{name} has no channel rule, and none is guessed: give it one by {entry} (docs/channels.md)"


def _arguments(function: Any, skip: int) -> str:
    try:
        names = list(inspect.signature(function).parameters)[skip:]
    except (TypeError, ValueError):
        names = ["x"]
    return ", ".join(names)
