"""A user's own rules: what a module, function or operator that nce-fx does not know does to channels.

A rule takes the arguments of what it stands for (a module first, for a module) and does to channels what that does, in
operations that nce-fx knows: nothing is computed, only channels are followed. It is written once, and becomes a row of
the table of operations (`nce_fx.ops.Op`) that is found on the class, function or operator itself.

    @nce_fx.channel_rule(lambda module, x: x * module.scale)      # a scale for each channel
    class MyScale(nn.Module): ...

    nce_fx.channel_rule(lambda x, weight: F.linear(x, weight))(torch.ops.mylib.matmul_int8)
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch._library.custom_ops import CustomOpDef

from nce_fx.errors import InputError
from nce_fx.ops.op import NO_FOLD, NO_WEIGHT, NO_WORK, OWN_ROW, Absent, Op, WeightLayout
from nce_fx.ops.rules.affine import FoldRule
from nce_fx.ops.work import Rule

_Target = TypeVar("_Target")
_NO_EXAMPLE = Absent("a rule alone brings none")


def channel_rule(
    rule: Callable[..., Any],
    *,
    macs: Rule | Absent = NO_WORK,
    quantize: WeightLayout | Absent = NO_WEIGHT,
    fold: FoldRule | Absent = NO_FOLD,
) -> Callable[[_Target], _Target]:
    """Return a decorator that gives a module class, a function or a registered operator its channel rule.

    A module with a rule becomes one node of the graph, and so does a function: neither is traced into. A subclass
    keeps the rule as long as it keeps ``forward``.

    Args:
        rule: takes the arguments of what it stands for, and returns what that returns.
        macs: how it multiplies and accumulates, such as ``nce_fx.ops.work.rows_times_weight("mixed", -3)``.
        quantize: how the weight lies, ``WeightLayout(out_axis=0)``: the second argument of a function or operator, the
            parameter ``weight`` of a module. It needs ``macs``, too.
        fold: of a module, how its weight takes in a norm behind it, ``nce_fx.ops.rules.affine.rows``; its ``bias``,
            which may be ``None``, is added to the channels and takes the shift. It needs ``quantize``, too.

    Raises:
        InputError: what is decorated is none of these, or is PyTorch's own.
    """

    def mark(target: Any) -> Any:
        known = isinstance(target, _OPERATORS) or (isinstance(target, type) and issubclass(target, nn.Module))
        if not known and not inspect.isfunction(target):
            raise InputError(f"channel_rule: {target!r} is no module class, Python function or torch.ops operator")
        found = getattr(target, "_opoverload", target)
        if known and _is_of_torch(found):
            raise InputError(
                f"channel_rule: {found} is PyTorch's own, and nothing is written on that: "
                "give it a row, nce_fx.trace(model, inputs, ops=OPS.adding(...)) (docs/channels.md)"
            )
        row = Op(
            name=f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', found)}",
            kind="custom",
            signature="*",
            channels=rule,
            catch="rule",
            macs=macs,
            quantize=quantize,
            fold=fold,
            example=_NO_EXAMPLE,
        )
        if not known:
            return _node_of_its_own(target, row)
        setattr(found, OWN_ROW, row)
        return target

    return mark


_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket, CustomOpDef)


def _is_of_torch(target: Any) -> bool:
    if isinstance(target, type):
        return target.__module__.partition(".")[0] == "torch"
    packet = getattr(target, "overloadpacket", target)
    return str(packet._qualified_op_name).partition("::")[0] in ("aten", "prim", "prims")


def _node_of_its_own(function: Callable[..., Any], row: Op) -> Callable[..., Any]:
    """Return the function, which on being traced becomes one node instead of being traced into."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        traced = next((a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy)), None)
        if traced is not None:
            return traced.tracer.create_proxy("call_function", call, args, kwargs)
        return function(*args, **kwargs)

    setattr(call, OWN_ROW, row)
    return call


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
