"""Ops that mix elements along an axis: harmless along axes without channels, binding along those with.

A mean over channels stays the same when all are copied equally often; a sum does not, so the channels it goes over
may be copied as a block beside it (a head of attention) but never within it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from nce_fx.ids.labels import NEUTRAL, Label, constant, core, resized
from nce_fx.ids.rule_interface import RuleInterface
from nce_fx.ids.value import ChannelTensor, activation, channel_tensors
from nce_fx.ops.rules.calls import alike_along, label_for, on_meta, opaque
from nce_fx.ops.rules.elementwise import meet

_NO_BOUND = 1e-10


def _dims(value: torch.Tensor, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, Sequence) and not len(dim)):
        return list(range(value.dim()))
    return sorted({d % value.dim() for d in ([dim] if isinstance(dim, int) else dim)})


def _reduce(value: ChannelTensor, dims: list[int], keepdim: bool, kind: str) -> ChannelTensor:
    run = value.run
    labels = []
    for label in value.labels:
        channel = run.channel_axes(label)
        for axis in dims:
            if not run.varies(label, axis):
                if kind not in ("mean", "largest") and run.carries(label, axis):
                    sum_over(run, label, axis, kind)
                continue
            if axis not in channel:
                run.tie(label, label.narrow(axis, 0, 1).expand(label.shape))
            elif kind == "mean":
                run.uniform(label, axis)
            elif kind == "largest":
                run.block(label, axis)
            elif kind == "root":
                _norm_over(run, label, axis, -0.5)
            else:
                sum_over(run, label, axis, kind)
        beside = [axis for axis in channel if axis not in dims]
        if len(beside) < len(channel) and all(run.alternates(label, axis) for axis in beside):
            # No channel is left, or of each the place: what is beside it may be of any number.
            for axis in beside:
                run.still(label, axis)
            label = constant(NEUTRAL, label.shape)
        for axis in reversed(dims):
            label = label.narrow(axis, 0, 1)
            if not keepdim:
                label = label.squeeze(axis)
        labels.append(label)
    return ChannelTensor(run, labels[0].shape, tuple(labels), value.dtype)


def sum_over(run: RuleInterface, label: Label, axis: int, what: str) -> None:
    """Say that a sum, ``"a norm"`` or ``"softmax"`` say, goes over channels.

    They are copied as a block beside it where there is an axis beside it, else not at all.
    """
    if not _rigid_beside(run, label, axis):
        run.pin(run.ids(core(label)), f"its channels are mixed by {what}")


def _norm_over(run: RuleInterface, label: Label, axis: int, exponent: float) -> None:
    """A root of a sum of squares over channels: over whole copies it grows by the root of their number, no more."""
    beside = [k for k in range(label.dim()) if k != axis and run.varies(label, k)]
    if (beside and all(run.alternates(label, k) for k in beside)) or not _rigid_beside(run, label, axis):
        run.root(label, axis, exponent)


def _rigid_beside(run: RuleInterface, label: Label, axis: int) -> bool:
    others = (k for k in range(1, label.dim()) if k != axis)
    if on_other_axes(run, label, axis) or any(run.is_single(label, k) for k in others):
        run.rigid(label, axis)
        return True
    return False


def on_other_axes(run: RuleInterface, label: Label, axis: int) -> bool:
    """Say whether channels run along other axes too: heads in ``(N, heads, length, features)``, copied whole."""
    return any(run.varies(label, k) for k in range(label.dim()) if k != axis)


def reduction(kind: str) -> Any:
    """Return the rule of ``x.mean(dim, keepdim)`` and others; ``kind``: mean, largest, or the name of what mixes."""

    def rule(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
        value = args[0]
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        keepdim = args[2] if len(args) > 2 and isinstance(args[2], bool) else kwargs.get("keepdim", False)
        return _reduce(value, _dims(value, dim), keepdim, kind)

    return rule


def variance(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x.var(dim, correction=0)``: as a mean's; divided by n - 1 it mixes them."""
    value = args[0]
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    correction = kwargs.get("correction", 1)
    kind = "mean" if correction == 0 else "an unbiased variance (use correction=0, which a resize keeps)"
    result = _reduce(value, _dims(value, dim), kwargs.get("keepdim", False), kind)
    if func._schema.name.removeprefix("aten::") in {"var_mean", "std_mean"}:
        return result, ChannelTensor(value.run, result.shape, result.labels, value.dtype)
    return result


