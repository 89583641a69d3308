"""What each op does to channels: two literal tables.

``FUNCTION_RULES`` has the ops that own weights, and those whose meaning is lost below them; a rule takes the very
arguments of the function. ``ATEN_RULES`` has everything else, by the name of the ATen op; a rule takes
``(func, args, kwargs)``. Data movement has no rules of its own: the op runs on the labels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nce_fx.custom import rule_of
from nce_fx.passes.analysis.channels.rules import contraction, elementwise, mixing, movement, weighted
from nce_fx.passes.analysis.channels.rules.calls import opaque, run_of
from nce_fx.passes.analysis.channels.value import ChannelTensor
from nce_fx.quantizers.base import Quantizer
from nce_fx.tracing.modes import ByMode

aten = torch.ops.aten

FUNCTION_RULES: dict[Any, Any] = {
    F.linear: weighted.linear,
    aten.linear.default: weighted.linear,
    F.bilinear: weighted.bilinear,
    F.conv1d: weighted.convolution(1),
    F.conv2d: weighted.convolution(2),
    F.conv3d: weighted.convolution(3),
    aten.conv1d.default: weighted.convolution(1),
    aten.conv2d.default: weighted.convolution(2),
    aten.conv2d.padding: weighted.convolution(2),
    aten.conv3d.default: weighted.convolution(3),
    F.conv_transpose1d: weighted.transposed_convolution(1),
    F.conv_transpose2d: weighted.transposed_convolution(2),
    F.conv_transpose3d: weighted.transposed_convolution(3),
    aten.conv_transpose1d.default: weighted.transposed_convolution(1),
    aten.conv_transpose2d.input: weighted.transposed_convolution(2),
    aten.conv_transpose3d.input: weighted.transposed_convolution(3),
    F.batch_norm: weighted.batch_norm,
    aten.batch_norm.default: weighted.aten_batch_norm,
    F.instance_norm: weighted.batch_norm,
    aten.instance_norm.default: weighted.batch_norm,
    F.layer_norm: weighted.layer_norm,
    aten.layer_norm.default: weighted.layer_norm,
    F.rms_norm: weighted.rms_norm,
    aten.rms_norm.default: weighted.rms_norm,
    F.group_norm: weighted.group_norm,
    aten.group_norm.default: weighted.group_norm,
    F.local_response_norm: mixing.local_response_norm,
    F.prelu: weighted.prelu,
    torch.prelu: weighted.prelu,
    aten.prelu.default: weighted.prelu,
    F.embedding: weighted.embedding,
    aten.embedding.default: weighted.aten_embedding,
    F.scaled_dot_product_attention: contraction.attention,
    aten.scaled_dot_product_attention.default: contraction.attention,
    F.normalize: mixing.normalize,
    F.pad: movement.pad,
    aten.pad.default: movement.pad,
    F.unfold: movement.im2col,
    F.fold: movement.col2im,
    torch.Tensor.expand: movement.expand,
    torch.einsum: contraction.einsum,
    aten.einsum.default: contraction.einsum,
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


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply the rule of an ATen op; one without a rule pins what it touches."""
    name = func._schema.name.removeprefix("aten::")
    in_place = name.endswith("_") and not name.endswith("__")
    name = name.removesuffix("_") if in_place else name
    rule = ATEN_RULES.get(name)
    own = rule_of(func) if rule is None else None
    run = run_of([args, list(kwargs.values())])
    if own is not None:
        run.computes()
        return run.apply(own, args, kwargs, users=True)
    if rule is None:
        rule = elementwise.pointwise if torch.Tag.pointwise in func.tags or name in elementwise.UNTAGGED else opaque
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
