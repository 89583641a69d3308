"""Data movement: the op runs on the labels themselves."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from nce_fx.ids.labels import (
    FIRST_ID,
    FIXED,
    NEUTRAL,
    Label,
    Layout,
    along,
    at_places,
    compress,
    constant,
    core,
    line_of,
    named_axes,
    numel,
    reshape,
    resized,
    varies,
)
from nce_fx.ids.rule_interface import RuleInterface
from nce_fx.ids.value import ChannelTensor, activation, channel_tensors, run_of
from nce_fx.ops.rules.by_data import picked_by_data
from nce_fx.ops.rules.calls import label_for, opaque
from nce_fx.ops.rules.elementwise import meet, neutral, one_channel
from nce_fx.ops.rules.repeats import told_apart


def _like(value: ChannelTensor, labels: tuple[Label, ...]) -> ChannelTensor:
    return ChannelTensor(
        value.run, labels[0].shape, labels, value.dtype, exact=value.exact, elementwise=value.elementwise
    )


def _apart(value: ChannelTensor, labels: tuple[Label, ...]) -> ChannelTensor:
    """Return an activation whose channels may come more than once, each time told apart."""
    if not value.is_parameter:
        labels = tuple(told_apart(value.run, label) for label in labels)
    return _like(value, labels)


def same(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``x.clone()`` and casts: the same."""
    value = args[0]
    dtype = kwargs.get("dtype") or value.dtype
    return ChannelTensor(value.run, value.shape, value.labels, dtype, exact=value.exact, elementwise=value.elementwise)


def number(value: Any) -> Any:
    """Return what stands for ``x.item()``: the tensor that it was read from, which scales and shifts as it does."""
    return value


