"""Which values of a graph can never be negative: what comes out of a ReLU, and what keeps its sign on the way."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from nce_fx.quantizers import ActivationQuantizer

aten = torch.ops.aten

RELU: frozenset[Any] = frozenset(
    (nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_", aten.relu.default, aten.relu_.default)
)
"""Spellings of ReLU: module type, function, method name, ATen overload."""

_NEVER_NEGATIVE: frozenset[Any] = RELU | {
    *(nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softplus),
    *(F.relu6, F.sigmoid, F.hardsigmoid, F.softmax, F.softplus),
    *(torch.sigmoid, torch.softmax, torch.abs, torch.square, "sigmoid", "softmax", "abs", "square"),
    *(aten.sigmoid.default, aten.hardsigmoid.default, aten.softmax.int, aten._softmax.default, aten.abs.default),
    *(aten.relu6.default, aten.square.default),
}

_KEEPS_SIGN: frozenset[Any] = frozenset(
    (
        *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Flatten, nn.Unflatten),
        *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d),
        *(nn.PixelShuffle, nn.ChannelShuffle, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
        *(F.dropout, F.dropout2d, F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
        *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool2d),
        *(F.pixel_shuffle, F.channel_shuffle, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.mean),
        *(torch.cat, torch.concat, torch.stack, torch.chunk, torch.split, torch.squeeze, torch.unsqueeze, torch.roll),
        *(torch.add, torch.mul, torch.maximum, torch.clone, torch.sum, torch.amax),
        *(operator.add, operator.iadd, operator.mul, operator.imul, operator.getitem),
        *("flatten", "view", "reshape", "permute", "transpose", "contiguous", "clone", "mean", "sum", "amax", "detach"),
        *("chunk", "split", "squeeze", "unsqueeze", "add", "add_", "mul", "mul_", "size", "float", "to"),
        *(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim),
        *(aten.cat.default, aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor, aten.clone.default),
        *(aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.permute.default, aten.dropout.default),
        *(aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.chunk.default, aten.split.Tensor),
        *(aten.slice.Tensor, aten.contiguous.default, aten.alias.default, aten.detach.default),
    )
)
"""Never negative where no input is; numbers among the arguments must not be negative either, see `never_negative`."""


def kind_of(gm: GraphModule, node: Node) -> Any:
    """Return what a table can be asked for: the module's type, the function, or the method's name."""
    return type(gm.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def is_relu(gm: GraphModule, node: Node) -> bool:
    """Whether a node is a ReLU in any spelling."""
    return node.op.startswith("call_") and kind_of(gm, node) in RELU


def never_negative(gm: GraphModule, node: Node) -> bool:
    """Whether the graph alone shows that a value is never negative."""
    pending, seen = [node], set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if not current.op.startswith("call_"):
            return False
        kind = kind_of(gm, current)
        if current.op == "call_module" and issubclass(kind, ActivationQuantizer):
            quantizer = gm.get_submodule(str(current.target))
            assert isinstance(quantizer, ActivationQuantizer)
            if quantizer.signed:
                return False
        elif kind not in _NEVER_NEGATIVE:
            if kind not in _KEEPS_SIGN or not current.all_input_nodes or _scaled_below_zero(current):
                return False
            pending.extend(current.all_input_nodes)
    return True


_ARITHMETIC: frozenset[Any] = frozenset(
    (
        *(operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul),
        *("add", "add_", "mul", "mul_", aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor),
    )
)


def _scaled_below_zero(node: Node) -> bool:
    """Whether a sum or product has a negative number in it (``x - 1`` written as ``x + -1``, ``alpha=-1``)."""
    numbers = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, (int, float))]
    return node.target in _ARITHMETIC and any(number < 0 for number in numbers)
