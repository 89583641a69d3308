"""Which channels must change together: found by running the model on channel ids, proved by running it again."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from torch.fx import GraphModule, Node

from nce_fx.arguments import checked
from nce_fx.errors import where
from nce_fx.ids.labels import FIRST_ID, Ids, bare, line_of, memory_key, varies
from nce_fx.ids.space import ParameterAxis
from nce_fx.ids.value import ChannelTensor
from nce_fx.ops.additions import adds
from nce_fx.passes.analysis.channels.cache import Facts, keep_analysis, known_analysis
from nce_fx.passes.analysis.channels.computed import no_longer_needed
from nce_fx.passes.analysis.channels.graph import (
    AxisWidth,
    ChannelGraph,
    ChannelGroup,
    ChannelPart,
    ComputedWeight,
    least,
)
from nce_fx.passes.analysis.channels.groups import Group
from nce_fx.passes.analysis.channels.resizing import Resizing
from nce_fx.passes.analysis.channels.structure import Structure, enlarged, examine
from nce_fx.passes.analysis.channels.tie import Tie

__all__ = ["AxisWidth", "ChannelGraph", "ChannelGroup", "ChannelPart", "analyze_channels"]


@checked
def analyze_channels(gm: GraphModule) -> ChannelGraph:
    """Return the channel groups of a traced graph: which layers must change width together, in which steps, or why not.

    Raises:
        ChannelError: an op cannot be run on channels at all; the message names the node and the user's source line.
    """
    return analysis_of(gm).channels


@dataclass(frozen=True)
class Analysis:
    """The structure of a graph, and the same in public values."""

    structure: Structure
    channels: ChannelGraph


def analysis_of(gm: GraphModule) -> Analysis:
    """Analyze a graph, or return what is known of it where nothing that matters has changed since."""
    facts = Facts(gm)
    known: Analysis | None = known_analysis(gm, facts)
    if known is None:
        structure, proof = examine(gm)
        known = Analysis(structure, _describe(structure, proof))
        keep_analysis(gm, facts, known)
    return known


def _describe(structure: Structure, proof: Resizing) -> ChannelGraph:
    by_class = np.full(int(structure.classes.max(initial=0)) + 1, -1, dtype=np.int64)
    widths: list[int] = []
    grown: list[int] = []
    copies = enlarged(structure)
    parts: list[ChannelPart] = []
    spans: list[range] = []
    ids = _names(structure)
    for group, group_id in zip(structure.groups, ids, strict=True):
        first = len(parts)
        for part in group.parts:
            positions = group.positions(part)
            index = len(parts)
            by_class[part.classes] = index
            widths.append(len(part.classes) * positions)
            grown.append(int(copies[index].sum()) * positions if index in copies else widths[-1])
            on_axis = group.axis in part.axes
            parts.append(ChannelPart(group_id, widths[-1], positions, part.pinned is None, on_axis))
        spans.append(range(first, len(parts)))
    part_of_id = np.where(np.arange(structure.tie.space.end) >= FIRST_ID, by_class[structure.classes], -1)
    consumers = _consumers(structure.tie, part_of_id)
    groups = tuple(
        _public(g, i, structure.tie.producers, consumers, span)
        for g, i, span in zip(structure.groups, ids, spans, strict=True)
    )
    axes = _Axes(part_of_id, np.array(widths), np.array(grown))
    tie = structure.tie
    parameters: dict[str, tuple[AxisWidth, ...]] = {}
    for path, tensor in tie.tensors.tensors.items():
        canonical = tie.tensors.canonical[path]
        parameters[path] = tuple(
            AxisWidth(size)
            if (length := _new_length(proof, (canonical, k), size)) == size
            else axes.width(_met(tie, (canonical, k), size), size, length)
            for k, size in enumerate(tensor.shape)
        )
    for path, normed in tie.tensors.normed.items():
        parameters[normed.direction_path] = parameters[path]
        parameters[normed.length_path] = tuple(
            parameters[path][k] if k == normed.dim else AxisWidth(1) for k in range(normed.length.dim())
        )
    for path in list(parameters):
        owner, found, name = path.removesuffix(".original").rpartition(".parametrizations.")
        if found and path.endswith(".original"):
            parameters[f"{owner}.{name}"] = parameters[path]
    values: dict[str, tuple[AxisWidth, ...]] = {}
    for node, old in tie.seen.items():
        new = proof.env.get(node)
        if isinstance(old, ChannelTensor) and old.path in parameters:
            values[node.name] = parameters[old.path]
        elif node in tie.merged and isinstance(old, ChannelTensor):
            values[node.name] = tuple(
                parameters[own[0][0]][own[0][1]] if own else AxisWidth(size)
                for own, size in zip(tie.merged[node].follows[node], old.shape, strict=True)
            )
        elif node.op != "output" and isinstance(old, ChannelTensor) and isinstance(new, ChannelTensor):
            if len(old.labels) == 1:
                values[node.name] = axes.of_value(old, new)
            else:
                values[node.name] = tuple(
                    _whole_axis(tie, old, k, parameters) or axes.width(_line(old, k), size, new.shape[k])
                    for k, size in enumerate(old.shape)
                )
    added = (values.get(node.name, ()) for node in tie.seen if adds(node))
    streams = {parts[part].group for axes_of_sum in added for width in axes_of_sum for part, _ in width.terms}
    groups = tuple(replace(group, sums=group.id in streams) for group in groups)
    return ChannelGraph(groups, tuple(parts), parameters, values, tuple(_computed_weights(tie, parameters)))


def _computed_weights(tie: Tie, parameters: dict[str, tuple[AxisWidth, ...]]) -> Iterator[ComputedWeight]:
    """Yield the weights that a resize keeps as parameters where it changes what they read."""
    for path, found in tie.computed.items():
        reading = [width for k, width in enumerate(parameters[path]) if "in" in tie.roles.get((path, k), ())]
        parts = {part: None for width in reading for part, _ in width.terms}
        if parts:
            yield ComputedWeight(tuple(node.name for node in no_longer_needed(found)), tuple(parts))


def _whole_axis(
    tie: Tie, value: ChannelTensor, axis: int, parameters: dict[str, tuple[AxisWidth, ...]]
) -> AxisWidth | None:
    """Return the width of the parameter axis that an axis of a moved parameter is; ``None`` for anything else."""
    line = _line(value, axis)
    if not line.numel():
        return None
    owner = int(tie.space.owners(bare(line[:1].numpy()))[0])
    if owner < 0 or tie.space.sizes[owner] != line.numel() or value.shape[axis] != line.numel():
        return None
    path, own_axis = tie.space.axes[owner]
    return parameters[path][own_axis] if own_axis >= 0 else None


def _met(tie: Tie, axis: tuple[str, int], size: int) -> Any:
    """Return the ids that a parameter's axis met, or its own."""
    line = tie.axis_lines.get(axis)
    return tie.space.line(axis, size) if line is None and axis in tie.space.base else line


