"""What each op does to channels: two literal tables.

``FUNCTION_RULES`` has the ops that own weights, and those whose meaning is lost below them; a rule takes the very
arguments of the function. ``ATEN_RULES`` has everything else, by the name of the ATen op; a rule takes
``(func, args, kwargs)``. Data movement has no rules of its own: the op runs on the labels.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from nce_fx.custom import rule_of
from nce_fx.ops import OPS
from nce_fx.passes.analysis.channels.rules import contraction, elementwise, mixing, movement, weighted
from nce_fx.passes.analysis.channels.rules.calls import opaque, run_of
from nce_fx.passes.analysis.channels.value import ChannelTensor
from nce_fx.passes.analysis.channels.vocabulary import NotFollowedError
from nce_fx.quantizers.base import Quantizer
from nce_fx.tracing.modes import ByMode

_CALLS: dict[str, Any] = {
    "linear": weighted.linear,
    "bilinear": weighted.bilinear,
    **{f"conv{n}d": weighted.convolution(n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": weighted.transposed_convolution(n) for n in (1, 2, 3)},
    "convolution": weighted.any_convolution,
    "batch_norm": weighted.batch_norm,
    "instance_norm": weighted.batch_norm,
    "layer_norm": weighted.layer_norm,
    "rms_norm": weighted.rms_norm,
    "group_norm": weighted.group_norm,
    "local_response_norm": mixing.local_response_norm,
    "prelu": weighted.prelu,
    "embedding": weighted.embedding,
    "scaled_dot_product_attention": contraction.attention,
    "normalize": mixing.normalize,
    "pad": movement.pad,
    "im2col": movement.im2col,
    "col2im": movement.col2im,
    "einsum": contraction.einsum,
}
"""Operations that are caught as they are called, in every spelling."""


def _in_own_order(spelling: Any, rule: Any) -> Any:
    """Return a rule that takes its arguments in the order of a spelling."""
    if OPS.signatures[spelling] == OPS.spellings[spelling].signature:
        return rule

    @functools.wraps(rule)
    def reordered(*args: Any, **kwargs: Any) -> Any:
        return rule(**OPS.arguments(spelling, args, kwargs))

    return reordered


FUNCTION_RULES: dict[Any, Any] = {
    **{spelling: _in_own_order(spelling, rule) for spelling, rule in OPS.by_spelling(_CALLS).items()},
    torch.Tensor.expand: movement.expand,
}

MODULE_RULES: dict[type[nn.Module], Any] = {
    nn.InstanceNorm1d: weighted.instance_norm_module,
    nn.InstanceNorm2d: weighted.instance_norm_module,
    nn.InstanceNorm3d: weighted.instance_norm_module,
    nn.LSTM: weighted.recurrent,
    nn.GRU: weighted.recurrent,
    nn.RNN: weighted.recurrent,
    Quantizer: elementwise.quantizer,
    ByMode: elementwise.by_mode,
}
"""Modules that look at their own sizes before they call a function, and our own."""


_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.Hardsigmoid)

LAYER_RULES: dict[type[nn.Module], Any] = {
    nn.Linear: weighted.linear_layer,
    nn.Conv1d: weighted.convolution_layer(1),
    nn.Conv2d: weighted.convolution_layer(2),
    nn.Conv3d: weighted.convolution_layer(3),
    nn.BatchNorm1d: weighted.batch_norm_layer,
    nn.BatchNorm2d: weighted.batch_norm_layer,
    nn.BatchNorm3d: weighted.batch_norm_layer,
    **dict.fromkeys((*_ACTIVATIONS, nn.Sigmoid, nn.Tanh), elementwise.activation_layer),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d), elementwise.passing_layer),
}
"""PyTorch's own layers, which need not be run to know what function they are."""


def layer_rule(module: nn.Module) -> Any:
    """Return the rule of a module that is one of PyTorch's own layers and nothing more, else ``None``."""
    plain = not module._forward_pre_hooks and not module._forward_hooks and "forward" not in module.__dict__
    return LAYER_RULES.get(type(module)) if plain else None


def module_rule(module: nn.Module) -> Any:
    """Return the rule of a module, or ``None`` for one whose forward is simply run."""
    return next((rule for kind, rule in MODULE_RULES.items() if isinstance(module, kind)), None)


ATEN_RULES: dict[str, Any] = {
    **movement.RULES,
    **mixing.RULES,
    **contraction.RULES,
    "_weight_norm": elementwise.weight_norm,
}


def _is_pointwise(func: Any, name: str) -> bool:
    """Whether PyTorch tags an op as elementwise, its form that works in place or the other; the tags have gaps."""
    other = getattr(torch.ops.aten, name, None) if func._schema.is_mutable else None
    forms = (func, *(getattr(other, overload) for overload in (other.overloads() if other is not None else ())))
    return any(torch.Tag.pointwise in form.tags for form in forms) or name in elementwise.UNTAGGED


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply the rule of an ATen op; one without a rule pins what it touches."""
    name = func._schema.name.removeprefix("aten::")
    in_place = name.endswith("_") and not name.endswith("__")
    if torch.Tag.inplace_view in func.tags:
        raise NotFollowedError(f"{name} changes the axes of a tensor in place: write it without the underscore")
    name = name.removesuffix("_") if in_place else name
    rule = ATEN_RULES.get(name)
    own = rule_of(func) if rule is None else None
    run = run_of([args, list(kwargs.values())])
    if own is not None:
        run.computes()
        return run.apply(own, args, kwargs, users=True)
    if rule is None:
        rule = elementwise.pointwise if _is_pointwise(func, name) else opaque
    if rule not in movement.MOVEMENT:
        run.computes()
    if in_place and not isinstance(args[0], ChannelTensor):
        return opaque(func, args, kwargs, "it is written into a tensor that the graph holds as a constant")
    result = run.apply(rule, (func, args, kwargs), {})
    if in_place:
        target: ChannelTensor = args[0]
        if result.labels is not target.labels:
            target.run.overwritten(target)
            target.labels = result.labels
        return target
    return result
