"""What every method of searching is asked, and what it answers with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rich.table import Table
from torch.fx import GraphModule

from nce_fx.data.loaders import Data
from nce_fx.files import write_whole
from nce_fx.passes.analysis.channels import ChannelGraph
from nce_fx.passes.analysis.cost import CostReport, analyze_cost
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.planning import Budget
from nce_fx.passes.transform.quantize import QuantSpec, quantize
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.pipeline import Pipeline
from nce_fx.plan import WidthPlan
from nce_fx.processes import start_engine
from nce_fx.quantities import Quantity
from nce_fx.search.carrying import quantizing
from nce_fx.tasks import LossLike
from nce_fx.training.progress import Progress
from nce_fx.training.run import Run

PLAN = "plan.json"
"""The file that every method leaves its plan in."""
NO_CHOICE = "no group of the network has widths to choose from: see `nce-fx analyze MODEL --groups`"


class Log(Protocol):
    """The whole course of a search, as its method tells it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the log as JSON values."""

    def write(self, directory: Path, original: Mapping[str, int]) -> None:
        """Write it to files in a folder; ``original`` has the width of every group before."""

    def table(self, plan: WidthPlan) -> Table:
        """Return the groups with their widths and what became of them, for people."""


L_co = TypeVar("L_co", bound=Log, covariant=True)


@dataclass(frozen=True)
class Asked:
    """A search, but for its recipe: `nce_fx.search.search` says what each is."""

    gm: GraphModule
    data: Data
    budget: Budget
    spec: QuantSpec | None = None
    hardware: HardwareTable | None = None
    quantities: Iterable[Quantity] = ()
    loss: LossLike = None
    directory: Path | None = None
    progress: Progress = False
    checkpoint_seconds: float = 60.0
    workers: int = 1
    """Processes of this machine that train networks; for methods that train several."""
    scheduler: str | None = None
    """Address of a dask scheduler instead of them."""

    def cost(self, channels: ChannelGraph) -> CostReport:
        """Return what the network costs at its own widths and these bits, of which the budget's ratios are."""
        uniform = None if self.spec is None else quantize(self.gm, self.spec)
        return analyze_cost(self.gm, channels, quantized=uniform, hardware=self.hardware, quantities=self.quantities)

    def built(self, plan: WidthPlan) -> GraphModule:
        """Return the network of a plan, quantized."""
        return Pipeline((ResizeChannels(plan), *quantizing(self.spec)))(self.gm).graph_module


@dataclass(frozen=True)
class SearchResult(Generic[L_co]):
    """The widths that were found, and how."""

    plan: WidthPlan
    log: L_co
    seconds: float
    """Of training, over all of its interruptions."""
    network: GraphModule
    """The network that was searched, as it was in the end."""


L = TypeVar("L", bound=Log)


def finish(asked: Asked, plan: WidthPlan, log: L, seconds: float, network: GraphModule) -> SearchResult[L]:
    """Return what a search found, written to its folder where it has one: the log's files and ``plan.json``."""
    if asked.directory is not None and start_engine().is_main:
        log.write(asked.directory, plan.original)
        write_whole(asked.directory / PLAN, plan.to_json().encode())
    return SearchResult(plan, log, seconds, network)


def seconds_of(run: Run) -> float:
    """Return how long a run has trained, over all of its interruptions."""
    return sum(record.seconds for record in run.position.history)