def _new_length(proof: Resizing, axis: tuple[str, int], size: int) -> int:
    gather = proof.edits.gathers.get(axis)
    return size if gather is None else len(gather.index)


def _line(value: ChannelTensor, axis: int) -> Any:
    for label in value.labels:
        if varies(label, axis):
            return line_of(label, axis)
    label = value.labels[0]
    return label.as_strided((min(1, label.numel()),), (1,), label.storage_offset())


_WHOLE = Fraction(1)


class _Axes:
    """Finds the affine form of an axis from the parts of its channels and its length in the proof."""

    def __init__(self, part_of_id: Ids, widths: Ids, grown: Ids) -> None:
        self.part_of_id, self.widths, self.grown = part_of_id, widths, grown
        # Labels are kept by the first run: what lies in one place stays the same.
        self._known: dict[Any, AxisWidth] = {}
        self._values: dict[Any, tuple[AxisWidth, ...]] = {}

    def width(self, line: Any, size: int, new: int) -> AxisWidth:
        """Return the width of an axis of this size, whose channels are those of the line; many axes have one line."""
        if line is None or size == new or not line.numel():
            return AxisWidth(size)
        key = (*memory_key(line), size)
        if key not in self._known:
            self._known[key] = self._width(line, size)
        return self._known[key]

    def of_value(self, old: ChannelTensor, new: ChannelTensor) -> tuple[AxisWidth, ...]:
        """Return the width of each axis of a value with one label."""
        key = (*memory_key(old.labels[0]), new.shape)
        if key not in self._values:
            self._values[key] = tuple(
                AxisWidth(size) if size == new.shape[k] else self.width(_line(old, k), size, new.shape[k])
                for k, size in enumerate(old.shape)
            )
        return self._values[key]

    def _width(self, line: Any, size: int) -> AxisWidth:
        owners = self.part_of_id[bare(line.numpy())]
        first = int(owners[0])
        if first >= 0 and (owners == first).all():
            if size == len(owners) == self.widths[first] != self.grown[first]:
                return AxisWidth(0, ((first, _WHOLE),))
            found, counts = owners[:1], np.array([len(owners)])
        else:
            found, counts = np.unique(owners[owners >= 0], return_counts=True)
        if line.numel() != size:
            counts = counts * size
        terms = tuple((int(p), Fraction(int(c), int(self.widths[p]))) for p, c in zip(found, counts, strict=True))
        moving = tuple(t for t in terms if self.grown[t[0]] != self.widths[t[0]])
        fixed = size - sum(f * int(self.widths[p]) for p, f in moving)
        return AxisWidth(int(fixed), moving)


