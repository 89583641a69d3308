"""What every method of searching is asked, and what it answers with."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from rich.table import Table
from torch.fx import GraphModule

from nce_fx.data.loaders import CALIBRATION_BATCHES, CALIBRATION_SIZE, Data
from nce_fx.errors import BudgetError
from nce_fx.files import write_whole
from nce_fx.frozen import Frozen
from nce_fx.passes.analysis.channels import ChannelGraph, analyze_channels
from nce_fx.passes.analysis.cost import CostReport, analyze_cost
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.planning import Budget
from nce_fx.passes.planning.budget import Reserve, plan_and_build
from nce_fx.passes.transform.quantize import QuantSpec, quantize
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.pipeline import Given, Pass, Pipeline
from nce_fx.plan import WidthPlan
from nce_fx.processes import start_engine
from nce_fx.quantities import Quantity
from nce_fx.search.carrying import quantizing
from nce_fx.search.recipes import WeightTraining
from nce_fx.tasks import LossLike, Task
from nce_fx.training.loop import fit
from nce_fx.training.recipe import Recipe
from nce_fx.training.result import Progress
from nce_fx.training.run import Callback, Run, prepare

PLAN = "plan.json"
"""The file that every method leaves its plan in."""
NO_CHOICE = "no group of the network has widths to choose from: see `nce-fx analyze MODEL --groups`"
_NOTHING: Reserve = {}


@dataclass(frozen=True)
class Log(Frozen):
    """The whole course of a search, as its method tells it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the log as JSON values."""
        return asdict(self)

    files: ClassVar[tuple[str, ...]]
    """What the method leaves in its folder, beside checkpoints."""

    def contents(self, original: Mapping[str, int]) -> dict[str, bytes]:
        """Return it as files, by name; ``original`` has the width of every group before."""
        raise NotImplementedError

    def table(self, plan: WidthPlan) -> Table:
        """Return the groups with their widths and what became of them, for people."""
        raise NotImplementedError


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

    @cached_property
    def channels(self) -> ChannelGraph:
        """The network's channel groups."""
        return analyze_channels(self.gm)

    @property
    def pinned(self) -> dict[str, str]:
        """The groups that keep their width, with the reason."""
        return {group.id: group.pinned for group in self.channels if group.pinned is not None}

    @cached_property
    def cost(self) -> CostReport:
        """What the network costs at its own widths and these bits, of which the budget's ratios are."""
        options: dict[str, Any] = {"hardware": self.hardware, "quantities": self.quantities}
        uniform = None if self.spec is None else quantize(self.gm, self.spec)
        return analyze_cost(self.gm, self.channels, quantized=uniform, **options)

    def source(self, recipe: WeightTraining, **more: Any) -> dict[str, Any]:
        """Return what a plan says of where it comes from."""
        return {"data": self.data.name, "seed": recipe.seed, "search": recipe.to_dict(), **more}

    def built(self, plan: WidthPlan) -> GraphModule:
        """Return the network of a plan, quantized."""
        return Pipeline((ResizeChannels(plan), *quantizing(self.spec)))(self.gm).graph_module

    def trained(self, network: GraphModule, data: Data, recipe: Recipe, callback: Callback, task: Task) -> Run:
        """Train a network with what the search does beside the steps; return the run at its end."""
        engine = start_engine()
        run = prepare(network, data, recipe, None, engine, self.directory, None, callback, task=task)
        return fit(run, self.progress, self.checkpoint_seconds)

    def plan_at(
        self, widths: Mapping[str, int], source: Mapping[str, Any], reserve: Reserve = _NOTHING
    ) -> WidthPlan | None:
        """Return the plan of these widths; ``None`` where they leave less of a limit free than is asked.

        Args:
            widths: of some groups; the others keep theirs.
            source: what the plan shall say of where it comes from.
            reserve: how much of each limit stays free.
        """
        cost, original = self.cost, self.channels.widths
        widths = {**original, **widths}
        spent, limits = cost.at(widths).total.by_quantity, self.budget.limits(cost.total.by_quantity)
        if any(spent[name] + reserve.get(name, 0.0) > limit for name, limit in limits.items()):
            return None
        told = {"budget": self.budget.as_mapping(), "limits": limits, "cost": {name: spent[name] for name in limits}}
        return WidthPlan(widths, original, cost.model.fingerprint, source={**source, **told})

    def first_plan(
        self, candidates: Iterable[tuple[Mapping[str, int], Mapping[str, Any]]]
    ) -> tuple[WidthPlan, GraphModule]:
        """Return the plan of the first widths whose network keeps every limit, and that network.

        Args:
            candidates: widths, and what a plan of them shall say of where it comes from; the preferred ones first.

        Raises:
            BudgetError: none of them keeps every limit.
        """

        def within(reserve: Reserve) -> WidthPlan:
            plans = (self.plan_at(widths, source, reserve) for widths, source in candidates)
            found = next((plan for plan in plans if plan is not None), None)
            if found is None:
                raise BudgetError(
                    "no setting that was compared keeps every budget by the count of its network: compare more"
                )
            return found

        return plan_and_build(within, self.built, self.budget, self.cost)


def calibrated(
    network: GraphModule, spec: QuantSpec | None, data: Data, *more: Pass, seed: int | None = None
) -> GraphModule:
    """Return a float network quantized as a spec says, with ranges of the data, and then changed by more passes."""
    batches = data.batches(CALIBRATION_BATCHES, CALIBRATION_SIZE, seed)
    return Pipeline((*quantizing(spec), *more))(network, Given(batches)).graph_module


def choices_of(
    recipe: WeightTraining, budget: Budget, spec: QuantSpec | None, but: Container[str] = ()
) -> dict[str, Any]:
    """Return what makes a search another one than one that trains the same weights: ``{"search.epochs": 60}``.

    Args:
        recipe: of its method.
        budget: the limits.
        spec: how the network is quantized.
        but: fields of the recipe that may be others when the search goes on.
    """
    choices = {f"search.{name}": value for name, value in recipe.to_dict().items() if name not in but}
    return choices | {"search.budget": budget.as_mapping(), "search.spec": repr(spec)}


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
        for name, content in (*log.contents(plan.original).items(), (PLAN, plan.to_json().encode())):
            write_whole(asked.directory / name, content)
    return SearchResult(plan, log, seconds, network)


def seconds_of(run: Run) -> float:
    """Return how long a run has trained, over all of its interruptions."""
    return sum(record.seconds for record in run.position.history)
