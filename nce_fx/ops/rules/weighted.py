"""Ops that own weights: which axis makes channels, which is summed against them, what follows.

Shapes are PyTorch's: a linear weight is (out, in), a convolution's (out, in / groups, ...), a transposed one's
(in, out / groups, ...).
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch

from nce_fx.ids.labels import FIXED, Label, along, constant, core, line_of, varies
from nce_fx.ids.rule_interface import RuleInterface
from nce_fx.ids.value import ChannelParameter, ChannelTensor, Weight, activation, channel_tensors, run_of
from nce_fx.ops.output_shapes import convolved, each
from nce_fx.ops.rules.calls import label_for

_WEIGHTS = (ChannelTensor, ChannelParameter)


def channel_line(run: RuleInterface, label: Label, axis: int) -> torch.Tensor:
    """Return the ids along an axis, int64 (channels,): the line that ``linear`` reads.

    Where other axes vary too (joined tokens), every line must be the same.
    """
    line = run.line(label, axis)
    others = [other for other in range(label.dim()) if other != axis]
    if run.decide("varies beside", (label,), lambda: any(varies(label, other) for other in others), axis):
        run.tie(label, along(line, axis, label.shape))
    return line


def read(run: RuleInterface, x: ChannelTensor, axis: int, weight: Any, weight_axis: int) -> None:
    """Sum the channels along an axis of ``x`` against an axis of a weight: axis 1 of ``linear.weight``."""
    label = label_for(x, axis)
    if isinstance(weight, _WEIGHTS):
        run.consume(weight, weight_axis, channel_line(run, label, axis), (x, axis - x.dim()))
    else:
        run.pin(run.ids(core(label)), "it is read by a weight that is a constant of the graph")


def made(run: RuleInterface, weight: Any, axis: int, bias: Any) -> torch.Tensor:
    """Return the ids, int64 (channels,), that an axis of a weight makes, 0 of ``conv.weight``; a bias follows them."""
    if not isinstance(weight, _WEIGHTS):
        return torch.zeros(weight.shape[axis], dtype=torch.int64)
    line = run.produce(weight, axis)
    run.follow(bias, 0, line)
    return line


def linear(input: Any, weight: Any, bias: Any = None) -> ChannelTensor:
    """Return the channels of ``F.linear(x, weight, bias)``: (..., in) -> (..., out)."""
    run = run_of((input, weight))
    if reads_tokens(run, input, input.dim() - 1):
        return along_tokens(run, input, input.dim() - 1, made(run, weight, 0, bias))
    if isinstance(input, ChannelTensor):
        read(run, input, input.dim() - 1, weight, 1)
    line = made(run, weight, 0, bias)
    run.attribute(weight, "out_features", line.numel())
    run.attribute(weight, "in_features", input.shape[-1])
    return activation(run, along(line, input.dim() - 1, input.shape), input.dtype)


def along_tokens(
    run: RuleInterface, x: ChannelTensor, axis: int, line: torch.Tensor, shape: Sequence[int] | None = None
) -> ChannelTensor:
    """Mix tokens (a mixer's first linear): channels stay what they were, and what it makes keeps its number.

    Args:
        run: the run.
        x: the tokens, such as ``(2, 16, 8)`` after a transpose.
        axis: along which they are summed.
        line: the ids of what the product makes.
        shape: of the result; that of ``x`` with as many along the axis as are made.
    """
    run.pin(line, "it mixes tokens, whose channels run along another axis")
    if shape is None:
        shape = [line.numel() if k == axis else size for k, size in enumerate(x.shape)]
    return activation(run, x.labels[0].narrow(axis, 0, 1).expand(tuple(shape)), x.dtype)


def reads_tokens(run: RuleInterface, x: Any, axis: int) -> bool:
    """Whether what is summed along an axis, 1 of ``(2, tokens, 8)``, are tokens whose channels run along another."""
    if not isinstance(x, ChannelTensor) or len(x.labels) != 1:
        return False
    beside = run.channel_axes(x.labels[0])
    return bool(beside) and not run.varies(x.labels[0], axis)


def bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> ChannelTensor:
    """Return the channels of ``F.bilinear(x, y, weight)``: (..., in1), (..., in2) -> (..., out)."""
    run = run_of((input1, input2, weight))
    read(run, input1, input1.dim() - 1, weight, 1)
    read(run, input2, input2.dim() - 1, weight, 2)
    line = made(run, weight, 0, bias)
    for name, value in (("in1", input1.shape[-1]), ("in2", input2.shape[-1]), ("out", line.numel())):
        run.attribute(weight, f"{name}_features", value)
    return activation(run, along(line, input1.dim() - 1, input1.shape), input1.dtype)


def convolution(dims: int) -> Callable[..., ChannelTensor]:
    """Return the rule of a convolution over this many axes, 2 for ``F.conv2d``: (N, in, H, W) -> (N, out, H, W)."""

    def rule(
        input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> ChannelTensor:
        axis = input.dim() - dims - 1
        run, sizes = run_of((input, weight)), input.shape[axis + 1 :]
        plain = all(kernel == 1 for kernel in weight.shape[2:]) and {*each(stride, dims)} == {1}
        if groups == 1 and plain and {*each(padding, dims)} == {0} and reads_tokens(run, input, axis):
            return along_tokens(run, input, axis, made(run, weight, 0, bias))
        rows = convolved(sizes, weight.shape[2:], stride, padding, dilation)
        return _convolve(run, input, weight, bias, groups, axis, rows, (0, 1))

    return rule


def transposed_convolution(dims: int) -> Callable[..., ChannelTensor]:
    """Return the rule of a transposed convolution over this many axes, 2 for ``F.conv_transpose2d``."""

    def rule(
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> ChannelTensor:
        run = run_of((input, weight))
        axis = input.dim() - dims - 1
        options = (each(v, dims) for v in (stride, padding, output_padding, dilation))
        rows = [
            (size - 1) * step - 2 * around + spread * (kernel - 1) + extra + 1
            for size, kernel, step, around, extra, spread in zip(
                input.shape[axis + 1 :], weight.shape[2:], *options, strict=True
            )
        ]
        return _convolve(run, input, weight, bias, groups, axis, rows, (1, 0))

    return rule


def any_convolution(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> ChannelTensor:
    """``aten.convolution``: the number of axes and the direction are arguments."""
    dims = len(weight.shape) - 2
    if transposed:
        whole = transposed_convolution(dims)
        return whole(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return convolution(dims)(input, weight, bias, stride, padding, dilation, groups)


def _convolve(
    run: RuleInterface,
    x: Any,
    weight: Any,
    bias: Any,
    groups: int,
    axis: int,
    rows: Sequence[int],
    weight_axes: tuple[int, int],
) -> ChannelTensor:
    out_axis, in_axis = weight_axes
    shape = [*x.shape[: axis + 1], *rows]
    if groups == 1 or not isinstance(weight, _WEIGHTS):
        if isinstance(x, ChannelTensor):
            read(run, x, axis, weight, in_axis)
        line = made(run, weight, out_axis, bias)
        count = groups
    elif out_axis == 0:
        line, count = _grouped(run, x, weight, groups, axis)
        run.follow(bias, 0, line)
    else:
        return _grouped_transposed(run, x, weight, bias, groups, axis, shape)
    _set_channels(run, weight, x.shape[axis] if groups == 1 else None, line.numel(), count if groups > 1 else None)
    if groups > 1 and isinstance(weight, _WEIGHTS):
        run.attribute(weight, "in_channels", int(count * weight.shape[1]))
    return activation(run, along(line, axis, shape), x.dtype)


def _set_channels(run: RuleInterface, weight: Any, inputs: int | None, outputs: int, groups: int | None) -> None:
    if inputs is not None:
        run.attribute(weight, "in_channels", inputs)
    run.attribute(weight, "out_channels", outputs)
    if groups is not None:
        run.attribute(weight, "groups", groups)


def _grouped(run: RuleInterface, x: ChannelTensor, weight: Weight, groups: int, axis: int) -> tuple[torch.Tensor, int]:
    """Blocks of input channels and the blocks of output channels they make are copied as one."""
    sizes = run.original((x.shape[axis] // groups, weight.shape[0] // groups))
    label = label_for(x, axis)
    channel_line(run, label, axis)
    label, index, copies = run.blocks(x, label, axis, sizes[0])
    first = line_of(label, axis)[:: sizes[0]]
    line = run.grouped(weight, 0, sizes[1], first, (index, copies))
    return line, len(index)


def _grouped_transposed(
    run: RuleInterface, x: ChannelTensor, weight: Weight, bias: Any, groups: int, axis: int, shape: list[int]
) -> ChannelTensor:
    """(in, out / groups, ...): the input axis has the blocks, the output axis is shared by all of them.

    Output channels carry their block's first input id where a block makes one, fresh ids of the bias's axis otherwise.
    """
    block, per_group = run.original((weight.shape[0] // groups, weight.shape[1]))
    label = label_for(x, axis)
    channel_line(run, label, axis)
    label, index, copies = run.blocks(x, label, axis, block)
    line = line_of(label, axis)
    run.follow(weight, 0, line)
    first = line[::block]
    out = run.grouped_outputs(weight, per_group, first, (index, copies))
    run.follow(bias, 0, out)
    _set_channels(run, weight, line.numel(), out.numel(), len(index))
    shape[axis] = out.numel()
    return activation(run, along(out, axis, shape), x.dtype)


def batch_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    *args: Any,
    **kwargs: Any,
) -> ChannelTensor:
    """Return the channels of ``F.batch_norm`` and ``F.instance_norm``: (N, channels, ...), each by itself.

    Statistics and affine parameters follow the channels of axis 1.
    """
    run = run_of((input, weight, bias))
    value = input if isinstance(input, ChannelTensor) else weight
    label = label_for(value, 1)
    line = channel_line(run, label, 1) if len(value.labels) == 1 else line_of(label, 1)
    for parameter in (running_mean, running_var, weight, bias):
        run.follow(parameter, 0, line)
    run.attribute(weight if isinstance(weight, _WEIGHTS) else running_mean, "num_features", line.numel())
    return ChannelTensor(run, value.shape, value.labels, value.dtype)


def recurrent(module: Any, input: Any, state: Any = None) -> Any:
    """Return the channels of an ``nn.LSTM``, GRU or RNN: what it makes is pinned, what it reads is of any width.

    Gates and states depend on its own width.
    """
    run = run_of((input, state))
    if isinstance(input, ChannelTensor):
        suffixes = ["l0", "l0_reverse"] if module.bidirectional else ["l0"]
        for suffix in suffixes:
            read(run, input, input.dim() - 1, getattr(module, f"weight_ih_{suffix}"), 1)
        run.attribute(module.weight_ih_l0, "input_size", input.shape[-1])
    for value in channel_tensors(state if isinstance(state, list | tuple) else [state]):
        run.pin(run.ids(core(value.labels[0])), "it is the state of a recurrent layer")
    run.computes()
    directions = 2 if module.bidirectional else 1
    features = (module.proj_size or module.hidden_size) * directions
    output = activation(run, constant(FIXED, (*input.shape[:-1], features)), input.dtype)
    batch = () if input.dim() == 2 else (input.shape[0 if module.batch_first else 1],)
    layers = module.num_layers * directions
    hidden = activation(run, constant(FIXED, (layers, *batch, module.proj_size or module.hidden_size)), input.dtype)
    cell = activation(run, constant(FIXED, (layers, *batch, module.hidden_size)), input.dtype)
    return output, ((hidden, cell) if module.mode == "LSTM" else hidden)


def layer_norm(
    input: Any, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, *args: Any, **kwargs: Any
) -> ChannelTensor:
    """Return the channels of ``F.layer_norm(x, (64,))``: copied as a whole, or the statistics would change."""
    run = run_of((input, weight, bias))
    count = len(normalized_shape)
    shape = list(input.shape[-count:])
    for axis in range(input.dim() - count, input.dim()):
        label = label_for(input, axis)
        if not run.carries(label, axis):
            continue
        run.uniform(label, axis)
        run.share(label, axis, partial(_scaled, run, label, axis, (weight, bias), axis - input.dim() + count, count))
    run.attribute(weight, "normalized_shape", tuple(shape))
    return ChannelTensor(run, input.shape, input.labels, input.dtype)


def _scaled(
    run: RuleInterface, label: Label, axis: int, parameters: Sequence[Any], own_axis: int, normalized: int
) -> None:
    """Scale and shift follow the channels that they meet."""
    line = channel_line(run, label, axis) if normalized == 1 else line_of(label, axis)
    for parameter in parameters:
        run.follow(parameter, own_axis, line)


def rms_norm(
    input: Any, normalized_shape: Sequence[int], weight: Any = None, *args: Any, **kwargs: Any
) -> ChannelTensor:
    """Return the channels of ``F.rms_norm(x, (64,))``, as of ``layer_norm``: whole copies have the same mean."""
    return layer_norm(input, normalized_shape, weight)


def group_norm(
    input: Any, num_groups: int, weight: Any = None, bias: Any = None, *args: Any, **kwargs: Any
) -> ChannelTensor:
    """Return the channels of ``F.group_norm(x, 4)``: blocks are copied whole, and there are more of them."""
    run = run_of((input, weight, bias))
    label = label_for(input, 1)
    line = channel_line(run, label, 1)
    if num_groups == 1:
        run.uniform(along(line, 0, (line.numel(),)), 0)
        count = 1
    else:
        size = run.original(input.shape[1] // num_groups)
        label, index, _ = run.blocks(input, label, 1, size)
        line, count = line_of(label, 1), len(index)
    run.follow(weight, 0, line)
    run.follow(bias, 0, line)
    run.attribute(weight, "num_groups", count)
    run.attribute(weight, "num_channels", line.numel())
    return activation(run, label, input.dtype)


def prelu(input: Any, weight: Any) -> ChannelTensor:
    """Return the channels of ``F.prelu(x, weight)``: a slope for each channel (axis 1), or one for all."""
    run = run_of((input, weight))
    if isinstance(weight, _WEIGHTS) and prod(weight.shape) > 1 and isinstance(input, ChannelTensor):
        axis = 1 if input.dim() > 1 else 0
        line = channel_line(run, label_for(input, axis), axis)
        run.follow(weight, 0, line)
        run.attribute(weight, "num_parameters", line.numel())
    return ChannelTensor(run, input.shape, input.labels, input.dtype)


def embedding(input: Any, weight: Any, *args: Any, **kwargs: Any) -> ChannelTensor:
    """Return the channels of ``F.embedding(indices, table)``: (...) -> (..., features) of (vocabulary, features)."""
    run = run_of((weight, input))
    line = made(run, weight, 1, None)
    run.attribute(weight, "embedding_dim", line.numel())
    shape = (*input.shape, line.numel())
    return activation(run, along(line, len(shape) - 1, shape), weight.dtype)