def _names(structure: Structure) -> list[str]:
    """Return an id for each group: its first producer's path; where two ops share a weight, the axis with it."""
    names: list[str] = []
    for group in structure.groups:
        name = owner_path(structure.tie.producers[group.axis][0])
        names.append(f"{name}[{group.axis[1]}]" if name in names else name)
    return names


def owner_path(parameter: str) -> str:
    """Return the path by which people know the owner of a weight: ``layer1.0.conv1`` for ``layer1.0.conv1.weight``."""
    return re.sub(r"(\.parametrizations\.weight\..+|\.weight(_orig|_mask|_v|_g)?)$", "", parameter)


def _consumers(tie: Tie, part_of_id: Ids) -> dict[int, dict[str, None]]:
    """Return for each part the layers that read it."""
    result: dict[int, dict[str, None]] = {}
    for path, ids in tie.consumers:
        parts = part_of_id[ids]
        found = parts[:1] if (parts == parts[:1]).all() else np.unique(parts)
        for part in found.tolist():
            result.setdefault(part, {})[owner_path(path)] = None
    return result


def _public(
    group: Group,
    group_id: str,
    producers: dict[ParameterAxis, tuple[str, Node]],
    consumers: dict[int, dict[str, None]],
    parts: range,
) -> ChannelGroup:
    readers: dict[str, None] = {}
    for part in parts:
        readers.update(consumers.get(part, {}))
    step = group.step
    fixed = group.width - sum(len(p.classes) * p.axes.get(group.axis, 0) for p in group.free)
    reasons = [part.pinned.reason for part in group.parts if part.pinned]
    on_axis = [p for p in group.free if group.axis in p.axes]
    return ChannelGroup(
        group_id,
        group.width,
        step,
        tuple(dict.fromkeys(owner_path(producers[axis][0]) for axis in group.axes)),
        tuple(readers),
        None if on_axis else (reasons[0] if reasons else f"it has no channels, at {where(producers[group.axis][1])}"),
        tuple(parts),
        fixed + sum(least(len(p.classes) * p.axes[group.axis], step) for p in on_axis) if on_axis else group.width,
    )
