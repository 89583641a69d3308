"""One of each that nce-fx takes from an installed package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import TensorDataset

from nce_fx.passes.analysis.sensitivity.analyze import Metric
from nce_fx.passes.analysis.sensitivity.probe import Probe
from nce_fx.passes.analysis.sensitivity.scores import Scores
from nce_fx.pipeline import Given, Pass
from nce_fx.progress import Progress
from nce_fx.quantities import Quantity, Sums
from nce_fx.quantizers import WeightQuantizer
from nce_fx.quantizers.base import Grid, working
from nce_fx.quantizers.rounding import PassRound


def two_layers(in_channels: int = 3, num_classes: int = 4) -> nn.Module:
    """A convolution, another, and a linear layer."""
    convolutions = nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


def stripes() -> tuple[TensorDataset, TensorDataset]:
    """Images of stripes; the class is how wide they are."""

    def split(count: int) -> TensorDataset:
        classes = torch.arange(count) % 4
        line = (torch.arange(16)[None] // (classes[:, None] + 1)) % 2
        return TensorDataset(line.float()[:, None, None].expand(count, 3, 16, 16).clone(), classes)

    return split(64), split(32)


class Ternary(WeightQuantizer):
    """Minus one step, zero, or one step, whatever bits are asked for: the step is 1.4 times the mean magnitude."""

    def __init__(self, bits: int, channel_axis: int = 0) -> None:
        super().__init__(bits)
        self.grid = Grid(-1, 1) if bits > 1 else Grid(-1, 0, 0.5)

    def step_size(self, x: Tensor) -> Tensor:
        """Return the step; 0-dimensional."""
        return self.fine(1.4 * working(x.detach()).abs().mean().clamp(min=1e-8))

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize; the gradient goes straight through."""
        return PassRound.apply(x, self.step_size(x), self.grid)  # type: ignore[no-any-return]


def _numel(probe: Probe, batches: Sequence[Any], progress: Progress) -> Scores:
    sizes = {layer.path: sum(probe.gm.get_parameter(path).numel() for path in layer.weights) for layer in probe.layers}
    return Scores(weight={path: float(size) for path, size in sizes.items()})


NUMEL = Metric(_numel, False, "how many weights a layer has; no data")

ENERGY = Quantity(
    name="energy",
    title="energy",
    unit="count",
    cost=lambda model: Sums(model.work_macs, tuple(term.bits + 10 for term in model.work)),
    help="energy, in units of that of one bit operation: ten more for each MAC",
    search="computation",
)


@dataclass(frozen=True)
class CountNodes(Pass):
    """Say how many nodes the graph has."""

    def apply(self, gm: GraphModule, given: Given) -> GraphModule:
        """Return the graph as it is."""
        print(f"{len(gm.graph.nodes)} nodes")
        return gm
