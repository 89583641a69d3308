"""From a call to its rule: the table's row says what an operation does to channels, and where it is caught.

Most operations are caught as the ATen ops that they come apart into; those that own weights, and those whose meaning
is lost below them, as they are called. What PyTorch tags as elementwise needs no row, and what nobody knows is pinned.
"""

from typing import Any

import torch
from torch import nn

from nce_fx.ids.rule_interface import NotFollowedError, RuleInterface
from nce_fx.ids.value import ChannelLayer, ChannelTensor
from nce_fx.ops import Absent, Op, Ops
from nce_fx.ops.rules import elementwise, movement
from nce_fx.ops.rules.calls import opaque
from nce_fx.ops.table import argument_names


def called(ops: Ops, run: RuleInterface, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply the rule of a function that is caught as it is called; let PyTorch take any other apart."""
    op = ops.spellings.get(func)
    if op is None or op.catch != "call" or isinstance(op.channels, Absent):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    run.computes()
    if ops.signatures[func] != op.signature:
        args, kwargs = (), ops.arguments(func, args, kwargs)
    return run.apply(op.channels, args, kwargs)


def layer_rule(op: Op, module: nn.Module) -> Any:
    """Return the rule of a plain layer from that of its function: its other arguments are the module's attributes.

    ``None`` where the module has to be run: its function is not caught as it is called, or takes what it does not have.
    """
    if isinstance(op.channels, Absent):
        return None
    if op.kind == "pointwise" and op.catch == "aten":
        return elementwise.passing_layer if op.memory == "view" else elementwise.activation_layer
    names = [name for name in argument_names(op.signature)[1:] if name not in op.not_held]
    held = {name: op.attributes.get(name, name) for name in names}
    if op.catch != "call" or not all(hasattr(module, attribute) for attribute in held.values()):
        return None
    rule = op.channels

    def apply(layer: ChannelLayer, input: ChannelTensor) -> Any:
        layer.run.computes()
        return rule(input, **{name: layer.parameter(attribute) for name, attribute in held.items()})

    return apply


def dispatched(ops: Ops, run: RuleInterface, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply the rule of an ATen op; one without a rule pins what it touches."""
    in_place = func._schema.name.endswith("_") and not func._schema.name.endswith("__")
    if torch.Tag.inplace_view in func.tags:
        name = func._schema.name.removeprefix("aten::")
        raise NotFollowedError(f"{name} changes the axes of a tensor in place: write it without the underscore")
    op = ops.of_call(func)
    if op is not None and op.catch == "rule" and not isinstance(op.channels, Absent):
        run.computes()
        return run.apply(op.channels, args, kwargs, users=True)
    rule: Any = None if op is None or op.catch != "aten" or isinstance(op.channels, Absent) else op.channels
    if rule is None:
        rule = elementwise.pointwise if _is_pointwise(func) else opaque
    if rule not in movement.MOVEMENT:
        run.computes()
    if in_place and not isinstance(args[0], ChannelTensor):
        return opaque(func, args, kwargs, "it is written into a tensor that the graph holds as a constant")
    result = run.apply(rule, (func, args, kwargs), {})
    if in_place:
        target: ChannelTensor = args[0]
        if result.labels is not target.labels:
            run.overwritten(target)
            target.labels = result.labels
        if target.path is None:
            target.exact, target.elementwise = result.exact, result.elementwise
        return target
    return result


def _is_pointwise(func: Any) -> bool:
    """Whether PyTorch tags an op as elementwise, its form that works in place or the other; the tags have gaps."""
    name = func._schema.name.removeprefix("aten::").removesuffix("_")
    other = getattr(torch.ops.aten, name, None) if func._schema.is_mutable else None
    forms = (func, *(getattr(other, overload) for overload in (other.overloads() if other is not None else ())))
    return any(torch.Tag.pointwise in form.tags for form in forms) or name in elementwise.UNTAGGED
