"""Repair the graph while it is checked at new widths: sizes, cuts and orders that the original wrote down.

In this order: a literal size that follows its channels; a ``chunk`` that becomes a ``split`` with sizes; a gather in
the place of a node, or of a whole region of views and transposes, whose order no view can give any more.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from nce_fx.passes.analysis.channels.check import Check, Mismatch, lay_out, match, moving_axes, project
from nce_fx.passes.analysis.channels.labels import Ids, compress, core, line_of, varies
from nce_fx.passes.analysis.channels.value import ChannelTensor

aten = torch.ops.aten
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""What a node may become: target, arguments, keyword arguments, with values in the place of nodes."""

_FAILURES = (Mismatch, RuntimeError, ValueError, IndexError, TypeError, AssertionError, AttributeError)


@dataclass(frozen=True)
class Broken:
    """A value that cannot be had at the new widths; what may become of it is a gather of ``source``."""

    source: Node
    reason: Mismatch


class Resizing(Check):
    """A check that repairs nodes as it goes."""

    def run_node(self, n: Node) -> Any:
        """Run a node as it is, else as each of its repairs, else leave it to a gather further down."""
        if n.op in ("placeholder", "get_attr"):
            return super().run_node(n)
        self.node = n
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        broken = _find_broken([args, kwargs])
        if broken is not None:
            if n in self.first.computing:
                raise broken.reason
            selected = self._select(n, broken.source)
            return _give_up(n, broken) if selected is None else selected
        if n.op == "output":
            return super().run_node(n)
        try:
            return self._attempt(n, n.target, args, kwargs)
        except _FAILURES as error:
            first = error if isinstance(error, Mismatch) else self._blame(n, error)
            first.node = n
        for target, new_args, new_kwargs in repairs(self, n, args, kwargs):
            try:
                result = self._attempt(n, target, new_args, new_kwargs)
            except _FAILURES:
                continue
            self.edits.targets[n] = target
            self.edits.arguments[n] = _with_nodes(n, args, kwargs, new_args, new_kwargs)
            return result
        aligned = self._align(n, args, kwargs)
        if aligned is not None:
            return aligned
        if n in self.first.computing:
            raise first
        source = next((a for a in n.all_input_nodes if isinstance(self.env.get(a), ChannelTensor)), None)
        if source is None:
            raise first
        selected = self._select(n, source)
        return Broken(source, first) if selected is None else selected

    def _align(self, n: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Where two operands carry the same channels in other orders, gather the second into the order of the first."""
        if len(args) != 2 or not all(isinstance(a, ChannelTensor) and len(a.labels) == 1 for a in args):
            return None
        first, second = args
        before = [self.old[a] for a in n.args if isinstance(a, Node)]
        if len(before) != 2 or not all(isinstance(a, ChannelTensor) for a in before):
            return None
        if before[0].shape != before[1].shape:
            return None
        for axis in range(second.dim()):
            try:
                wanted = match(line_of(before[0].labels[0], axis), line_of(first.labels[0], axis), self.span)
                have = match(line_of(before[1].labels[0], axis), line_of(second.labels[0], axis), self.span)
            except Mismatch:
                continue
            places = {place: k for k, place in enumerate(zip(*(x.tolist() for x in have), strict=True))}
            order = [places.get(place) for place in zip(*(x.tolist() for x in wanted), strict=True)]
            if None in order or order == list(range(len(order))):
                continue
            index = np.array(order, dtype=np.int64)
            label = compress(second.labels[0].index_select(axis, torch.from_numpy(index)))
            try:
                result = self._attempt(n, n.target, (first, self.activation(label, second.dtype)), kwargs)
            except _FAILURES:
                continue
            self.edits.inputs[n] = (1, axis, index)
            return result
        return None

    def _blame(self, n: Node, error: Exception) -> Mismatch:
        labels = [label for a in n.all_input_nodes for label in _labels(self.old.get(a))]
        return Mismatch(str(error).splitlines()[0] if str(error) else type(error).__name__, *labels)

    def _attempt(self, n: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.node, self.step, self.asked = n, 0, 0
        self.input = next((a for a in args if isinstance(a, ChannelTensor)), None)
        self.edits.inputs.pop(n, None)
        known = n not in self.first.unknown_nodes
        result = getattr(self, n.op)(target, args, kwargs) if known else self.unknown(n, args, kwargs)
        self._verify(self.old[n], result)
        _same_axes(self.old[n], result, self.proven.get(n))
        return result

    def _verify(self, old: Any, new: Any) -> None:
        if isinstance(old, ChannelTensor) and isinstance(new, ChannelTensor):
            if old.path is not None:
                return
            moving = moving_axes(*old.labels)
            for before, after in zip(old.labels, new.labels, strict=True):
                project(before, after, self.counts, moving)
        elif isinstance(old, list | tuple) and isinstance(new, list | tuple):
            if len(old) != len(new):
                raise Mismatch("another number of results", *_labels(old))
            for before, after in zip(old, new, strict=True):
                self._verify(before, after)

    def _gather_line(self, old_source: torch.Tensor, old: torch.Tensor) -> tuple[int, Ids] | None:
        """Return the axis and index that make the old value from the old source, if one gather does."""
        if old.dim() != old_source.dim():
            return None
        axes = [k for k in range(old.dim()) if varies(old_source, k)]
        for axis in axes:
            rest = [k for k in range(old.dim()) if k != axis]
            if any(old.shape[k] != old_source.shape[k] for k in rest):
                continue
            ids, wanted = line_of(old_source, axis).numpy(), line_of(old, axis).numpy()
            order = np.argsort(ids, kind="stable")
            if len(np.unique(ids)) != len(ids):
                continue
            found = order[np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)]
            if not np.array_equal(ids[found], wanted):
                continue
            made = core(old_source).index_select(axis, torch.from_numpy(found)).expand(old.shape)
            if bool((core(compress(made)) == core(old)).all()):
                return axis, found
        return None

    def _select(self, n: Node, source: Node) -> ChannelTensor | None:
        old, old_source, new_source = self.old.get(n), self.old.get(source), self.env.get(source)
        if not (
            isinstance(old, ChannelTensor)
            and isinstance(old_source, ChannelTensor)
            and isinstance(new_source, ChannelTensor)
            and len(old.labels) == len(old_source.labels) == len(new_source.labels) == 1
        ):
            return None
        found = self._gather_line(old_source.labels[0], old.labels[0])
        if found is None:
            return None
        axis, old_index = found
        label = new_source.labels[0]
        position, copies = lay_out(line_of(old.labels[0], axis), self.classes, self.counts, 0, frozenset())
        have, have_copies = match(line_of(old_source.labels[0], axis), line_of(label, axis), self.span)
        where = {(int(i), int(c)): k for k, (i, c) in enumerate(zip(have, have_copies, strict=True))}
        wanted = [where.get((int(old_index[i]), int(c))) for i, c in zip(position, copies, strict=True)]
        if any(w is None for w in wanted):
            return None
        index = np.array(wanted, dtype=np.int64)
        self.edits.selects[n] = (source, axis, index)
        return self.activation(compress(label.index_select(axis, torch.from_numpy(index))), new_source.dtype)


def _same_axes(old: Any, new: Any, proven: Any) -> None:
    """Let only those axes change that changed in the proof: of two readings of a literal size, always the same one.

    Raises:
        Mismatch: another axis changed.
    """
    if isinstance(proven, ChannelTensor) and isinstance(old, ChannelTensor) and isinstance(new, ChannelTensor):
        for axis, sizes in enumerate(zip(old.shape, new.shape, proven.shape, strict=True)):
            if sizes[0] != sizes[1] and sizes[0] == sizes[2]:
                raise Mismatch(f"axis {axis} has {sizes[1]} entries instead of {sizes[0]}", *old.labels)
    elif isinstance(proven, list | tuple) and isinstance(old, list | tuple) and isinstance(new, list | tuple):
        for before, after, shown in zip(old, new, proven, strict=True):
            _same_axes(before, after, shown)


def _give_up(n: Node, broken: Broken) -> Broken:
    if n.op == "output":
        raise broken.reason
    return broken


def _find_broken(value: Any) -> Broken | None:
    if isinstance(value, Broken):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((b for b in map(_find_broken, value) if b is not None), None)
    return None


def _labels(value: Any) -> list[torch.Tensor]:
    if isinstance(value, ChannelTensor):
        return list(value.labels)
    if isinstance(value, list | tuple):
        return [label for v in value for label in _labels(v)]
    return []


def _with_nodes(
    n: Node, args: tuple[Any, ...], kwargs: dict[str, Any], new_args: tuple[Any, ...], new_kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return new arguments in which everything that did not change is the node's own argument again."""

    def back(own: Any, value: Any, new: Any) -> Any:
        if new is value or (isinstance(new, int) and isinstance(value, int) and new == value):
            return own
        if isinstance(new, list | tuple) and isinstance(own, list | tuple) and len(new) == len(own):
            return type(new)(back(o, v, w) for o, v, w in zip(own, value, new, strict=True))
        return new

    padded = [*n.args, *[None] * (len(new_args) - len(n.args))]
    values = [*args, *[None] * (len(new_args) - len(args))]
    return (
        tuple(back(o, v, w) for o, v, w in zip(padded, values, new_args, strict=False)),
        {k: back(n.kwargs.get(k), kwargs.get(k), w) for k, w in new_kwargs.items()},
    )


def repairs(run: Check, n: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
    """Yield what a node may become at the new widths, most likely first."""
    kept = torch.fx.node.map_arg((n.args, n.kwargs), lambda a: _number_of(run.first.seen.get(a), run.env[a]))
    if any(isinstance(run.env[a], int | float) for a in n.all_input_nodes):
        yield n.target, *kept
    repair = _REPAIRS.get(n.target)
    old = run.old.get(n.all_input_nodes[0]) if n.all_input_nodes else None
    if repair is not None and args and isinstance(args[0], ChannelTensor) and isinstance(old, ChannelTensor):
        yield from repair(run, n, old, args, kwargs)


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
    index = project(old.labels[0], new.labels[0], run.counts)[axis]
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
}
