"""The values of the channel analysis: axes, parts, groups, and the graph of them.

A *part* is a set of channels that are interchangeable: they live on the same axes in the same way. A *group* is the
parts that share an axis of some producer. An axis is as long as its fixed positions and its parts make it:

    width(axis) = fixed + sum over parts of (positions per channel x width of the part)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import networkx as nx

from nce_fx.errors import ChannelError
from nce_fx.frozen import Frozen


@dataclass(frozen=True)
class AxisWidth:
    """The length of one axis as an affine function of the widths of parts."""

    fixed: int
    terms: tuple[tuple[int, Fraction], ...] = ()
    """Pairs (index of the part, positions of the axis per channel of the part)."""

    def at(self, part_widths: tuple[int, ...]) -> int:
        """Return the length of the axis at these widths of all parts."""
        # Factors are whole numbers but for a few, and those multiply many times faster.
        factors = ((f.numerator if f.denominator == 1 else f, part) for part, f in self.terms)
        return int(self.fixed + sum(factor * part_widths[part] for factor, part in factors))


@dataclass(frozen=True)
class ChannelPart:
    """Channels on the same parameter axes, such as the 16 of ``conv1`` and ``bn1``, each with one position there."""

    group: str
    width: int
    """Positions on the group's axis, or on its own longest one where it lives on other axes only."""
    step: int
    """Positions that must be copied together: the block of a grouped conv, a head, a whole normalized axis."""
    free: bool
    on_axis: bool = True
    """Whether the part lies on the group's axis; one that does not follows the group by ratio."""


@dataclass(frozen=True)
class ChannelGroup:
    """Layers whose output channels must change together, such as ``stem`` and ``back`` in ``x + back(y)``."""

    id: str
    width: int
    step: int
    """Legal widths are ``min_width`` and steps from there on."""
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    pinned: str | None
    """Why the width cannot change, in words; ``None`` where it can."""
    parts: tuple[int, ...] = field(default=(), repr=False)
    """Indices into ``ChannelGraph.parts``."""
    min_width: int = 1
    sums: bool = False
    """Whether activations are added up in it: a residual stream, which holds all that its blocks hand on."""


@dataclass(frozen=True)
class ComputedWeight:
    """A weight that the graph computes from parameters, such as a standardized one."""

    nodes: tuple[str, ...]
    """The nodes that only it needs: ``("mean", "sub", "mul")``."""
    parts: tuple[int, ...]
    """Where the width of one of these parts changes, the weight becomes a parameter, and the nodes go."""


@dataclass(frozen=True)
class ChannelGraph(Frozen):
    """Every channel group of a traced model, such as ``graph["conv1"]``, and the axes they govern."""

    groups: tuple[ChannelGroup, ...]
    parts: tuple[ChannelPart, ...] = field(repr=False)
    parameter_axes: Mapping[str, tuple[AxisWidth, ...]] = field(repr=False)
    """For each parameter and buffer by its path: the width of each of its axes."""
    value_axes: Mapping[str, tuple[AxisWidth, ...]] = field(repr=False)
    """For each graph node whose output is one tensor: the width of each of its axes."""
    computed_weights: tuple[ComputedWeight, ...] = field(default=(), repr=False)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __getitem__(self, group_id: str) -> ChannelGroup:
        for group in self.groups:
            if group.id == group_id:
                return group
        known = ", ".join(group.id for group in self.groups[:8])
        raise ChannelError(f"no channel group {group_id!r}; the model has {known} ...: see `nce-fx analyze --groups`")

    def group_of(self, path: str) -> ChannelGroup | None:
        """Return the group that a module or parameter produces into, or ``None``."""
        return next((group for group in self.groups if path in group.producers), None)

    @property
    def widths(self) -> dict[str, int]:
        """The original width of every group."""
        return {group.id: group.width for group in self.groups}

    def part_widths(self, widths: Mapping[str, int]) -> tuple[int, ...]:
        """Return the width of every part when the named groups take these widths and the others stay.

        Raises:
            ChannelError: an unknown group, a pinned one, or a width that is not legal; the message says which are.
        """
        result = [part.width for part in self.parts]
        for group_id, width in widths.items():
            group = self[group_id]
            if width == group.width:
                continue
            if group.pinned is not None:
                raise ChannelError(f"group {group_id} is pinned at {group.width} channels: {group.pinned}")
            if width < group.min_width or (width - group.width) % group.step:
                raise ChannelError(
                    f"group {group_id} cannot be {width} wide: choose {group.min_width} or steps of {group.step}"
                    f" from there on (it is {group.width})"
                )
            share_out(self, group, width, result)
        return tuple(result)

    def to_networkx(self) -> nx.DiGraph:
        """Return a graph of groups and layers, with edges producer -> group -> consumer."""
        graph = nx.DiGraph()
        for group in self.groups:
            graph.add_node(group.id, kind="group", width=group.width, step=group.step, pinned=group.pinned)
            for producer in group.producers:
                graph.add_edge(("layer", producer), group.id, role="produces")
            for consumer in group.consumers:
                graph.add_edge(group.id, ("layer", consumer), role="is consumed by")
        return graph


def least(width: int, step: int) -> int:
    """Return the smallest positive width from which steps lead to this one: a part may have a smaller step."""
    return (width - 1) % step + 1


def share_out(graph: ChannelGraph, group: ChannelGroup, width: int, result: list[int]) -> None:
    """Give each free part its share of a group's new width, writing into ``result``.

    Largest remainder in units of the group's step: shares are proportional, sum to the width exactly, and leave every
    part at least its ``least``. Parts away from the group's own axis follow by ratio.
    """
    own = [index for index in group.parts if graph.parts[index].free]
    free = [index for index in own if graph.parts[index].on_axis]
    fixed = group.width - sum(graph.parts[index].width for index in free)
    bases = [least(graph.parts[index].width, group.step) for index in free]
    units = (width - fixed - sum(bases)) // group.step + len(free)
    sizes = [(graph.parts[index].width - base) // group.step + 1 for index, base in zip(free, bases, strict=True)]
    total = sum(sizes)
    exact = [Fraction(units * size, total) for size in sizes]
    shares = [max(1, int(value)) for value in exact]
    by_remainder = sorted(range(len(free)), key=lambda k: (shares[k] - exact[k], k))
    position = 0
    while sum(shares) != units:
        k = by_remainder[position % len(free)]
        if sum(shares) < units:
            shares[k] += 1
        elif shares[k] > 1:
            shares[k] -= 1
        position += 1
    for index, base, share in zip(free, bases, shares, strict=True):
        result[index] = base + (share - 1) * group.step
    for index in own:
        part = graph.parts[index]
        if not part.on_axis:
            classes = Fraction(width * part.width, group.width * part.step)
            result[index] = max(1, round(classes)) * part.step
