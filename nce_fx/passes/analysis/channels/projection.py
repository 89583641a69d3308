"""How a value at new widths repeats the one at the old: whole slices, copied or left out, told apart by their ids.

A code is ``id + copy * span``. That every value is its old self with whole slices repeated, and equal copies wherever
values meet, is what makes widening keep the function and narrowing a removal.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import numpy as np
import torch
from torch.fx import Node

from nce_fx.ids.labels import FIRST_ID, Ids, Label, bare, core, line_of, memory_key, placed, ranks, varies
from nce_fx.ids.space import ParameterAxis

_MOST_HELD = 2**27
"""Bytes of labels whose comparisons are kept, counted once for each."""


class Mismatch(Exception):
    """Two labels that met in the first run do not meet at the new widths; ``blame`` has the ids of their channels."""

    def __init__(self, reason: str, *blame: torch.Tensor) -> None:
        super().__init__(reason)
        self.reason = reason
        self.node: Node | None = None
        self.other: Mismatch | None = None
        """What did not meet of the channels for which no layout is left, where others had been to blame first."""
        self.modes: Mapping[tuple[str, int], int] = {}
        """The layouts of other channels that had held until then."""
        self.blame = (
            np.unique(np.concatenate([np.unique(bare(core(b).numpy())) for b in blame])) if blame else np.empty(0)
        )

    def alone(self) -> Self:
        """Return it without the frames it came through: they hold every value of a run."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class Relayout(Exception):
    """The channels of a parameter's axis arrive in another order; the run is made again with that order."""

    def __init__(self, axis: ParameterAxis, index: Ids, copies: Ids) -> None:
        super().__init__(f"{axis} follows another order")
        self.axis, self.index, self.copies = axis, index, copies


class AstrayError(RuntimeError):
    """A rule asks something at the new widths that it did not ask in the first run, so no decision answers it."""


def match(old: torch.Tensor, new: torch.Tensor, span: int) -> tuple[Ids, Ids]:
    """Return for each entry of a new line the old entry it repeats, and its copy number.

    Entries are told apart by (id, rank among equals): a flattened channel repeats its id with different values.

    Raises:
        Mismatch: the new line is not the old one with whole channels repeated or left out.
    """
    old_ids, codes = old.numpy(), new.numpy()
    copies = bare(codes) // span
    if placed(old_ids) and placed(codes):
        known, codes = np.unique(old_ids), codes - copies * span
        new_ids = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        if not np.array_equal(known[new_ids], codes):
            raise Mismatch("channels arrive that were not there", old, bare(new) % span)
        old_ids = np.searchsorted(known, old_ids)
        base = len(known)
        codes = new_ids + copies * base
    else:
        # A producer of one channel has no line that places could tell apart: the order of equals is all there is.
        old_ids, codes = bare(old_ids), bare(codes)
        new_ids, base = codes % span, span
    if len(old_ids) == len(new_ids) and not copies.any() and np.array_equal(old_ids, new_ids):
        return np.arange(len(old_ids)), copies
    if (old_ids[1:] > old_ids[:-1]).all():
        found = np.minimum(np.searchsorted(old_ids, new_ids), len(old_ids) - 1)
        if not np.array_equal(old_ids[found], new_ids):
            raise Mismatch("channels arrive that were not there", old, bare(new) % span)
        if np.bincount(found + copies * len(old_ids)).max(initial=0) > 1:
            raise Mismatch("a copy arrives twice", old, bare(new) % span)
        return found, copies
    old_ranks, new_ranks = ranks(old_ids), ranks(codes)
    width = int(max(old_ranks.max(initial=0), new_ranks.max(initial=0))) + 1
    old_keys, new_keys = old_ids * width + old_ranks, new_ids * width + new_ranks
    order = np.argsort(old_keys)
    position = np.searchsorted(old_keys[order], new_keys)
    found = order[np.minimum(position, len(order) - 1)]
    if not np.array_equal(old_keys[found], new_keys):
        raise Mismatch("channels arrive that were not there", old, bare(new) % span)
    if width > 1:
        unique, counts = np.unique(codes, return_counts=True)
        old_unique, old_counts = np.unique(old_ids, return_counts=True)
        if not np.array_equal(counts, old_counts[np.searchsorted(old_unique, unique % base)]):
            raise Mismatch("a channel arrives in part", old, bare(new) % span)
    return found, copies


def moving_axes(*labels: Label) -> frozenset[int]:
    """Return the axes along which any of several labels of one value varies."""
    return frozenset(axis for label in labels for axis in range(label.dim()) if varies(label, axis))


@dataclass(frozen=True)
class Projection:
    """How a label at new widths repeats the one at the old."""

    maps: tuple[Ids | None, ...]
    """For each axis: which old slice every new slice repeats; ``None`` for axes that carry no channels."""
    resized: tuple[int, ...]
    """Axes that carry no channels of this label, and have another length though the label names channels."""


