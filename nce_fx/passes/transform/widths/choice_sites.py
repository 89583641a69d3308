"""Where a graph's widths can be chosen: which values are read with which group's channels, and in which order they go.

Read off the channel analysis of the plain float graph; layers are named by path and use, which quantizing keeps.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from nce_fx.ids.labels import FIRST_ID, Ids, bare, core
from nce_fx.ids.space import ParameterAxis
from nce_fx.ids.value import ChannelTensor
from nce_fx.ops import OPS
from nce_fx.ops.layers import find_layers
from nce_fx.passes.analysis.channels import Analysis, ChannelGroup, analysis_of
from nce_fx.passes.analysis.channels.groups import Group, Part
from nce_fx.passes.transform.quantize import RemoveQuantizers
from nce_fx.passes.transform.resize import importance
from nce_fx.passes.transform.widths.modules import EVERY_CANDIDATE, Block

Use = tuple[str, int]
"""A module's or layer's path, and which of its uses."""
Order = Mapping[ParameterAxis, Ids]
"""For each producer axis: the rank of every position's channel in its part, 0 for the one that goes last."""


@dataclass(frozen=True)
class Reading:
    """What one use of a layer or of a BatchNorm reads: (groups in the order of their draws, member of each element)."""

    groups: tuple[str, ...]
    member: Tensor
    axis: int | None = None
    """The one axis, from the end, that its channels lie on; ``None`` where they lie on several."""
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class ChoiceSites:
    """Everything `InsertWidthChoices` needs to know of a graph."""

    readers: Mapping[tuple[Use, int], Reading] = field(default_factory=dict)
    """By use of a layer, and index among its inputs."""
    norms: Mapping[str, Reading] = field(default_factory=dict)
    """BatchNorm modules all of whose uses normalize the channels of one group."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Groups whose widths cannot be chosen here, and why."""


def plain_float(gm: GraphModule) -> GraphModule:
    """Return the graph without quantizers."""
    return RemoveQuantizers()(gm).graph_module


def channel_order(gm: GraphModule) -> dict[ParameterAxis, Ids]:
    """Return the order in which channels go as `resize` narrows: what carries most stays longest."""
    analysis = analysis_of(plain_float(gm))
    result: dict[ParameterAxis, Ids] = {}
    every = importance(analysis.structure)
    for group in analysis.structure.groups:
        for part in group.parts:
            ranks = np.argsort(-every[part.classes], kind="stable")
            _write(result, analysis, part.classes, list(part.axes), ranks)
    return result


def carried_order(gm: GraphModule, order: Order, gathers: Mapping[ParameterAxis, Ids]) -> dict[ParameterAxis, Ids]:
    """Return the order for a graph that was resized by these gathers: channels as before, then their copies.

    Args:
        gm: the graph after the resize.
        order: that of the graph before.
        gathers: for each axis that changed, the old position of every new one.
    """
    analysis = analysis_of(plain_float(gm))
    result: dict[ParameterAxis, Ids] = {}
    for group in analysis.structure.groups:
        for part in group.parts:
            known = [axis for axis in part.axes if axis in order]
            ranks = np.arange(len(part.classes))
            if known:
                index = gathers.get(known[0], np.arange(len(order[known[0]])))
                numbers = _classes_on(analysis, known[0])
                first = np.array([int(np.flatnonzero(numbers == number)[0]) for number in part.classes])
                old = order[known[0]][index[first]]
                copies = np.array([int((old[:k] == rank).sum()) for k, rank in enumerate(old.tolist())])
                ranks = np.lexsort((old, copies))
            _write(result, analysis, part.classes, list(part.axes), ranks)
    return result