def largest(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x.max(dim)``, values and indices; without a dim, of the largest of all."""
    value = args[0]
    dims = _dims(value, args[1] if len(args) > 1 else None)
    keepdim = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    result = _reduce(value, dims, keepdim, "largest")
    if len(args) == 1:
        return result
    return result, activation(value.run, constant(NEUTRAL, result.shape), torch.int64)


def vector_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``x.norm(2, dim)``: over channels it grows by the root of the number of copies."""
    value = args[0]
    dim = args[2] if len(args) > 2 else kwargs.get("dim")
    keepdim = args[3] if len(args) > 3 else kwargs.get("keepdim", False)
    square = (args[1] if len(args) > 1 else kwargs.get("ord", 2)) == 2
    return _reduce(value, _dims(value, dim), keepdim, "root" if square and not value.is_parameter else "a norm")


def normed_weight(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``aten._weight_norm_interface(v, g, dim)``: a weight over its norm along other axes."""
    weight, gain, dim = args[0], args[1], args[2] if len(args) > 2 else 0
    norm = weight.norm(2, [axis for axis in range(weight.dim()) if axis != dim % weight.dim()], True)
    return weight * (gain / norm), norm


def normalize(input: Any, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None) -> ChannelTensor:
    """Return the channels of ``F.normalize(x, dim=1)``: divided by the norm along axes.

    Channels are copied beside these, as a block, or all of them equally often.
    """
    if p != 2 or eps > _NO_BOUND or input.is_parameter:
        # A bound that values come near to would be another one for copies.
        return _divided(input, _dims(input, dim), "a norm")
    for label in input.labels:
        for axis in _dims(input, dim):
            if input.run.carries(label, axis):
                _norm_over(input.run, label, axis, 0.5)
    return ChannelTensor(input.run, input.shape, input.labels, input.dtype)


def softmax(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``softmax(x, dim)``: untouched along axes without channels, rigid along those with."""
    return _divided(args[0], _dims(args[0], args[1]), "softmax")


def _divided(value: ChannelTensor, axes: list[int], what: str) -> ChannelTensor:
    """Return the channels of a value over what is summed along some axes."""
    for label in value.labels:
        for axis in axes:
            if value.run.carries(label, axis):
                sum_over(value.run, label, axis, what)
    return ChannelTensor(value.run, value.shape, value.labels, value.dtype)


def scan(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x.cumsum(dim)`` and sorts: they keep the shape, and mix along an axis."""
    value = args[0]
    dim = next((a for a in args[1:] if isinstance(a, int) and not isinstance(a, bool)), kwargs.get("dim", -1))
    axis = dim % value.dim()
    for label in value.labels:
        if value.run.carries(label, axis):
            return opaque(func, args, kwargs, f"its channels are mixed by {func._schema.name.removeprefix('aten::')}")
    result = ChannelTensor(value.run, value.shape, value.labels, value.dtype)
    if len(func._schema.returns) == 2:
        return result, activation(value.run, constant(NEUTRAL, value.shape), torch.int64)
    return result


def topk(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``x.topk(3, dim)``, values and indices, where they run along other axes than this one."""
    value, count = args[0], args[1]
    axis = (args[2] if len(args) > 2 else kwargs.get("dim", -1)) % value.dim()
    if any(value.run.carries(label, axis) for label in value.labels):
        return opaque(func, args, kwargs, "channels are picked by values")
    shape = (*value.shape[:axis], count, *value.shape[axis + 1 :])
    labels = tuple(label.narrow(axis, 0, 1).expand(shape) for label in value.labels)
    return (
        ChannelTensor(value.run, shape, labels, value.dtype),
        activation(value.run, constant(NEUTRAL, shape), torch.int64),
    )


def spatial(axes: int) -> Any:
    """Return the rule of pooling and resampling over the last axes, 2 of ``F.max_pool2d``: the channels stay."""

    def rule(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = args[0]
        if not isinstance(value, ChannelTensor):
            return opaque(func, args, kwargs)
        run = value.run
        name = func._schema.name
        outputs = _resampled(value, args[1]) if "upsample_" in name else on_meta(func, args, kwargs)
        label = label_for(value, value.dim() - axes - 1)
        for axis in range(value.dim() - axes, value.dim()):
            if axis in run.channel_axes(label):
                return opaque(func, args, kwargs, "its channels are pooled or resampled along their own axis")
            label = alike_along(run, label, axis)
        first_out = outputs[0] if isinstance(outputs, tuple) else outputs
        result = activation(run, resized(label, first_out.shape), value.dtype)
        if isinstance(outputs, tuple):
            # Places within each channel, which un-pooling reads again.
            return result, activation(run, resized(label, outputs[1].shape), torch.int64)
        return result

    return rule


def warp(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what ``F.affine_grid(theta, size)`` makes: places, and no channels."""
    return opaque(func, args, kwargs, "it says where to read, by a matrix of fixed size")


def sampled(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``F.grid_sample(x, grid)``: those of ``x``; the grid has a coordinate for each axis."""
    value, grid = args[0], args[1]
    for place in channel_tensors([grid]):
        for label in place.labels:
            if place.run.carries(label, place.dim() - 1):
                place.run.pin(place.run.ids(core(label)), "it says where to read, by one coordinate for each axis")
    if not isinstance(value, ChannelTensor):
        return opaque(func, args, kwargs)  # type: ignore[no-any-return]
    shape = (*value.shape[:2], *grid.shape[1:-1])
    return _elsewhere(value, value.labels[0], shape)


def unpooled(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``F.max_unpool2d(x, indices)``: those of ``x``, which the indices have too."""
    value, indices, size = args[0], args[1], args[2]
    label = value.labels[0]
    if isinstance(indices, ChannelTensor):
        label = meet(value.run, value, indices).labels[0]
    return _elsewhere(value, label, (*value.shape[: -len(size)], *size))


def _elsewhere(value: ChannelTensor, label: Label, shape: tuple[int, ...]) -> ChannelTensor:
    """Return a value whose channels run along axis 1, at other places."""
    for axis in range(2, label.dim()):
        label = alike_along(value.run, label, axis)
    return ChannelTensor(value.run, shape, (resized(label, shape),), value.dtype)


def _resampled(value: ChannelTensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return the shape of what is upsampled, as a tensor without values: PyTorch's own way there takes milliseconds."""
    return torch.empty((*value.shape[: -len(sizes)], *sizes), device="meta")


def local_response_norm(input: Any, *args: Any, **kwargs: Any) -> ChannelTensor:
    """Return the channels of ``F.local_response_norm(x, 5)``, pinned: neighbours are summed."""
    input.run.pin(input.run.ids(core(label_for(input, 1))), "its neighbours are summed by local_response_norm")
    return ChannelTensor(input.run, input.shape, input.labels, input.dtype)