def alike(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``torch.randn_like(x)`` and constants: one element for each of its own, copies alike."""
    value = args[0]
    return ChannelTensor(value.run, value.shape, value.labels, kwargs.get("dtype") or value.dtype)


def triangle(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x.tril()``, which stay as they are: which elements are zero depends on their place."""
    value = args[0]
    for label in value.labels:
        if any(value.run.carries(label, axis) for axis in range(max(0, value.dim() - 2), value.dim())):
            return opaque(func, args, kwargs, "a triangle of its channels is kept, by their places")
    return alike(func, args, kwargs)


def moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of a view that keeps strides, ``x.permute(0, 2, 1)`` say: the op is run on each label."""
    value = args[0]
    if not isinstance(value, ChannelTensor):
        return opaque(func, args, kwargs)
    results = [func(label, *args[1:], **kwargs) for label in value.labels]
    if isinstance(results[0], list | tuple):
        outputs = [_like(value, tuple(r[i] for r in results)) for i in range(len(results[0]))]
        return type(results[0])(outputs)
    return _like(value, tuple(results))


def split(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of the pieces of ``x.chunk(2, 1)``: views; the graph may need other sizes later."""
    value = args[0]
    outputs = moved(func, args, kwargs)
    for output in channel_tensors(outputs):
        value.run.cut(output.labels)
    return outputs


def select(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x[:, 0]``: a cut where it is one channel."""
    value = args[0]
    output = moved(func, args, kwargs)
    if isinstance(output, ChannelTensor) and any(
        value.run.varies(label, args[1] % value.dim()) for label in value.labels
    ):
        value.run.cut(tuple(label for label in output.labels if core(label).numel() == 1))
    return output


def copied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x.repeat(1, 2)`` and the like: the op is run on each label, constant axes found anew."""
    if not isinstance(args[0], ChannelTensor):
        return opaque(func, args, kwargs)
    if any(isinstance(a, ChannelTensor) for a in channel_tensors([list(args[1:]), list(kwargs.values())])):
        return opaque(func, args, kwargs)
    return _apart(args[0], tuple(compress(func(label, *args[1:], **kwargs)) for label in args[0].labels))


def picked(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x.index_select(1, index)``: those that a buffer names."""
    value, index = args[0], args[2]
    if not isinstance(value, ChannelTensor) or channel_tensors(index):
        return opaque(func, args, kwargs)
    dim = args[1] % max(1, value.dim())
    return _apart(value, tuple(_picked(value.run, label, dim, func(label, *args[1:])) for label in value.labels))


def _picked(run: RuleInterface, source: Label, dim: int, label: Label) -> Label:
    """Let an axis that channels were picked along stay one of channels, be all that are picked the same."""
    if label.dim() != source.dim() or not run.varies(source, dim) or label.shape[dim] < 2 or not label.numel():
        return compress(label)
    sizes = [size if axis == dim or varies(source, axis) else 1 for axis, size in enumerate(label.shape)]
    return label.as_strided(sizes, label.stride(), label.storage_offset()).contiguous().expand(label.shape)


def shifted(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x.roll(1, 2)`` and ``flip``: nothing happens along axes that do not vary."""
    value = args[0]
    dims = args[-1] if args else []
    dims = [dims] if isinstance(dims, int) else dims
    if len(dims) and all(not value.run.varies(label, d % value.dim()) for label in value.labels for d in dims):
        return value
    return copied(func, args, kwargs)


def view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x.reshape(2, -1)``, with -1 worked out."""
    value, sizes = args[0], list(args[1])
    total = numel(value.shape)
    if -1 in sizes:
        known = numel([s for s in sizes if s != -1])
        if known == 0 or total % known:
            raise RuntimeError(f"shape {args[1]} is invalid for input of size {total}")
        sizes[sizes.index(-1)] = total // known
    if numel(sizes) != total:
        raise RuntimeError(f"shape {args[1]} is invalid for input of size {total}")
    value.run.viewed(sizes)
    result = _like(value, tuple(reshape(label, sizes, value.run.laid_out) for label in value.labels))
    value.run.cut(result.labels, rows=True)
    return result


def expand(self: Any, *sizes: Any, **kwargs: Any) -> Any:
    """Return the channels of ``x.expand(-1, 8)``: a producer of one channel that is spread over others is pinned."""
    shape = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes
    run = run_of((self,))
    offset = len(shape) - self.dim()
    full = [self.shape[k - offset] if k >= offset and s == -1 else s for k, s in enumerate(shape)]
    one_channel(run, self, tuple(full))
    return _like(self, tuple(label.expand(full) for label in self.labels))


def expand_as(input: Any, other: Any) -> Any:
    """Return the channels of ``gate.expand_as(x)``: those of ``x``, which the gate has one by one or one for all."""
    if not isinstance(input, ChannelTensor) or not isinstance(other, ChannelTensor):
        return input.expand(tuple(other.shape))
    result = meet(input.run, input, other)
    return ChannelTensor(input.run, result.shape, result.labels, input.dtype)


def cat(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``torch.cat([x, y], 1)``; axes that are constant in every part stay constant.

    PyTorch takes a part of shape (0,), such as a cache that is still empty, beside parts of any shape.
    """
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    run = run_of(args[0])
    parts = [part for part in args[0] if tuple(part.shape) != (0,)] or list(args[0])
    values = channel_tensors(parts)
    axis = dim % parts[0].dim()
    labels = [_part(run, parts, part, axis) for part in parts]
    shape = list(labels[0].shape)
    for label in labels[1:]:
        if [s for k, s in enumerate(label.shape) if k != axis] != [s for k, s in enumerate(shape) if k != axis]:
            raise RuntimeError("parts of different sizes are joined")
    shape[axis] = sum(label.shape[axis] for label in labels)
    if all(isinstance(p, ChannelTensor) and p.is_parameter for p in parts) and len(values) == len(parts):
        joined = [_join([p.labels[k] for p in values], axis) for k in range(min(len(p.labels) for p in values))]
        return ChannelTensor(run, shape, tuple(joined), parts[0].dtype)
    place = run.decide("finest tokens", labels, partial(_finest_tokens, run, labels, axis), axis)
    if place is None or any(varies(label, axis) for label in labels):
        return ChannelTensor(run, shape, (told_apart(run, _join(labels, axis)),), parts[0].dtype)
    finest = labels[place].narrow(axis, 0, 1)
    for label in labels:
        run.tie(finest, label.narrow(axis, 0, 1))
    return ChannelTensor(run, shape, (finest.expand(shape),), parts[0].dtype)


def _finest_tokens(run: RuleInterface, labels: list[Label], axis: int) -> int | None:
    """Return which of joined parts names most channels, where all run along other axes (a class token, patches).

    Such parts must be equally wide; tied here, they need no label that names channels for every token anew. ``None``
    where something else is joined.
    """
    if all(label.shape[axis] == 1 for label in labels) or any(varies(label, axis) for label in labels):
        return None
    ids = [run.ids(core(label)) for label in labels]
    place = max(range(len(ids)), key=lambda k: ids[k].numel())
    tokens = all(
        part.numel() > 1
        and all(size in (1, most) for size, most in zip(part.shape, ids[place].shape, strict=True))
        and bool((part >= FIRST_ID).all())
        for part in ids
    )
    return place if tokens else None


def _part(run: RuleInterface, parts: list[Any], part: Any, axis: int) -> Label:
    """Return the one label of a part: of a parameter's, the one that runs where the others have channels."""
    if not isinstance(part, ChannelTensor):
        return constant(FIXED, part.shape)
    if len(part.labels) == 1:
        return part.labels[0]
    for other in parts:
        if isinstance(other, ChannelTensor) and len(other.labels) == 1:
            for channel_axis in run.channel_axes(other.labels[0]):
                return label_for(part, channel_axis)
    return label_for(part, axis)


def _join(labels: list[Label], axis: int) -> Label:
    dims = labels[0].dim()
    moving = [k == axis or any(varies(label, k) for label in labels) for k in range(dims)]
    small = []
    for label in labels:
        sizes = [label.shape[k] if moving[k] else 1 for k in range(dims)]
        small.append(label.as_strided(sizes, label.stride(), label.storage_offset()))
    joined = compress(torch.cat(small, axis))
    shape = list(labels[0].shape)
    shape[axis] = joined.shape[axis]
    return joined.expand(shape)


def stack(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``torch.stack([x, y], 1)``: joined along a new axis."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    values = channel_tensors(args[0])
    axis = dim % (values[0].dim() + 1)
    parts = [p.unsqueeze(axis) for p in args[0]]
    return cat(func, (parts, axis), {})


def pad(input: Any, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Any:
    """Return the channels of ``F.pad(x, (1, 1))``: a constant axis gets longer, channels a fixed number of others."""
    run = run_of((input,))
    labels = []
    shape = list(input.shape)
    for k in range(len(pad) // 2):
        shape[-1 - k] += pad[2 * k] + pad[2 * k + 1]
    for label in input.labels:
        result = label
        for k in range(len(pad) // 2):
            axis = label.dim() - 1 - k
            if pad[2 * k] == pad[2 * k + 1] == 0 or not run.varies(label, axis):
                continue
            if run.channel_axes(label) != (axis,):
                # Tokens joined from several producers, features of a head: padding adds no token's or head's channels.
                parts = [result.narrow(axis, 0, 1)] * pad[2 * k] + [result]
                result = torch.cat(parts + [result.narrow(axis, 0, 1)] * pad[2 * k + 1], axis)
                continue
            if mode != "constant":
                run.pin(run.ids(core(label)), f"its channel axis is padded by {mode}")
            one = [0, 0] * k + [pad[2 * k], pad[2 * k + 1]]
            result = F.pad(result.contiguous(), one, value=FIXED)
        labels.append(resized(compress(result), shape))
    return _like(input, tuple(labels))


def constant_pad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``aten.constant_pad_nd(x, (1, 1), 0)``, as of ``pad``."""
    return pad(args[0], args[1])


def edge_pad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of padding by reflection or replication, ``aten.reflection_pad2d(x, (1, 1, 1, 1))``."""
    return pad(args[0], args[1], "reflection")


def space_to_depth(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``F.pixel_unshuffle(x, 2)``: each once per pixel of a block, and these are told apart."""
    value, factor = args[0], args[1]
    if not isinstance(value, ChannelTensor):
        return opaque(func, args, kwargs)
    *batch, channels, height, width = value.shape
    blocks = (*batch, channels, height // factor, factor, width // factor, factor)
    order = [*range(len(batch) + 1), -3, -1, -4, -2]
    order = [k % len(blocks) for k in order]
    shape = (*batch, channels * factor**2, height // factor, width // factor)
    folded = frozenset(range(len(batch), len(batch) + 3))
    labels = []
    for label in value.labels:
        spread = reshape(label, blocks).permute(order)
        moving = folded if value.run.varies(label, len(batch)) else frozenset()
        named = value.run.decide("named_axes", (spread,), partial(named_axes, spread))
        labels.append(reshape(spread, shape, partial(_also, moving, named)))
    return _like(value, tuple(labels))


def _also(moving: frozenset[int], named: frozenset[int], label: Label, own: frozenset[int]) -> Layout:
    return Layout(moving | own, named)


def im2col(input: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> ChannelTensor:
    """Return the channels of ``F.unfold``: (N, C, H, W) -> (N, C x kernel, places), each once per kernel element."""
    run = run_of((input,))
    meta = F.unfold(torch.empty(input.shape, device="meta"), kernel_size, dilation, padding, stride)
    line = core(label_for(input, 1)).reshape(-1)[: input.shape[1]]
    places = meta.shape[1] // input.shape[1]
    repeated = at_places(line[:, None], torch.arange(places)[None], places).reshape(1, -1, 1)
    return activation(run, repeated.expand(meta.shape), input.dtype)


def col2im(
    input: Any, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> ChannelTensor:
    """Return the channels of ``F.fold``: (N, C x kernel, places) -> (N, C, H, W); a kernel has one channel."""
    run = run_of((input,))
    meta = F.fold(torch.empty(input.shape, device="meta"), output_size, kernel_size, dilation, padding, stride)
    line = line_of(label_for(input, 1), 1)
    rows = line.reshape(meta.shape[1], -1)
    first = rows[:, :1]
    run.tie(rows, first.expand(rows.shape))
    return activation(run, along(first.reshape(-1), 1, meta.shape), input.dtype)


def index(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x[:, order]`` by integers that the graph holds, or by places that data decide."""
    value, indices = args[0], args[1]
    if not isinstance(value, ChannelTensor):
        return opaque(func, args, kwargs, "its values say what is picked")
    if channel_tensors(indices):
        return picked_by_data(func, value, indices)
    given = [axis for axis, each in enumerate(indices) if each is not None]
    if len(given) != 1 or indices[given[0]].dim() != 1:
        return _apart(value, tuple(compress(func(label, indices)) for label in value.labels))
    return _apart(value, tuple(_picked(value.run, label, given[0], func(label, indices)) for label in value.labels))


def new_shape(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what stands for ``x.new_zeros(2, 3)``: no channel."""
    return neutral(args[0].run, tuple(args[1]), args[0].dtype)


def filled(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what stands for ``x.zero_()``: no channel is left."""
    value = args[0]
    return ChannelTensor(value.run, value.shape, (constant(NEUTRAL, value.shape),), value.dtype)


def write(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x[:, :8].copy_(y)``: those of the part and of what is written there meet.

    What was without channels is not known to have them when it is read as a whole later.
    """
    into, value = args[:2]
    if isinstance(into, ChannelTensor) and isinstance(value, ChannelTensor) and into.shape == value.shape:
        run, labels = into.run, (*into.labels, *value.labels)
        axes = [run.channel_axes(label) for label in labels]
        if len(labels) == 2 and axes[0] and axes[0] == axes[1]:
            run.tie(*labels)
            return into
    return opaque(func, args, kwargs, "it is written into another tensor, in place")


def asserted(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Say nothing of channels: a claim about types and devices, ``aten._assert_tensor_metadata``."""


def glu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``F.glu(x, 1)``: the first half of an axis, gated by the second."""
    value = args[0]
    dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
    axis = dim % value.dim()
    half = value.shape[axis] // 2
    first, second = (value.narrow(axis, start, half) for start in (0, half))
    return first * second


MOVEMENT = frozenset({same, moved, split, select, copied, picked, shifted, view, cat, stack, index, space_to_depth})
"""Rules of ops that change no value: a region of them can become one gather."""
