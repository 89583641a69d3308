"""What a node may become at new widths: sizes and cuts that the original wrote down follow their channels.

A literal size grows with what it counts, a ``chunk`` becomes a ``split`` with sizes, a ``squeeze`` says its axes:
``repairs`` yields the calls, most likely first, and one that checks is taken.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from nce_fx.ids.labels import varies
from nce_fx.ids.value import ChannelTensor
from nce_fx.passes.analysis.channels.check import Check

aten = torch.ops.aten
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""What a node may become: target, arguments, keyword arguments, with values in the place of nodes."""


def repairs(run: Check, n: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
    """Yield what a node may become at the new widths, most likely first."""
    kept = torch.fx.node.map_arg((n.args, n.kwargs), lambda a: _number_of(run.first.seen.get(a), run.env[a]))
    if any(isinstance(run.env[a], int | float) for a in n.all_input_nodes):
        yield n.target, *kept
    repair = _REPAIRS.get(n.target)
    old = run.old.get(n.all_input_nodes[0]) if n.all_input_nodes else None
    if repair is not None and args and isinstance(args[0], ChannelTensor) and isinstance(old, ChannelTensor):
        yield from repair(run, n, old, args, kwargs)


def shared_maximum(run: Check, n: Node) -> Call | None:
    """Return the call that takes a maximum over channels whose number changed; ``None`` for any other node.

    Of equal values, ``max(dim)`` gives all gradient to the first, so that copies would get none; ``amax`` shares it.
    """
    source = n.args[0] if n.args else None
    if not (n.target is operator.getitem and n.args[1] == 0) and not (n.target is getattr and n.args[1] == "values"):
        return None
    if not isinstance(source, Node) or source.target not in _SHARED or not isinstance(source.args[0], Node):
        return None
    old, new = run.old.get(source.args[0]), run.env.get(source.args[0])
    axis = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim")
    if not (isinstance(old, ChannelTensor) and isinstance(new, ChannelTensor) and isinstance(axis, int)):
        return None
    if old.shape[axis] == new.shape[axis]:
        return None
    keepdim = source.args[2] if len(source.args) > 2 else source.kwargs.get("keepdim", False)
    return _SHARED[source.target], (source.args[0], axis, keepdim), {}


def _number_of(before: Any, now: Any) -> Any:
    """A number as the first run computed it, so that a width it was computed from does not change it."""
    return before if isinstance(now, int | float) else now


def _view(run: Check, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
    """Sizes whose product changed: one axis of each run of axes takes the change."""
    result = run.old[n]
    flat = len(args) > 1 and isinstance(args[1], int)
    given = list(args[1:] if flat else args[1]) if len(args) > 1 else list(kwargs.get("shape", kwargs.get("size", [])))
    for sizes in _new_sizes(tuple(old.shape), tuple(args[0].shape), tuple(result.shape), result):
        merged = [g if g in (-1, s) else s for g, s in zip(given, sizes, strict=True)]
        if merged.count(-1) == 1 and -1 in given:
            yield n.target, (args[0], *(merged if flat else [type(given)(merged)])), {}
        yield n.target, (args[0], *(sizes if flat else [list(sizes)])), {}


def _unflatten(
    run: Check, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Call]:
    """``unflatten(x, axis, sizes)``: as a view of one axis."""
    axis = (args[1] if len(args) > 1 else kwargs["dim"]) % old.dim()
    count = len(args[2] if len(args) > 2 else kwargs["sizes"])
    for sizes in _new_sizes(tuple(old.shape), tuple(args[0].shape), tuple(run.old[n].shape), run.old[n]):
        yield n.target, (args[0], axis, tuple(sizes[axis : axis + count])), {}


def _new_sizes(
    old_in: tuple[int, ...], new_in: tuple[int, ...], old_out: tuple[int, ...], result: ChannelTensor
) -> Iterator[list[int]]:
    choices: list[list[tuple[int, int]]] = []
    i = j = 0
    while i < len(old_in) or j < len(old_out):
        begin_i, begin_j = i, j
        i, j = min(i + 1, len(old_in)), min(j + 1, len(old_out))
        while prod(old_in[begin_i:i]) != prod(old_out[begin_j:j]):
            if prod(old_in[begin_i:i]) < prod(old_out[begin_j:j]):
                i += 1
            else:
                j += 1
        before, after = prod(old_in[begin_i:i]), prod(new_in[begin_i:i])
        if before != after:
            options = [(k, old_out[k] * after // before) for k in range(begin_j, j) if old_out[k] * after % before == 0]
            moving = [o for o in options if any(varies(label, o[0]) for label in result.labels)]
            choices.append(moving + [o for o in options if o not in moving])
    for choice in product(*choices):
        sizes = list(old_out)
        for axis, size in choice:
            sizes[axis] = size
        yield sizes


def _pieces(run: Check, old: ChannelTensor, new: ChannelTensor, axis: int, bounds: list[int]) -> list[int] | None:
    """Return where old bounds of an axis lie at the new widths; ``None`` where what they part is interleaved."""
    index = run.project(old.labels[0], new.labels[0])[axis]
    if index is None:
        return None
    places = []
    for bound in bounds:
        left = int((index < bound).sum())
        if (index[:left] >= bound).any():
            return None
        places.append(left)
    return places


def _axis_of(args: tuple[Any, ...], kwargs: dict[str, Any], dims: int, default: int = 0) -> int:
    axis = args[2] if len(args) > 2 else kwargs.get("dim", default)
    return int(axis) % dims


def _split(target: Callable[[Any], Any]) -> Any:
    """Return the repair that gives a cut the sizes of its pieces; ``target`` says what the node becomes."""

    def repair(
        run: Check, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[Call]:
        axis = _axis_of(args, kwargs, old.dim())
        sizes = [piece.shape[axis] for piece in run.old[n]]
        places = _pieces(run, old, args[0], axis, list(np.cumsum([0, *sizes])))
        if places is not None:
            yield target(n.target), (args[0], [int(s) for s in np.diff(places)], axis), {}

    return repair


def _slice(run: Check, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
    """``x[:, 0:32]``: bounds follow their channels."""
    items = list(args[1]) if isinstance(args[1], tuple) else [args[1]]
    repaired, axis = list(items), 0
    for k, item in enumerate(items):
        if item is Ellipsis:
            axis = old.dim() - (len(items) - k - 1)
            continue
        if item is None:
            continue
        if isinstance(item, slice) and item.step in (None, 1) and (item.start, item.stop) != (None, None):
            start, stop, _ = item.indices(old.shape[axis])
            places = _pieces(run, old, args[0], axis, [start, stop])
            if places is not None:
                repaired[k] = slice(
                    None if item.start is None else places[0], None if item.stop is None else places[1], None
                )
        axis += 1
    yield n.target, (args[0], tuple(repaired)), {}


def _aten_slice(
    run: Check, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Call]:
    axis = int(args[1]) % old.dim() if len(args) > 1 else 0
    start, stop, _ = slice(*args[2:4]).indices(old.shape[axis])
    places = _pieces(run, old, args[0], axis, [start, stop])
    if places is not None and (len(args) < 5 or args[4] == 1):
        yield n.target, (args[0], axis, places[0], places[1]), {}


def _narrow(run: Check, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
    axis, start, length = int(args[1]) % old.dim(), int(args[2]), int(args[3])
    places = _pieces(run, old, args[0], axis, [start, start + length])
    if places is not None:
        yield n.target, (args[0], axis, places[0], places[1] - places[0]), {}


def _expand(run: Check, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
    flat = len(args) > 1 and isinstance(args[1], int)
    given = list(args[1:] if flat else args[1])
    offset = len(given) - old.dim()
    sizes = [-1 if k >= offset and old.shape[k - offset] > 1 else size for k, size in enumerate(given)]
    yield n.target, (args[0], *(sizes if flat else [sizes])), {}


def _squeeze(run: Check, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
    """``squeeze(x)`` of whatever has one entry: the axes that had, and not one with one channel left."""
    if len(args) == 1 and not kwargs:
        axes = tuple(axis for axis, size in enumerate(old.shape) if size == 1)
        yield aten.squeeze.dims if n.target is aten.squeeze.default else n.target, (args[0], axes), {}


_SHARED: dict[Any, Any] = {
    **dict.fromkeys([torch.max, "max"], torch.amax),
    **dict.fromkeys([torch.min, "min"], torch.amin),
    aten.max.dim: aten.amax.default,
    aten.min.dim: aten.amin.default,
}
_REPAIRS: dict[Any, Any] = {
    **dict.fromkeys(
        ["view", "reshape", torch.reshape, aten.view.default, aten.reshape.default, aten._unsafe_view.default], _view
    ),
    **dict.fromkeys(["unflatten", torch.unflatten, aten.unflatten.int], _unflatten),
    **dict.fromkeys(["chunk", "split", "split_with_sizes"], _split(lambda _: "split")),
    **dict.fromkeys([torch.chunk, torch.split, torch.split_with_sizes], _split(lambda _: torch.split)),
    **dict.fromkeys(
        [aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes],
        _split(lambda _: aten.split_with_sizes.default),
    ),
    operator.getitem: _slice,
    aten.slice.Tensor: _aten_slice,
    **dict.fromkeys(["narrow", torch.narrow, aten.narrow.default], _narrow),
    **dict.fromkeys(["expand", aten.expand.default], _expand),
    **dict.fromkeys(["squeeze", torch.squeeze, aten.squeeze.default], _squeeze),
}
