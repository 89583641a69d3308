"""The search, in reading order: candidates, a network that chooses among them, two losses in turn, a plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch.fx import GraphModule

from nce_fx.data.data_split import split_data
from nce_fx.data.loaders import CALIBRATION_BATCHES, CALIBRATION_SIZE, Data
from nce_fx.errors import InputError
from nce_fx.files import write_whole
from nce_fx.passes.analysis.channels import analyze_channels
from nce_fx.passes.analysis.cost import analyze_cost
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.planning import Budget
from nce_fx.passes.planning.exact_budget import plan_and_build
from nce_fx.passes.transform.quantize import QuantSpec, quantize
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.passes.transform.widths import InsertWidthChoices, channel_order
from nce_fx.passes.transform.widths.choice_sites import find_choice_sites
from nce_fx.pipeline import Given, Pipeline
from nce_fx.plan import WidthPlan
from nce_fx.quantities import Quantity
from nce_fx.search.candidates import first_candidates
from nce_fx.search.expansion import quantizing
from nce_fx.search.outcome import plan_from
from nce_fx.search.search_log import SearchLog
from nce_fx.search.search_recipe import SearchRecipe
from nce_fx.search.width_search import WidthSearch
from nce_fx.tasks import LossLike, Task
from nce_fx.training.engine import start_engine
from nce_fx.training.loop import fit
from nce_fx.training.progress import Progress
from nce_fx.training.run import prepare


@dataclass(frozen=True)
class SearchResult:
    """The widths that were found, and how."""

    plan: WidthPlan
    log: SearchLog
    seconds: float
    """Of training, over all of its interruptions."""
    network: GraphModule
    """The network that was searched, with its width choices."""


def search(
    gm: GraphModule,
    data: Data,
    recipe: SearchRecipe | None = None,
    *,
    budget: Budget | None = None,
    spec: QuantSpec | None = None,
    hardware: HardwareTable | None = None,
    quantities: Iterable[Quantity] = (),
    loss: LossLike = None,
    directory: str | Path | None = None,
    progress: Progress = False,
    checkpoint_seconds: float = 60.0,
) -> SearchResult:
    """Learn the width of every channel group by gradient, and return a plan that keeps every budget.

    With a directory the search leaves its logs, its picture, its checkpoints and ``plan.json`` there, and the same call
    made again goes on from the last checkpoint, to the same plan. Under ``torchrun`` the processes share every batch.

    Args:
        gm: a traced float network, at its original widths; trained, or with the weights the search shall start from.
        data: its training split is halved, between weights and widths.
        recipe: how to search.
        budget: upper limits; by default none of MACs, parameters, bit operations and weight bytes is more than those of
            ``gm``. What is no sum of products (peak memory, prices) has no part in the loss: only the plan keeps it.
        spec: how the network will be quantized, which it is while it is searched; None searches in float.
        hardware: the user's own cost of layers, which ``Budget(custom=...)`` limits.
        quantities: more rows of what a network costs, see `nce_fx.quantities`.
        loss: what to minimise beside the cost, as `nce_fx.training.train` takes it; cross entropy by default.
        directory: where to write; None for nowhere.
        progress: True for a bar on stderr where that is a terminal, or a function called after every step.
        checkpoint_seconds: the time from one checkpoint to the next.

    Raises:
        InputError: no group of the network has a width to choose.
        BudgetError: no widths keep the budget.
        TrainingError: the search cannot go on, or was stopped.
        ArtifactError: the directory holds the checkpoint of another run.
    """
    recipe, budget = recipe or SearchRecipe(), budget or Budget.default()
    channels = analyze_channels(gm)
    uniform = None if spec is None else quantize(gm, spec)
    cost = analyze_cost(gm, channels, quantized=uniform, hardware=hardware, quantities=quantities)
    start, order = first_candidates(channels, recipe), channel_order(gm)
    for group, reason in find_choice_sites(gm, start.candidates, order).refused.items():
        del start.candidates[group]
        start.left[group] = reason
    if not start.candidates:
        raise InputError("no group of the network has widths to choose from: see `nce-fx analyze MODEL --groups`")
    least = min(widths[0] / channels[group].width for group, widths in start.candidates.items())
    within = partial(
        plan_from,
        cost,
        budget=budget,
        least=min(least, recipe.ratios[0]),
        most=recipe.max_ratio if recipe.expand else 1.0,
    )
    # Before anything takes long: a budget that no plan can meet.
    within({group: widths[0] for group, widths in start.candidates.items()}, source={})

    for_weights, for_widths = split_data(data, recipe.seed)
    quantized = spec if recipe.quantized else None
    choices = InsertWidthChoices(start.candidates, order, recipe.mixing)
    prepared = Pipeline((*quantizing(quantized), choices))
    network = prepared(gm, Given(data.batches(CALIBRATION_BATCHES, CALIBRATION_SIZE))).graph_module
    callback = WidthSearch(for_widths, cost, start.candidates, order, recipe, budget, quantized)
    folder = None if directory is None else Path(directory)
    engine = start_engine()
    run = prepare(network, for_weights, recipe.training(), None, engine, folder, None, callback, task=Task.of(loss))
    run = fit(run, progress, checkpoint_seconds)

    log = SearchLog(tuple(callback.epochs), tuple(callback.expansions), start.left)
    source = {
        "data": data.name,
        "seed": recipe.seed,
        "search": recipe.to_dict(),
        "expansions": len(log.expansions),
    }
    plan, _ = plan_and_build(
        lambda reserve: within(log.epochs[-1].widths, source=source, reserve=reserve),
        lambda plan: Pipeline((ResizeChannels(plan), *quantizing(spec)))(gm).graph_module,
        budget,
        cost,
    )
    if folder is not None and engine.is_main:
        log.write(folder, channels.widths)
        write_whole(folder / "plan.json", plan.to_json().encode())
    seconds = sum(record.seconds for record in run.position.history)
    return SearchResult(plan, log, seconds, run.model)
