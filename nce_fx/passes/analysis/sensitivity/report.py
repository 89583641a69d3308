"""The values of the sensitivity analysis."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nce_fx.frozen import Frozen


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