def find_choice_sites(gm: GraphModule, candidates: Mapping[str, tuple[int, ...]], order: Order) -> ChoiceSites:
    """Return where the candidates of each group come in.

    Args:
        gm: a plain graph, float or quantized, at the widest candidate of each group.
        candidates: legal widths in rising order, by group.
        order: in which order channels go.
    """
    flat = plain_float(gm)
    analysis = analysis_of(flat)
    members = _Members(analysis, candidates, order)
    tie = analysis.structure.tie
    consumed = {path for path, _ in tie.consumers}
    readers: dict[tuple[Use, int], Reading] = {}
    covered: set[str] = set()
    uses: dict[str, int] = {}
    for layer in find_layers(flat):
        use = (layer.path, uses.setdefault(layer.path, 0))
        uses[layer.path] += 1
        # A weight that weight normalization computes is consumed by the path it would have as a parameter.
        paths = (*layer.weights, f"{layer.path}.weight")
        mine = {tie.tensors.canonical.get(path, path) for path in paths} & consumed
        if not mine:
            continue
        for index, node in enumerate(layer.inputs):
            reading = members.reading(node)
            if reading is not None:
                readers[use, index] = reading
                covered |= mine
    # Choices are made where layers read; what a product of data reads, no layer does.
    unseen = [
        (f"{path} reads it in a way that the search cannot follow", analysis.structure.classes[ids])
        for path, ids in (*tie.consumers, *tie.products)
        if path not in covered
    ]
    unseen += [(f"a weight that is computed of {path} is summed over it", own) for path, own in _inside(analysis)]
    refused = {
        group.id: reason
        for reason, classes in unseen
        for group in analysis.channels
        if group.id in candidates and _part_of(analysis, group).intersection(classes)
    }
    return ChoiceSites(readers, _norms(flat, members), refused)


def _inside(analysis: Analysis) -> Iterator[tuple[str, Ids]]:
    """Yield the classes along axes of parameters that a weight is computed of, and that are no axes of the weight."""
    tie = analysis.structure.tie
    for merged in dict.fromkeys(tie.merged.values()):
        outer = {own for node in merged.made for axis in merged.follows[node] for own in axis}
        for path in dict.fromkeys(tie.tensors.canonical[path] for path in merged.sources):
            for axis in range(tie.tensors.tensors[path].dim()):
                if (path, axis) not in outer and (path, axis) in tie.space.base:
                    yield path, _classes_on(analysis, (path, axis))


def _write(
    result: dict[ParameterAxis, Ids], analysis: Analysis, classes: Ids, axes: list[ParameterAxis], order: Ids
) -> None:
    """Note the rank of each class of a part, given in order, at its positions on every producer axis."""
    ranks = np.empty(len(classes), dtype=np.int64)
    ranks[order] = np.arange(len(classes))
    by_class = np.full(int(analysis.structure.classes.max(initial=0)) + 1, -1, dtype=np.int64)
    by_class[classes] = ranks
    for axis in axes:
        here = by_class[_classes_on(analysis, axis)]
        line = result.setdefault(axis, np.zeros(len(here), dtype=np.int64))
        line[here >= 0] = here[here >= 0]


def _classes_on(analysis: Analysis, axis: ParameterAxis) -> Ids:
    space = analysis.structure.tie.space
    start = space.base[axis]
    return analysis.structure.classes[start : start + space.length[axis]]


class _Ordered(NamedTuple):
    """The classes of a part in the order in which they go, and how many of them each candidate has."""

    group: str
    classes: Ids
    kept: Ids


