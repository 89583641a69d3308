"""From ties to groups: classes of channels copied together, parts of classes that live alike, groups of parts.

class   channels that ties join: a channel with all its partners, a block, a head, a normalized axis
part    classes with the same number of positions on the same axes
group   parts that share an axis of some producer
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.fx import GraphModule

from nce_fx.errors import where
from nce_fx.ids.labels import FIRST_ID, Ids, bare, memory_key
from nce_fx.ids.space import ParameterAxis, Pin
from nce_fx.ops.left_whole import LEFT_WHOLE
from nce_fx.passes.analysis.channels.tie import Tie


@dataclass(frozen=True)
class Part:
    """Classes of tied channels on the same parameter axes, with as many positions on each: one, or a block."""

    classes: Ids
    axes: Mapping[ParameterAxis, int]
    """For each producer axis: positions per class."""
    pinned: Pin | None


@dataclass(frozen=True)
class Group:
    """Parts on the same producer axes, such as ``("stem.weight", 0)``; the group's width is the length of ``axis``."""

    axis: ParameterAxis
    width: int
    axes: tuple[ParameterAxis, ...]
    parts: tuple[Part, ...]

    def positions(self, part: Part) -> int:
        """Return how many positions one class of a part has: on the group's axis, else on its longest own one."""
        return part.axes.get(self.axis) or max(part.axes.values())

    @property
    def free(self) -> tuple[Part, ...]:
        """The parts whose width can change."""
        return tuple(part for part in self.parts if part.pinned is None)

    @property
    def step(self) -> int:
        """Positions that every change is a multiple of."""
        own = [part.axes[self.axis] for part in self.free if self.axis in part.axes]
        return lcm(*own) if own else 1


def classes_of(tie: Tie) -> Ids:
    """Return for each id the number of its class (connected component of the ties)."""
    count = tie.space.end
    if not tie.pairs:
        return np.arange(count)
    a = np.concatenate([pair[0] for pair in tie.pairs])
    b = np.concatenate([pair[1] for pair in tie.pairs])
    graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    result: Ids = labels.astype(np.int64)
    return result


def _inside_left_whole(tie: Tie) -> Iterator[Pin]:
    """Yield pins for modules left whole that multiply more than their layers do: the cost takes that for constant."""
    gm = tie.module
    assert isinstance(gm, GraphModule)
    costs = gm.meta.get(LEFT_WHOLE, {})
    for node in gm.graph.nodes if costs else ():
        if node.op != "call_module" or node.target not in costs or tie.ops.nearest(gm, node) is not None:
            continue
        reason = f"{node.target} is left whole, and what it multiplies at other widths is not known, at {where(node)}"
        # What is made inside, and what is read there.
        for axis in dict.fromkeys((*tie.space.axes, *tie.axis_lines)):
            if axis[0].startswith(f"{node.target}."):
                read = bare(tie.axis_lines[axis].numpy()) if axis in tie.axis_lines else tie.space.own(axis)
                ids = np.concatenate([read.reshape(-1), tie.space.own(axis)])
                yield Pin(ids[ids >= FIRST_ID], node.name, reason)


def pins_by_class(tie: Tie, classes: Ids) -> dict[int, Pin]:
    """Return the first pin that hits each class, those for axes that both make and read channels included."""
    pins = [*tie.pins, *_inside_left_whole(tie)]
    for axis, roles in tie.roles.items():
        if "in" in roles and len(roles) > 1:
            ids = np.concatenate([tie.axis_lines[axis].numpy(), tie.space.own(axis)])
            _, node = tie.producers.get(axis, (axis[0], None))
            at = f", at {where(node)}" if node is not None else ""
            reason = f"{axis[0]} both makes and reads them (tied weights: untie them to free it){at}"
            pins.append(Pin(ids[ids >= FIRST_ID], axis[0], reason))
    result: dict[int, Pin] = {}
    for pin in pins:
        for number in np.unique(classes[pin.ids]):
            result.setdefault(int(number), pin)
    return result


def groups_of(tie: Tie, classes: Ids, pins: Mapping[int, Pin]) -> tuple[Group, ...]:
    """Return the groups in the order of their first producers."""
    members: dict[ParameterAxis, tuple[Ids, Ids]] = {}
    for axis in tie.producers:
        members[axis] = _counted(classes[tie.space.own(axis)])
    order = list(tie.producers)
    # Axes joined through classes: a bipartite graph of axes and classes, whose components are the groups.
    rows = np.concatenate([np.full(len(members[a][0]), k) for k, a in enumerate(order)]) if order else np.empty(0, int)
    columns = np.concatenate([members[a][0] for a in order]) if order else np.empty(0, int)
    size = len(order) + int(classes.max(initial=0)) + 1
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns + len(order))), shape=(size, size))
    _, components = connected_components(graph, directed=False)
    by_component: dict[int, list[ParameterAxis]] = {}
    for k, axis in enumerate(order):
        by_component.setdefault(int(components[k]), []).append(axis)
    readers = _readers(
        tie, classes, members, {axis: k for k, axes in enumerate(by_component.values()) for axis in axes}
    )
    distinct = list({id(pin): pin for pin in pins.values()}.values())
    index_of = {id(pin): k + 1 for k, pin in enumerate(distinct)}
    pin_of = np.zeros(int(classes.max(initial=0)) + 1, dtype=np.int64)
    pin_of[list(pins)] = [index_of[id(pin)] for pin in pins.values()]
    return tuple(
        _group(axes, members, pin_of, distinct, readers.get(k, {})) for k, axes in enumerate(by_component.values())
    )


