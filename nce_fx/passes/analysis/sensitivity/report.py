"""The values of the sensitivity analysis, by layer and by channel group: the noise that falls when a group widens.

A group carries the noise of the weights that produce its channels, and of every activation that its channels are part
of, in proportion to its share of the activation's channels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nce_fx.frozen import Frozen
from nce_fx.passes.analysis.channels.graph import AxisWidth, ChannelGraph
from nce_fx.passes.analysis.sensitivity.scores import Scores


@dataclass(frozen=True)
class NodeSensitivity:
    """What noise in a layer's weights, and in what the layer reads, costs; in the metric's own unit."""

    weight: float
    activation: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.weight + self.activation


@dataclass(frozen=True)
class SensitivityReport(Frozen):
    """Sensitivities by layer and by channel group: ``report.by_group["conv1"]``, 1e-4 in the unit of the metric."""

    metric: str
    bits: int | Mapping[str, int]
    by_node: Mapping[str, NodeSensitivity]
    by_group: Mapping[str, float]
    forwards: float
    """What the analysis cost, in forward passes over the batches (a backward counts as two)."""
    batches: Mapping[str, Any] = field(default_factory=dict)
    """What it was measured on: number of batches, of samples, and the SHA-256 of their content; empty without data."""

    def ranked(self) -> list[tuple[str, float]]:
        """Return (layer path, weight and activation together), the most sensitive first."""
        totals = [(path, node.total) for path, node in self.by_node.items()]
        return sorted(totals, key=lambda item: (-item[1], item[0]))


def by_group(channels: ChannelGraph, scores: Scores) -> dict[str, float]:
    """Return the sensitivity of every group, in the order of the channel graph."""
    result = {group.id: 0.0 for group in channels}
    for group in channels:
        result[group.id] += sum(scores.weight.get(path, 0.0) for path in group.producers)
    for name, value in scores.activation.items():
        for group_id, share in group_shares(channels, channels.value_axes.get(name, ())).items():
            result[group_id] += share * value
    return result


def group_shares(channels: ChannelGraph, axes: Iterable[AxisWidth]) -> dict[str, float]:
    """Return which groups a value's channels belong to, and how much of its channel axis each has."""
    widths = tuple(part.width for part in channels.parts)
    shares: dict[str, float] = {}
    for axis in axes:
        length = axis.at(widths)
        for part, factor in axis.terms:
            group = channels.parts[part].group
            shares[group] = shares.get(group, 0.0) + float(factor) * widths[part] / max(length, 1)
    return shares
