"""Widths by training: the methods there are, and the one call that runs any of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from nce_fx.arguments import checked
from nce_fx.data.loaders import Data
from nce_fx.errors import InputError
from nce_fx.nearest import nearest
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.planning import Budget
from nce_fx.passes.transform.quantize import QuantSpec
from nce_fx.quantities import Quantity
from nce_fx.search.adapt import search_by_moves
from nce_fx.search.adapt_log import AdaptLog
from nce_fx.search.asked import Asked, Log, SearchResult
from nce_fx.search.gradient import search_by_gradient
from nce_fx.search.recipes import AdaptRecipe, SearchRecipe, SlimmableRecipe, SurfaceRecipe
from nce_fx.search.search_log import SearchLog
from nce_fx.search.slimmable import SlimmableLog, search_slimmable
from nce_fx.search.surface import search_surface
from nce_fx.search.surface_log import SurfaceLog
from nce_fx.tasks import LossLike
from nce_fx.training.result import Progress

AnyRecipe = SearchRecipe | AdaptRecipe | SlimmableRecipe | SurfaceRecipe
"""The recipe of a method: its ``method`` says of which."""


@dataclass(frozen=True)
class Method:
    """One way to find widths by training."""

    recipe: type[AnyRecipe]
    search: Callable[[Asked, Any], SearchResult[Any]]
    log: type[Log]
    about: str
    many: bool = False
    """Whether it trains many networks, which several processes can share."""

    @property
    def help(self) -> str:
        """What it does, and what its recipe has."""
        return f"{self.about}; --recipe has {', '.join(each.name for each in fields(self.recipe))}"


_GRADIENT = "preferences among widths, learned by gradient, expanding (published)"
_ADAPT = "widths moved a little at a time while it trains, undone where held-out data disagrees"
_SLIMMABLE = "settings of one network whose widths can be chosen, compared on data held out"
_SURFACE = "many networks trained at widths near these, a surface fitted to their losses, and its best: dear"

METHODS: Mapping[str, Method] = {
    "gradient": Method(SearchRecipe, search_by_gradient, SearchLog, _GRADIENT),
    "adapt": Method(AdaptRecipe, search_by_moves, AdaptLog, _ADAPT),
    "slimmable": Method(SlimmableRecipe, search_slimmable, SlimmableLog, _SLIMMABLE),
    "surface": Method(SurfaceRecipe, search_surface, SurfaceLog, _SURFACE, many=True),
}
"""By the name that ``--method`` and a recipe's ``method`` say."""


def method_named(name: str) -> Method:
    """Return a method.

    Raises:
        InputError: there is none of that name.
    """
    if name not in METHODS:
        raise InputError(
            f"no method of searching is called {name!r}: there are {', '.join(METHODS)}{nearest(name, METHODS)}"
        )
    return METHODS[name]


@checked
def search(
    gm: GraphModule,
    data: Data,
    recipe: AnyRecipe | None = None,
    *,
    budget: Budget | None = None,
    spec: QuantSpec | None = None,
    hardware: HardwareTable | None = None,
    quantities: Iterable[Quantity] = (),
    loss: LossLike = None,
    directory: str | Path | None = None,
    progress: Progress = False,
    checkpoint_seconds: float = 60.0,
    workers: int = 1,
    scheduler: str | None = None,
) -> SearchResult[Any]:
    """Find the width of every channel group by training, and return a plan that keeps every budget.

    With a directory the search leaves its logs, its picture, its checkpoints and ``plan.json`` there, and the same call
    made again goes on from the last checkpoint, to the same plan. Under ``torchrun`` the processes share every batch.

    Args:
        gm: a traced float network, at its original widths; trained, or with the weights the search shall start from.
        data: its training split is parted, between weights and widths; its test split is not looked at.
        recipe: how to search, which also says by which method; `SearchRecipe`, by gradient, by default.
        budget: upper limits; by default none of MACs, parameters, bit operations and weight bytes is more than those of
            ``gm``. By gradient, what is no sum of products (peak memory, prices) has no part in the loss: only the plan
            keeps it.
        spec: how the network will be quantized, which it is while it is searched; None searches in float.
        hardware: the user's own cost of layers, which ``Budget(custom=...)`` limits.
        quantities: more rows of what a network costs, see `nce_fx.quantities`.
        loss: what to minimise beside the cost, as `nce_fx.training.train` takes it; cross entropy by default.
        directory: where to write; None for nowhere.
        progress: True for a bar on stderr where that is a terminal, or a function called after every step.
        checkpoint_seconds: the time from one checkpoint to the next.
        workers: processes of this machine, for a method that trains many networks.
        scheduler: address of a dask scheduler instead of them, see `nce_fx.executor`.

    Raises:
        InputError: no group of the network has a width to choose, or workers for a method that trains one network.
        BudgetError: no widths keep the budget.
        TrainingError: the search cannot go on, or was stopped.
        ArtifactError: the directory holds the checkpoint of another run.
    """
    recipe = recipe or SearchRecipe()
    method = METHODS[recipe.method]
    if not method.many and (workers != 1 or scheduler is not None):
        raise InputError(f"the search {recipe.method!r} trains one network: workers and a scheduler have nothing to do")
    folder = None if directory is None else Path(directory)
    asked = Asked(
        gm,
        data,
        budget or Budget.default(),
        spec,
        hardware,
        tuple(quantities),
        loss,
        folder,
        progress,
        checkpoint_seconds,
        workers,
        scheduler,
    )
    return method.search(asked, recipe)