def _counted(numbers: Ids) -> tuple[Ids, Ids]:
    """Return the numbers that occur, in order, and how often each does; most axes have each once, in order."""
    if (numbers[1:] > numbers[:-1]).all():
        return numbers, np.ones(len(numbers), dtype=np.int64)
    return np.unique(numbers, return_counts=True)


def _readers(
    tie: Tie, classes: Ids, members: Mapping[ParameterAxis, tuple[Ids, Ids]], group_of: Mapping[ParameterAxis, int]
) -> dict[int, dict[ParameterAxis, tuple[Ids, Ids]]]:
    """Return for each group the other axes that carry some of its classes, but not all of them equally often.

    What is read apart is a part of its own, or the length of what reads it would not follow from the group's width.
    """
    owner = np.full(int(classes.max(initial=0)) + 1, -1, dtype=np.int64)
    for axis, k in group_of.items():
        owner[members[axis][0]] = k
    sizes = np.bincount(owner[owner >= 0], minlength=len(group_of))
    result: dict[int, dict[ParameterAxis, tuple[Ids, Ids]]] = {}
    # Norms and activations have many parameters that follow one line: one of them says it.
    first_of = {memory_key(line): axis for axis, line in reversed(tie.axis_lines.items()) if axis not in members}
    lines = {axis: tie.axis_lines[axis].numpy() for axis in reversed(first_of.values())}
    # A piece cut out of an axis counts as read: at least one of its channels must stay.
    lines.update({("a piece", k): ids for k, ids in enumerate(tie.pieces.values())})
    for axis, line in lines.items():
        carried = classes[line]
        first = members.get((axis[0], 0))
        if first is not None and len(first[0]) == len(carried) and np.array_equal(first[0], carried):
            continue
        numbers, counts = _counted(carried)
        owners = owner[numbers]
        for k in np.unique(owners[owners >= 0]).tolist():
            own = owners == k
            if own.sum() != sizes[k] or (counts[own] != counts[own][0]).any():
                result.setdefault(k, {})[axis] = (numbers[own], counts[own])
    return result


def _group(
    axes: list[ParameterAxis],
    members: Mapping[ParameterAxis, tuple[Ids, Ids]],
    pin_of: Ids,
    pins: Sequence[Pin],
    readers: Mapping[ParameterAxis, tuple[Ids, Ids]],
) -> Group:
    """Return a group of axes; ``pin_of`` has for each class the place of its pin in ``pins``, counted from one."""
    lengths = {axis: int(members[axis][1].sum()) for axis in axes}
    reference = max(axes, key=lambda axis: lengths[axis])
    numbers, _ = members[reference]
    if not readers and not pin_of[numbers].any() and all(_alike(members[axis], numbers) for axis in axes):
        whole = Part(numbers, {axis: int(members[axis][1][0]) for axis in axes}, None)
        return Group(reference, lengths[reference], tuple(axes), (whole,))
    numbers = np.unique(np.concatenate([members[axis][0] for axis in axes]))
    rows = np.zeros((len(numbers), len(axes) + len(readers) + 1), dtype=np.int64)
    for k, (carried, counts) in enumerate([*(members[axis] for axis in axes), *readers.values()]):
        rows[np.searchsorted(numbers, carried), k] = counts
    rows[:, -1] = pin_of[numbers]
    kinds, first, kind_of = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    made = [
        Part(
            numbers[kind_of.reshape(-1) == kind],
            {axis: int(kinds[kind, k]) for k, axis in enumerate(axes) if kinds[kind, k]},
            pins[kinds[kind, -1] - 1] if kinds[kind, -1] else None,
        )
        for kind in np.argsort(first)
    ]
    return Group(reference, lengths[reference], tuple(axes), tuple(made))


def _alike(members: tuple[Ids, Ids], numbers: Ids) -> bool:
    """Whether an axis carries just these classes, each equally often."""
    carried, counts = members
    return len(carried) > 0 and np.array_equal(carried, numbers) and bool((counts == counts[0]).all())
