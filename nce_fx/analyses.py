"""What is known of a traced network before its widths are planned."""

from dataclasses import dataclass, replace
from typing import Self

from torch.fx import GraphModule

from nce_fx.passes.analysis.channels import ChannelGraph
from nce_fx.passes.analysis.cost import CostReport, analyze_cost
from nce_fx.passes.analysis.sensitivity import SensitivityReport
from nce_fx.passes.transform.quantize import QuantSpec


@dataclass(frozen=True)
class Analyses:
    """A traced network and everything the planner wants to know about it."""

    graph_module: GraphModule
    channels: ChannelGraph
    cost: CostReport
    sensitivity: SensitivityReport
    uniform: GraphModule
    """The network quantized at its own widths, with ranges where there was data: its quantizers say the bits of every
    layer, to the cost, to the sensitivity, and to whoever asks `nce_fx.passes.transform.quantize.describe`."""

    @property
    def spec(self) -> QuantSpec:
        """How it is quantized."""
        spec: QuantSpec = self.uniform.meta["spec"]
        return spec

    def quantized_as(self, uniform: GraphModule, sensitivity: SensitivityReport) -> Self:
        """Return the analyses of the same network with other quantizers, at its own widths."""
        model = self.cost.model
        rows = tuple(model.quantities.values())
        cost = analyze_cost(
            self.graph_module, self.channels, quantized=uniform, hardware=model.hardware, quantities=rows
        )
        return replace(self, uniform=uniform, cost=cost, sensitivity=sensitivity)