class _Members:
    """Of each class the narrowest candidate that has it, ``first``, and the group whose choice it is, ``owner``."""

    def __init__(self, analysis: Analysis, candidates: Mapping[str, tuple[int, ...]], order: Order) -> None:
        self.analysis, self.candidates = analysis, candidates
        structure, channels = analysis.structure, analysis.channels
        self.first = np.full(int(structure.classes.max(initial=0)) + 1, EVERY_CANDIDATE, dtype=np.int64)
        self.owner: dict[int, str] = {}
        self.parts: list[_Ordered] = []
        for group, public in zip(structure.groups, channels, strict=True):
            widths = candidates.get(public.id)
            if widths is None:
                continue
            counts = kept_of_parts(analysis, group, public, widths)
            for part, kept in zip(group.parts, counts, strict=True):
                if part.pinned is not None:
                    continue
                ranks = ranks_of(analysis, part, order)
                self.first[part.classes] = np.searchsorted(kept, ranks, side="right")
                self.owner.update(dict.fromkeys(part.classes.tolist(), public.id))
                self.parts.append(_Ordered(public.id, part.classes[np.argsort(ranks, kind="stable")], kept))

    def reading(self, node: Node) -> Reading | None:
        """Return what the elements of a value belong to; ``None`` where no channel of it has a choice."""
        value = self.analysis.structure.tie.seen.get(node)
        if not isinstance(value, ChannelTensor) or len(value.labels) != 1:
            return None
        ids = bare(core(value.labels[0]))
        flat = ids.reshape(-1).numpy()
        numbers = self.analysis.structure.classes[flat]
        owners = [
            self.owner.get(number) if i >= FIRST_ID else None for i, number in zip(flat, numbers.tolist(), strict=True)
        ]
        groups = tuple(dict.fromkeys(name for name in owners if name is not None))
        if not groups:
            return None
        sizes = [len(self.candidates[name]) for name in groups]
        starts = dict(zip(groups, (np.cumsum(sizes) - sizes).tolist(), strict=True))
        member = [
            EVERY_CANDIDATE if name is None else starts[name] + int(self.first[number])
            for name, number in zip(owners, numbers.tolist(), strict=True)
        ]
        long = [axis for axis, size in enumerate(ids.shape) if size > 1]
        axis = long[0] - ids.dim() if len(long) == 1 else None
        blocks = []
        for part in self.parts:
            if part.group in groups:
                places = [np.flatnonzero(numbers == number) for number in part.classes]
                if len({len(place) for place in places}) > 1:
                    axis = None
                elif places[0].size:
                    positions = torch.from_numpy(np.stack(places))
                    blocks.append(Block(groups.index(part.group), positions, torch.from_numpy(part.kept.copy())))
        usable = axis is not None
        return Reading(groups, torch.tensor(member).reshape(ids.shape), axis, tuple(blocks) if usable else ())


def ranks_of(analysis: Analysis, part: Part, order: Order) -> Ids:
    """Return the place of each channel of a part in the order in which they go; 0 for the one that stays longest."""
    known = next((axis for axis in part.axes if axis in order), None)
    if known is None:
        return np.arange(len(part.classes))
    numbers = _classes_on(analysis, known)
    return order[known][[int(np.flatnonzero(numbers == number)[0]) for number in part.classes]]


def kept_of_parts(analysis: Analysis, group: Group, public: ChannelGroup, widths: tuple[int, ...]) -> list[Ids]:
    """Return for each part of a group how many of its classes each candidate has; never falling from narrow to wide."""
    shares = [analysis.channels.part_widths({public.id: width}) for width in widths]
    result = []
    for part, index in zip(group.parts, public.parts, strict=True):
        counts = np.array([share[index] // group.positions(part) for share in shares], dtype=np.int64)
        # Shares of several parts are rounded: what a wide candidate lacks, a narrower one must not have.
        result.append(np.minimum.accumulate(counts[::-1])[::-1])
    return result


def _part_of(analysis: Analysis, public: ChannelGroup) -> set[int]:
    index = [group.id for group in analysis.channels].index(public.id)
    return {int(number) for part in analysis.structure.groups[index].parts for number in part.classes}


def _norms(gm: GraphModule, members: _Members) -> dict[str, Reading]:
    found: dict[str, Reading | None] = {}
    for node in gm.graph.nodes:
        if node.op != "call_module":
            continue
        module = gm.get_submodule(str(node.target))
        if OPS.derived(module) is not OPS["batch_norm"] or not module.affine:
            continue
        reading = members.reading(node.all_input_nodes[0])
        if reading is None or len(reading.groups) != 1 or reading.member.numel() != module.num_features:
            found[str(node.target)] = None
            continue
        # A part that is pinned is in every candidate.
        alike = Reading(reading.groups, reading.member.reshape(-1).clamp(min=0))
        before = found.get(str(node.target), alike)
        same = before is not None and before.groups == alike.groups and torch.equal(before.member, alike.member)
        found[str(node.target)] = alike if same else None
    return {path: reading for path, reading in found.items() if reading is not None}
