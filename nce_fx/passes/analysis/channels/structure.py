"""The whole analysis of one graph, kept so that resizing needs no second one: ties, groups, layouts that hold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch.fx import GraphModule, Node

from nce_fx.errors import ChannelError
from nce_fx.ids.labels import FIRST_ID, Ids, bare, core
from nce_fx.ids.space import ParameterAxis, Pin
from nce_fx.ids.value import ChannelTensor
from nce_fx.passes.analysis.channels.groups import Group, Part, classes_of, groups_of, pins_by_class
from nce_fx.passes.analysis.channels.projection import Mismatch, Relayout
from nce_fx.passes.analysis.channels.resizing import Resizing, shapes_of
from nce_fx.passes.analysis.channels.tie import Tie

_RELAYOUTS = 64


@dataclass(frozen=True)
class Structure:
    """What is known of a graph's channels."""

    gm: GraphModule
    tie: Tie
    classes: Ids
    groups: tuple[Group, ...]
    modes: Mapping[ParameterAxis, int] = field(default_factory=dict)
    proven: Mapping[Node, Any] = field(default_factory=dict)
    """The shape of what every node returned when all free groups were enlarged at once: a resize may change no other
    axes."""

    def counts(self, copies: Mapping[int, Ids]) -> Ids:
        """Return how often each id appears, from the copies of each class of each part (by index in ``parts``)."""
        by_class = np.ones(int(self.classes.max(initial=0)) + 1, dtype=np.int64)
        for index, numbers in copies.items():
            by_class[self.parts[index].classes] = numbers
        result: Ids = by_class[self.classes]
        result[:FIRST_ID] = 1
        return result

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, group by group."""
        return tuple(part for group in self.groups for part in group.parts)

    def run(self, counts: Ids) -> Resizing:
        """Run the graph at new widths and return the run, with its edits.

        Raises:
            Mismatch: something does not meet as it did.
        """
        orders: dict[ParameterAxis, tuple[Ids, Ids]] = {}
        for _ in range(_RELAYOUTS):
            check = Resizing(self.gm, self.tie, self.tie.seen, self.classes, counts, self.modes, orders, self.proven)
            try:
                check.execute()
                check.check_merged()
            except Relayout as relayout:
                orders[relayout.axis] = (relayout.index, relayout.copies)
                continue
            return check
        raise Mismatch("parameters do not settle in one order")


def examine(gm: GraphModule) -> tuple[Structure, Resizing]:
    """Analyze a traced graph and prove the result on one enlargement of every free group at once.

    Raises:
        ChannelError: an op cannot be run on channels at all; the message names the node.
    """
    tie, classes = _tied(gm)
    alike = tie.found_alike(classes)
    if not alike:
        return prove(_structured(gm, tie, classes))
    # What is summed in all heads alike needs no head kept whole: what was tied or pinned for that comes loose.
    del tie, classes
    loose = _structured(gm, *_tied(gm, alike))
    inside = prove(loose)
    if _free_axes(inside[0]) == _free_axes(loose):
        return inside
    # Heads that widen inside may want of their neighbours what these cannot give: then heads stay whole.
    outside = prove(_structured(gm, *_tied(gm)))
    return max(inside, outside, key=lambda proved: _free_axes(proved[0]))


def _structured(gm: GraphModule, tie: Tie, classes: Ids) -> Structure:
    return Structure(gm, tie, classes, groups_of(tie, classes, pins_by_class(tie, classes)))


def _free_axes(structure: Structure) -> int:
    return sum(len(group.axes) for group in structure.groups if group.free)


def _tied(gm: GraphModule, alike: frozenset[Node] = frozenset()) -> tuple[Tie, Ids]:
    tie = Tie(gm, alike)
    try:
        tie.execute()
        if tie.shared:
            tie.settle_shared(classes_of(tie))
    except ChannelError:
        raise
    except Exception as error:
        at = tie.message()
        raise ChannelError(f"channels cannot be followed through {at}: {type(error).__name__}: {error}") from error
    return tie, classes_of(tie)


def enlarged(structure: Structure, only: Sequence[Group] | None = None, more: int = 0) -> dict[int, Ids]:
    """Return copies that enlarge every free part: each channel at least doubled, and each part by another share.

    So every axis that can change does, no two changes look alike, and copies are uneven wherever they can be.
    """
    copies: dict[int, Ids] = {}
    index = 0
    wanted = {id(group) for group in (structure.groups if only is None else only)}
    for k, group in enumerate(structure.groups):
        for place, part in enumerate(group.parts):
            if part.pinned is None and id(group) in wanted:
                count = len(part.classes)
                uneven = max(1, count * (1 + (k + place) % 3) // 4) if count > 1 else place % 3
                copies[index] = spread_copies(count, 2 * count + uneven + more)
            index += 1
    return copies


def spread_copies(count: int, wanted: int) -> Ids:
    """Return how often each of ``count`` channels appears when ``wanted`` are there: round robin from the first on."""
    result: Ids = np.full(count, wanted // count, dtype=np.int64)
    result[: wanted % count] += 1
    return result


def prove(structure: Structure) -> tuple[Structure, Resizing]:
    """Enlarge every free group; where no layout of the copies makes that hold, pin what is to blame.

    Channels that nobody made, of an image or of padding, look alike, and so do those that lie on one axis twice: no
    index tells where they went. What holds of them at one width may hold by chance (3 + 5 channels shuffled in 2
    groups), so that a second one is asked.
    """
    while True:
        try:
            proved, proof = settle(structure, lambda known: known.counts(enlarged(known)))
            shown = replace(proved, proven={node: shapes_of(value) for node, value in proof.env.items()})
            if any(map(_look_alike, proof.env.values())):
                again = _at_another_width(shown)
                if again.modes != proved.modes:
                    structure = again
                    continue
            return shown, proof
        except Mismatch as mismatch:
            structure = _yield_to(structure, mismatch.alone())


def _at_another_width(shown: Structure) -> Structure:
    """Settle what holds at one width at another, with literal sizes read as before if they can be.

    Raises:
        Mismatch: nothing holds there.
    """
    for known in (shown, replace(shown, proven={})):
        try:
            return replace(settle(known, lambda known: known.counts(enlarged(known, more=1)))[0], proven={})
        except Mismatch as mismatch:
            last = mismatch
    raise last


def _look_alike(value: Any) -> bool:
    """Whether channels lie beside such as have no id, or in two places."""
    if not isinstance(value, ChannelTensor) or value.path is not None:
        return False
    for label in value.labels:
        ids = bare(core(label)).reshape(-1).numpy()
        made = ids >= FIRST_ID
        # A channel's places in a row, as flattened images have them, are one.
        places = ids[np.flatnonzero(np.diff(ids, prepend=-1))]
        if made.any() and (not made.all() or len(np.unique(places)) < len(places)):
            return True
    return False


def settle(structure: Structure, widths: Callable[[Structure], Ids]) -> tuple[Structure, Resizing]:
    """Run a graph at new widths, trying other layouts of the copies where the usual one does not hold.

    Raises:
        Mismatch: none holds; what did not meet in the usual one, and what of those channels for which none is left.
    """
    failures: list[tuple[Mismatch, list[Group]]] = []
    while True:
        try:
            return structure, structure.run(widths(structure))
        except Mismatch as mismatch:
            blamed = _blamed(structure, mismatch)
            failures.append((mismatch.alone(), blamed))
            modes = dict(structure.modes)
            for group in filter(_has_runs, blamed):
                # Blocks of a network fail alike: each by itself would take a run.
                for axis in (axis for other in _alike(structure, group) for axis in other.axes):
                    modes[axis] = min(2, structure.modes.get(axis, 0) + 1)
            if modes == dict(structure.modes):
                first = failures[0][0]
                other = next((each for each, groups in failures if _meet(groups, blamed)), first)
                first.other = None if other is first else other
                useless = {axis for group in blamed for other in _alike(structure, group) for axis in other.axes}
                first.modes = {axis: mode for axis, mode in modes.items() if axis not in useless}
                raise first from None
            structure = replace(structure, modes=modes)


def _meet(some: list[Group], others: list[Group]) -> bool:
    return any(group in others for group in some)


def _yield_to(structure: Structure, mismatch: Mismatch) -> Structure:
    found = [(each, _blamed(structure, each)) for each in (mismatch, mismatch.other) if each is not None]
    blamed: list[Group] = []
    for _, groups in found:
        blamed += [group for group in groups if group not in blamed]
    blamed = blamed or [group for group in structure.groups if group.free]
    if not blamed:
        raise ChannelError(f"the model does not run on its own channels: {mismatch.reason}")
    failing = _failing(structure, blamed) if len(blamed) > 1 else blamed
    guilty = failing or blamed
    reason = next((each for each, groups in found if _meet(groups, guilty)), mismatch)
    structure = replace(structure, modes=mismatch.modes)
    return _in_step(structure, guilty) or _pinned(structure, guilty, reason)


def _in_step(structure: Structure, groups: list[Group]) -> Structure | None:
    """Tie parts of a group that have equally many classes, one by one: a view may want them equally long."""
    classes = structure.classes.copy()
    for group in (other for blamed in groups for other in _alike(structure, blamed)):
        by_count: dict[int, list[Part]] = {}
        for part in group.free:
            by_count.setdefault(len(part.classes), []).append(part)
        for first, *others in by_count.values():
            for other in others:
                number = np.arange(int(classes.max()) + 1)
                number[other.classes] = first.classes
                classes = number[classes]
    if np.array_equal(classes, structure.classes):
        return None
    pins = pins_by_class(structure.tie, classes)
    for part in structure.parts:
        if part.pinned is not None:
            pins.update(
                dict.fromkeys(np.unique(classes[np.isin(structure.classes, part.classes)]).tolist(), part.pinned)
            )
    return replace(structure, classes=classes, groups=groups_of(structure.tie, classes, pins))


def _blamed(structure: Structure, mismatch: Mismatch) -> list[Group]:
    ids = mismatch.blame[mismatch.blame >= FIRST_ID].astype(np.int64)
    numbers = set(np.unique(structure.classes[ids % structure.tie.space.end]).tolist())
    return [
        group for group in structure.groups if any(not numbers.isdisjoint(part.classes.tolist()) for part in group.free)
    ]


def _alike(structure: Structure, group: Group) -> list[Group]:
    """Return the groups made of parts like those of a group, itself among them."""

    def looks(group: Group) -> list[tuple[int, bool]]:
        # A part that has more of one axis than of another is one of a fused projection, not of a trunk.
        return sorted((len(part.classes), len({*part.axes.values()}) > 1) for part in group.free)

    return [other for other in structure.groups if looks(other) == looks(group)]


def _has_runs(group: Group) -> bool:
    return any(count > 1 for part in group.free for count in part.axes.values())


def _failing(structure: Structure, groups: list[Group]) -> list[Group]:
    """Return those of these groups that do not hold even alone, found by halving: every question is a run."""
    if not groups or _hold(structure, groups):
        return []
    half = len(groups) // 2
    return groups if not half else _failing(structure, groups[:half]) + _failing(structure, groups[half:])


def _hold(structure: Structure, groups: list[Group]) -> bool:
    try:
        settle(structure, lambda known: known.counts(enlarged(known, groups)))
    except Mismatch as mismatch:
        mismatch.alone()
        return False
    return True


def _pinned(structure: Structure, groups: list[Group], mismatch: Mismatch) -> Structure:
    node: Node | None = mismatch.node
    at = f", at {structure.tie.describe(node)}" if node is not None else ""
    reason = f"{mismatch.reason}, and no repair of the graph restores it{at}"
    changed = tuple(
        replace(
            group,
            parts=tuple(
                part if part.pinned else replace(part, pinned=Pin(part.classes, node.name if node else "", reason))
                for part in group.parts
            ),
        )
        if group in groups
        else group
        for group in structure.groups
    )
    return replace(structure, groups=changed)
