"""A user's own rules: what a module, function or operator that nce-fx does not know does to channels.

A rule takes the arguments of what it stands for (a module first, for a module) and does to channels what that does, in
operations that nce-fx knows: nothing is computed, only channels are followed. It is written once; the analysis, the
check of every resize, and the command line all find it on the class, function or operator itself.

    @nce_fx.channel_rule(lambda module, x: x * module.scale)      # a scale for each channel
    class MyScale(nn.Module): ...

    nce_fx.channel_rule(lambda x, weight: F.linear(x, weight))(torch.ops.mylib.matmul_int8)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch._library.custom_ops import CustomOpDef

from nce_fx.errors import InputError

_RULE = "__channel_rule__"
_Target = TypeVar("_Target")


def channel_rule(rule: Callable[..., Any]) -> Callable[[_Target], _Target]:
    """Return a decorator that gives a module class, a function or a registered operator its channel rule.

    A module with a rule becomes one node of the graph, and so does a function: neither is traced into. A subclass
    keeps the rule as long as it keeps ``forward``.

    Raises:
        InputError: what is decorated is none of these.
    """

    def mark(target: Any) -> Any:
        if isinstance(target, type) and issubclass(target, nn.Module):
            setattr(target, _RULE, rule)
            return target
        if isinstance(target, _OPERATORS):
            operator = getattr(target, "_opoverload", target)
            setattr(operator, _RULE, rule)
            return target
        if not inspect.isfunction(target):
            raise InputError(f"channel_rule: {target!r} is no module class, Python function or torch.ops operator")
        return _node_of_its_own(target, rule)

    return mark


_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket, CustomOpDef)


def _node_of_its_own(function: Callable[..., Any], rule: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, which on being traced becomes one node instead of being traced into."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        traced = next((a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy)), None)
        if traced is not None:
            return traced.tracer.create_proxy("call_function", call, args, kwargs)
        return function(*args, **kwargs)

    setattr(call, _RULE, rule)
    return call


def rule_of(target: Any) -> Callable[..., Any] | None:
    """Return the rule of a function or operator that a graph calls."""
    found: Callable[..., Any] | None = getattr(target, _RULE, None)
    if found is None and isinstance(target, torch._ops.OpOverload):
        found = getattr(target.overloadpacket, _RULE, None)
    return found


def rule_of_module(kind: type[nn.Module]) -> Callable[..., Any] | None:
    """Return the rule of a module's class, its own or that of the class whose ``forward`` it has."""
    for owner in kind.__mro__:
        if _RULE in vars(owner):
            return vars(owner)[_RULE] if kind.forward is getattr(owner, "forward", None) else None
    return None


def together(x: Any, axis: int) -> Any:
    """Say in a rule that the channels along an axis are only ever copied all at once; return ``x``."""
    for label in x.labels:
        x.run.block(label, axis % x.dim())
    return x


def pin(x: Any, reason: str) -> Any:
    """Say in a rule that the channels of ``x`` keep their number, and why; return ``x``."""
    for label in x.labels:
        x.run.pin(x.run.ids(label), reason)
    return x


def follows(x: Any, name: str, value: Any) -> None:
    """Say in a module's rule that an attribute of the module has this value at the widths of ``x``."""
    x.run.attribute(None, name, value)


def missing(target: Any) -> str:
    """Return in words that something has no rule, with the entry to write."""
    if isinstance(target, nn.Module):
        name = type(target).__name__
        entry = f"@nce_fx.channel_rule(lambda module, {_arguments(type(target).forward, 1)}: ...) above class {name}"
    elif isinstance(target, torch._ops.OpOverload):
        packet = target._schema.name.replace("::", ".")
        names = ", ".join(argument.name for argument in target._schema.arguments)
        name, entry = packet.removeprefix("aten."), f"nce_fx.channel_rule(lambda {names}: ...)(torch.ops.{packet})"
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
