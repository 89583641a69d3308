"""What a call may become at new widths: sizes and cuts that it wrote down follow their channels.

A literal size grows with what it counts, a ``chunk`` becomes a ``split`` with sizes, a ``squeeze`` says its axes. A
repair yields the calls, most likely first, and one that checks is taken.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch._ops import OpOverload
from torch.fx import Node

from nce_fx.ids.labels import spans, varies
from nce_fx.ids.value import ChannelTensor

aten = torch.ops.aten
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""What a node may become: target, arguments, keyword arguments, with values in the place of nodes."""


class NewWidths(Protocol):
    """The run at new widths, as far as repairs know it: ``run.old[node]`` is what a node was in the first run."""

    old: Mapping[Node, Any]
    """The values of the first run."""
    project: Callable[..., Any]
    """(old label, new label) -> for each axis the old position of every new one."""


Repair = Callable[[NewWidths, Node, ChannelTensor, tuple[Any, ...], dict[str, Any]], Iterator[Call]]
"""(run, node, old value of the first argument, new arguments, new keyword arguments) -> calls."""


def view(run: NewWidths, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
    """Yield ``x.view(2, 96)`` for ``x.view(2, 64)``: one axis of each run whose product changed takes the change."""
    if len(args) > 1 and isinstance(args[1], torch.dtype):
        return  # it says a type, and no size
    result = run.old[n]
    flat = len(args) > 1 and isinstance(args[1], int)
    given = list(args[1:] if flat else args[1]) if len(args) > 1 else list(kwargs.get("shape", kwargs.get("size", [])))
    for sizes in _new_sizes(tuple(old.shape), tuple(args[0].shape), tuple(result.shape), result):
        merged = [g if g in (-1, s) else s for g, s in zip(given, sizes, strict=True)]
        if merged.count(-1) == 1 and -1 in given:
            yield n.target, (args[0], *(merged if flat else [type(given)(merged)])), {}
        yield n.target, (args[0], *(sizes if flat else [list(sizes)])), {}


def unflatten(
    run: NewWidths, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]
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
    for own, made in spans(old_in, old_out):
        before, after = (prod(sizes[k] for k in own) for sizes in (old_in, new_in))
        if before != after:
            options = [(k, old_out[k] * after // before) for k in made if old_out[k] * after % before == 0]
            moving = [o for o in options if any(varies(label, o[0]) for label in result.labels)]
            choices.append(moving + [o for o in options if o not in moving])
    for choice in product(*choices):
        sizes = list(old_out)
        for axis, size in choice:
            sizes[axis] = size
        yield sizes


def _pieces(run: NewWidths, old: ChannelTensor, new: ChannelTensor, axis: int, bounds: list[int]) -> list[int] | None:
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


def split(run: NewWidths, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
    """``chunk(x, 2)``, ``split(x, 4)``: a cut with the sizes of its pieces."""
    axis = int(args[2] if len(args) > 2 else kwargs.get("dim", 0)) % old.dim()
    sizes = [piece.shape[axis] for piece in run.old[n]]
    places = _pieces(run, old, args[0], axis, list(np.cumsum([0, *sizes])))
    if places is not None:
        overload = aten.split_with_sizes.default if isinstance(n.target, OpOverload) else torch.split
        target = "split" if isinstance(n.target, str) else overload
        yield target, (args[0], [int(s) for s in np.diff(places)], axis), {}


def items(run: NewWidths, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
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


def cut(run: NewWidths, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
    """``aten.slice(x, 1, 0, 32)``: bounds follow their channels."""
    axis = int(args[1]) % old.dim() if len(args) > 1 else 0
    start, stop, _ = slice(*args[2:4]).indices(old.shape[axis])
    places = _pieces(run, old, args[0], axis, [start, stop])
    if places is not None and (len(args) < 5 or args[4] == 1):
        yield n.target, (args[0], axis, places[0], places[1]), {}


def narrow(
    run: NewWidths, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Call]:
    """``narrow(x, 1, 0, 32)``: what it keeps follows its channels."""
    axis, start, length = int(args[1]) % old.dim(), int(args[2]), int(args[3])
    places = _pieces(run, old, args[0], axis, [start, start + length])
    if places is not None:
        yield n.target, (args[0], axis, places[0], places[1] - places[0]), {}


def expand(
    run: NewWidths, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Call]:
    """Yield ``expand(x, -1, -1, 7, 7)`` for ``expand(x, -1, 32, 7, 7)``: axes that are not stretched keep theirs."""
    flat = len(args) > 1 and isinstance(args[1], int)
    given = list(args[1:] if flat else args[1])
    offset = len(given) - old.dim()
    sizes = [-1 if k >= offset and old.shape[k - offset] > 1 else size for k, size in enumerate(given)]
    yield n.target, (args[0], *(sizes if flat else [sizes])), {}


def squeeze(
    run: NewWidths, n: Node, old: ChannelTensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Call]:
    """``squeeze(x)`` of whatever has one entry: the axes that had, and not one with one channel left."""
    if len(args) == 1 and not kwargs:
        axes = tuple(axis for axis, size in enumerate(old.shape) if size == 1)
        yield aten.squeeze.dims if isinstance(n.target, OpOverload) else n.target, (args[0], axes), {}
