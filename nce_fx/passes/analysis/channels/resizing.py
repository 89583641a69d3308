"""Check a graph at new widths and repair it on the way, where it wrote sizes, cuts or orders down.

In this order: a literal size that follows its channels; a ``chunk`` that becomes a ``split`` with sizes; a gather in
the place of a node, or of a whole region of views and transposes, whose order no view can give any more. A ``max`` over
channels becomes one that shares its gradient among copies.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from nce_fx.ids.labels import Ids, bare, compress, core, line_of, placed, varies
from nce_fx.ids.value import ChannelTensor, activation
from nce_fx.ops import Absent
from nce_fx.ops.rules.repair import Call, view
from nce_fx.ops.rules.repeats import numbered
from nce_fx.passes.analysis.channels.check import Check
from nce_fx.passes.analysis.channels.edits import lay_out
from nce_fx.passes.analysis.channels.projection import Mismatch, moving_axes

_FAILURES = (Mismatch, RuntimeError, ValueError, IndexError, TypeError, AssertionError, AttributeError)


@dataclass(frozen=True)
class Broken:
    """A value that cannot be had at the new widths; what may become of it is a gather of ``source``."""

    source: Node
    reason: Mismatch


class Resizing(Check):
    """A check that repairs nodes as it goes."""

    any_broken = False
    """Whether a value could not be had so far: arguments need not be searched for one before that."""

    def run_node(self, n: Node) -> Any:
        """Run a node as it is, else as each of its repairs, else leave it to a gather further down."""
        if n.op in ("placeholder", "get_attr") or n in self.merged:
            return super().run_node(n)
        self.node = n
        args, kwargs = self.arguments(n)
        broken = _find_broken([args, kwargs]) if self.any_broken else None
        if broken is not None:
            if n in self.first.computing:
                raise broken.reason
            selected = self._select(n, broken.source)
            if selected is None and n.op == "output":
                raise broken.reason
            return broken if selected is None else selected
        if n.op == "output":
            return super().run_node(n)
        try:
            result = self._attempt(n, n.target, args, kwargs)
            shared = shared_maximum(self, n)
            if shared is not None:
                self.edits.targets[n], self.edits.arguments[n] = shared[0], shared[1:]
            return result
        except _FAILURES as error:
            first = error.alone() if isinstance(error, Mismatch) else self._blame(n, error)
            first.node = n
        for target, new_args, new_kwargs in repairs(self, n, args, kwargs):
            try:
                result = self._attempt(n, target, new_args, new_kwargs)
            except _FAILURES:
                continue
            self.edits.targets[n] = target
            self.edits.arguments[n] = _with_nodes(n, args, kwargs, new_args, new_kwargs)
            return result
        fitted = self._align(n, args, kwargs)
        if fitted is None:
            fitted = self._read_again(n)
        if fitted is not None:
            return fitted
        if n in self.first.computing:
            raise first
        source = next((a for a in n.all_input_nodes if isinstance(self.env.get(a), ChannelTensor)), None)
        if source is None:
            raise first
        selected = self._select(n, source)
        if selected is None:
            self.any_broken = True
            return Broken(source, first)
        return selected

    def _read_again(self, n: Node) -> Any:
        """Where operands do not fit, read a view that this node alone reads in the other way.

        Of 64 channels that were 32, ``view(2, -1, 32)`` makes two rows, and what it is joined to says that it is one.
        """
        for source in n.all_input_nodes:
            if not _is_view(self, source) or source in self.edits.arguments or len(source.users) > 1:
                continue
            before, (args, kwargs) = self.env[source], self.arguments(source)
            for target, new_args, new_kwargs in repairs(self, source, args, kwargs):
                try:
                    self.env[source] = self._attempt(source, target, new_args, new_kwargs)
                    result = self._attempt(n, n.target, *self.arguments(n))
                except _FAILURES:
                    self.env[source] = before
                    continue
                self.edits.targets[source] = target
                self.edits.arguments[source] = _with_nodes(source, args, kwargs, new_args, new_kwargs)
                return result
        return None

    def _align(self, n: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Where operands carry the same channels in other orders, gather one into the order of another."""
        operands = [k for k, a in enumerate(args) if isinstance(a, ChannelTensor) and len(a.labels) == 1]
        before = {k: self.old[a] for k in operands if isinstance(a := n.args[k], Node)}
        if not 2 <= len(before) == len(operands) or len({value.dim() for value in before.values()}) > 1:
            return None
        for moved, fixed in sorted(permutations(operands, 2), reverse=True):
            for axis in range(args[moved].dim()):
                index = self._reorder(before[fixed], args[fixed], before[moved], args[moved], axis)
                if index is None:
                    continue
                label = compress(args[moved].labels[0].index_select(axis, torch.from_numpy(index)))
                gathered = activation(self, label, args[moved].dtype)
                try:
                    result = self._attempt(n, n.target, (*args[:moved], gathered, *args[moved + 1 :]), kwargs)
                except _FAILURES:
                    continue
                if n not in self.edits.inputs:
                    self.edits.inputs[n] = (moved, axis, index)
                    return result
        # A node has one argument gathered: a constant that it meets already was.
        self.edits.inputs.pop(n, None)
        return None

    def _reorder(
        self, old_fixed: ChannelTensor, fixed: ChannelTensor, old: ChannelTensor, value: ChannelTensor, axis: int
    ) -> Ids | None:
        """Return the index that gives a value the order of another along an axis; ``None`` where none has to or can."""
        if old_fixed.shape[axis] != old.shape[axis]:
            return None
        try:
            wanted = self.match(line_of(old_fixed.labels[0], axis), line_of(fixed.labels[0], axis))
            have = self.match(line_of(old.labels[0], axis), line_of(value.labels[0], axis))
        except Mismatch:
            return None
        places = {place: k for k, place in enumerate(zip(*(x.tolist() for x in have), strict=True))}
        order = [places.get(place) for place in zip(*(x.tolist() for x in wanted), strict=True)]
        if None in order or len(order) != len(places) or order == list(range(len(order))):
            return None
        return np.array(order, dtype=np.int64)

    def _blame(self, n: Node, error: Exception) -> Mismatch:
        labels = [label for a in n.all_input_nodes for label in _labels(self.old.get(a))]
        return Mismatch(str(error).splitlines()[0] if str(error) else type(error).__name__, *labels)

    def _attempt(self, n: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.node, self.step, self.asked, self.views = n, 0, 0, 0
        self.input = next((a for a in args if isinstance(a, ChannelTensor)), None)
        self.edits.inputs.pop(n, None)
        self.edits.repeats.pop(n, None)
        self.edits.products.pop(n, None)
        self.edits.results.pop(n, None)
        known = n not in self.first.unknown_nodes
        result = getattr(self, n.op)(target, args, kwargs) if known else self.unknown(n, args, kwargs)
        self.complete()
        self._verify(self.old[n], result)
        _same_axes(self.old[n], result, self.proven.get(n))
        _same_batch(self, n, result)
        return result

    def _verify(self, old: Any, new: Any) -> None:
        if isinstance(old, ChannelTensor) and isinstance(new, ChannelTensor):
            if old.path is not None:
                return
            moving = moving_axes(*old.labels) if len(old.labels) > 1 else frozenset()
            for before, after in zip(old.labels, new.labels, strict=True):
                self.project(before, after, moving)
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
            if not placed(core(old_source)):
                old = bare(core(old)).expand(old.shape)  # what is picked more than once is told apart there
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
        position, copies = lay_out(bare(line_of(old.labels[0], axis)), self.classes, self.counts, 0, frozenset())
        have, have_copies = self.match(line_of(old_source.labels[0], axis), line_of(label, axis))
        where = {(int(i), int(c)): k for k, (i, c) in enumerate(zip(have, have_copies, strict=True))}
        wanted = [where.get((int(old_index[i]), int(c))) for i, c in zip(position, copies, strict=True)]
        if any(w is None for w in wanted):
            return None
        index = np.array(wanted, dtype=np.int64)
        self.edits.selects[n] = (source, axis, index)
        picked = compress(label.index_select(axis, torch.from_numpy(index)))
        if placed(core(old.labels[0])) and not placed(core(old_source.labels[0])):
            picked = numbered(picked, axis, len(index))
        return activation(self, picked, new_source.dtype)


def repairs(run: Resizing, n: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
    """Yield what a node may become at the new widths, most likely first."""
    # Numbers as the first run computed them, so that a width that they were computed from does not change them.
    numbers = {a for a in n.all_input_nodes if isinstance(run.env[a], int | float)}
    if numbers:
        yield (
            n.target,
            *torch.fx.node.map_arg((n.args, n.kwargs), lambda a: run.first.seen.get(a) if a in numbers else run.env[a]),
        )
    op = None if n.op == "call_module" else run.ops.of_call(n.target)
    repair = None if op is None or isinstance(op.repair, Absent) else op.repair
    old = run.old.get(n.all_input_nodes[0]) if n.all_input_nodes else None
    if repair is not None and args and isinstance(args[0], ChannelTensor) and isinstance(old, ChannelTensor):
        yield from repair(run, n, old, args, kwargs)


def _is_view(run: Resizing, n: Node) -> bool:
    op = None if n.op == "call_module" else run.ops.of_call(n.target)
    return op is not None and op.repair is view


def _same_batch(run: Resizing, n: Node, new: Any) -> None:
    """Let a view of one sample, whose ``-1`` would take what channels grow by, make no second one of their copies.

    Raises:
        Mismatch: it would, though no axis of one entry has grown before.
    """
    if not _is_view(run, n):
        return
    source = n.all_input_nodes[0]
    old, before, after = run.old[n], run.old[source], run.env[source]
    if not all(isinstance(each, ChannelTensor) and each.dim() for each in (old, new, before, after)):
        return
    one = old.shape[0] == 1 != new.shape[0] and len(old.labels) == 1
    grown = any(a == 1 != b for a, b in zip(before.shape, after.shape, strict=True))
    if one and not grown and any(varies(old.labels[0], axis) for axis in range(1, old.dim())):
        raise Mismatch(f"axis 0 has {new.shape[0]} entries instead of 1", *old.labels)


def shared_maximum(run: Resizing, n: Node) -> Call | None:
    """Return the call that takes a maximum over channels whose number changed; ``None`` for any other node.

    Of equal values, ``max(dim)`` gives all gradient to the first, so that copies would get none; ``amax`` shares it.
    """
    source = n.args[0] if n.args else None
    if not (n.target is operator.getitem and n.args[1] == 0) and not (n.target is getattr and n.args[1] == "values"):
        return None
    op = run.ops.of_call(source.target) if isinstance(source, Node) and source.op != "call_module" else None
    if op is None or not op.evenly or not isinstance(source, Node) or not isinstance(source.args[0], Node):
        return None
    old, new = run.old.get(source.args[0]), run.env.get(source.args[0])
    axis = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim")
    if not (isinstance(old, ChannelTensor) and isinstance(new, ChannelTensor) and isinstance(axis, int)):
        return None
    if old.shape[axis] == new.shape[axis]:
        return None
    keepdim = source.args[2] if len(source.args) > 2 else source.kwargs.get("keepdim", False)
    return getattr(torch, op.evenly), (source.args[0], axis, keepdim), {}


def shapes_of(value: Any) -> Any:
    """Return the shape of what a node returned, through lists and tuples; ``None`` for what has none."""
    if isinstance(value, ChannelTensor):
        return value.shape
    return [shapes_of(item) for item in value] if isinstance(value, list | tuple) else None


def _same_axes(old: Any, new: Any, proven: Any) -> None:
    """Let only those axes change that changed in the proof: of two readings of a literal size, always the same one.

    Raises:
        Mismatch: another axis changed.
    """
    if isinstance(proven, torch.Size) and isinstance(old, ChannelTensor) and isinstance(new, ChannelTensor):
        if old.shape == new.shape:
            return
        for axis, sizes in enumerate(zip(old.shape, new.shape, proven, strict=True)):
            if sizes[0] != sizes[1] and sizes[0] == sizes[2]:
                raise Mismatch(f"axis {axis} has {sizes[1]} entries instead of {sizes[0]}", *old.labels)
    elif isinstance(proven, list) and isinstance(old, list | tuple) and isinstance(new, list | tuple):
        for before, after, shown in zip(old, new, proven, strict=True):
            _same_axes(before, after, shown)


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
        # A parameter that nothing asked for its labels has met no channels, and gets none now.
        return list(value.labels) if value.labelled else []
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