class Projections:
    """Compares the values of one run with those of the first.

    Most values pass a label on as it is, from a convolution through its norm and activation to the next one. Labels are
    never written to, so those that lie in the same place are equal, and are compared once.
    """

    def __init__(self, counts: Ids) -> None:
        self.counts = counts
        """How often each id must be there."""
        self.span = len(counts)
        self._lines: dict[Any, tuple[Any, tuple[Ids, Ids]]] = {}
        self._same: dict[tuple[int, int], Projection] = {}
        """By the identity of two labels, which ``_labels`` keeps."""
        self._labels: dict[Any, tuple[Any, Projection]] = {}
        self._held = 0

    def match(self, old: torch.Tensor, new: torch.Tensor) -> tuple[Ids, Ids]:
        """Return for each entry of a new line the old entry it repeats, and its copy number.

        Raises:
            Mismatch: the new line is not the old one with whole channels repeated or left out.
        """
        key = (*memory_key(old), *memory_key(new))
        known = self._lines.get(key)
        if known is None:
            # What is compared is kept, or another label could come to lie in its place.
            self._hold(new)
            known = self._lines[key] = (old, new), match(old, new, self.span)
        return known[1]

    def _hold(self, new: torch.Tensor) -> None:
        """Make room for a label that is kept: where tokens differ, one takes many megabytes."""
        self._held += new.untyped_storage().nbytes()
        if self._held > _MOST_HELD:
            for kept in (self._lines, self._same, self._labels):
                kept.clear()
            self._held = new.untyped_storage().nbytes()

    def know(self, old: torch.Tensor, new: torch.Tensor, index: Ids, copies: Ids) -> None:
        """Take down how a new line was made from the old one: it need not be compared."""
        self._lines[(*memory_key(old), *memory_key(new))] = (old, new), (index, copies)

    def project(self, old: Label, new: Label, moving: frozenset[int] = frozenset()) -> tuple[Ids | None, ...]:
        """Return for each axis which old slice every new slice repeats; ``None`` for axes that carry no channels.

        Axes in ``moving`` carry channels of another label of the same value, and may change their length for that.

        Raises:
            Mismatch: the new value is not the old one with whole slices repeated or left out.
        """
        found = self._same.get((id(old), id(new)))
        if found is None:
            key = (*memory_key(old), *memory_key(new))
            known = self._labels.get(key)
            if known is None:
                self._hold(new)
                known = self._labels[key] = (old, new), self._project(old, new)
                self._same[id(old), id(new)] = known[1]
            found = known[1]
        for axis in found.resized:
            if axis not in moving:
                raise Mismatch(f"axis {axis} has {new.shape[axis]} entries instead of {old.shape[axis]}", old)
        return found.maps

    def _project(self, old: Label, new: Label) -> Projection:
        if old.dim() != new.dim():
            raise Mismatch("another number of axes", old)
        if not old.numel() and not new.numel():
            # No elements (a model without register tokens): nothing to compare.
            return Projection((None,) * old.dim(), ())
        sizes, longer = tuple(old.shape), tuple(new.shape)
        strides = zip(sizes, old.stride(), longer, new.stride(), strict=True)
        moved = [axis for axis, (a, s, b, t) in enumerate(strides) if (a > 1 and s) or (b > 1 and t)]
        for axis in moved:
            # Copies of a channel laid out along places, by a view whose -1 took the growth.
            if 1 < sizes[axis] != longer[axis] and not varies(old, axis):
                raise Mismatch(f"axis {axis} has {longer[axis]} entries instead of {sizes[axis]}", old)
        still = [axis for axis, size in enumerate(sizes) if size != longer[axis] and axis not in moved]
        resized = tuple(still) if still and bool((core(old) >= FIRST_ID).any()) else ()
        if len(moved) == 1:
            # One line is all there is, and how it matches is all there is to see.
            (axis,) = moved
            line = line_of(old, axis)
            index, _ = self.match(line, line_of(new, axis))
            maps = tuple(index if k == axis else None for k in range(old.dim()))
            wanted = self.counts[bare(line.numpy())].sum()
        else:
            maps = self._slices(old, new, moved)
            cropped = [size if axis in moved else 1 for axis, size in enumerate(sizes)]
            before = old.as_strided(cropped, old.stride(), old.storage_offset())
            wanted = self.counts[bare(before.numpy())].sum()
        # An only channel moves along no axis: without this its copies could go missing unseen.
        if prod(longer[axis] for axis in moved) != wanted:
            raise Mismatch("some of its channels are missing", old)
        return Projection(maps, resized)

    def _slices(self, old: Label, new: Label, moved: list[int]) -> tuple[Ids | None, ...]:
        """Match the lines along each axis that varies, and compare every element with what they say."""
        expected, ids = core(old), _without_copies(core(new), self.span)
        places = placed(expected), placed(ids)
        if places != (True, True):
            expected, ids = (bare(x) if at else x for x, at in zip((expected, ids), places, strict=True))
        through = _first_place(expected, ids)
        maps: list[Ids | None] = [None] * old.dim()
        for axis in moved:
            index, _ = self.match(line_of(old, axis) if through is None else through[axis], line_of(new, axis))
            maps[axis] = index
            if expected.shape[axis] == 1 and old.shape[axis] > 1:
                expected = expected.expand(*expected.shape[:axis], len(index), *expected.shape[axis + 1 :])
            elif len(index) != expected.shape[axis] or not np.array_equal(index, np.arange(len(index))):
                expected = expected.index_select(axis, torch.from_numpy(index))
        if not bool((expected == ids).all()):
            raise Mismatch("its channels are in another order", old)
        return tuple(maps)


def _without_copies(new: torch.Tensor, span: int) -> torch.Tensor:
    """Return which channel, and at which place, each entry is."""
    copies = bare(new)
    return torch.sub(new, copies.div_(span, rounding_mode="floor").mul_(span), out=copies)


def _first_place(old: torch.Tensor, new: torch.Tensor) -> list[torch.Tensor] | None:
    """Return the old lines through the element that stands first in the new value; ``None`` where it stood first."""
    if old.numel() == 0 or new.numel() == 0 or old.reshape(-1)[0] == new.reshape(-1)[0]:
        return None
    places = (old == new.reshape(-1)[0]).nonzero()
    if len(places) == 0:
        raise Mismatch("channels arrive that were not there", old)
    place = places[0].tolist()
    return [old[tuple(place[:axis])].movedim(0, -1)[tuple(place[axis + 1 :])] for axis in range(old.dim())]
