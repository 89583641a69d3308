"""What every method of searching is asked, and what it answers with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rich.table import Table
from torch.fx import GraphModule

from nce_fx.data.loaders import Data
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.planning import Budget
from nce_fx.passes.transform.quantize import QuantSpec
from nce_fx.plan import WidthPlan
from nce_fx.quantities import Quantity
from nce_fx.tasks import LossLike
from nce_fx.training.progress import Progress

PLAN = "plan.json"
"""The file that every method leaves its plan in."""


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


@dataclass(frozen=True)
class SearchResult(Generic[L_co]):
    """The widths that were found, and how."""

    plan: WidthPlan
    log: L_co
    seconds: float
    """Of training, over all of its interruptions."""
    network: GraphModule
    """The network that was searched, as it was in the end."""
