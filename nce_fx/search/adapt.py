"""The search that moves widths while it trains, in reading order: what it begins with, what it trains, the plan."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from nce_fx.data.data_split import held_out, split_data
from nce_fx.data.loaders import CALIBRATION_BATCHES, CALIBRATION_SIZE, Data
from nce_fx.errors import InputError
from nce_fx.passes.analysis.channels import analyze_channels
from nce_fx.passes.analysis.cost import CostReport
from nce_fx.passes.planning.exact_budget import Reserve, plan_and_build
from nce_fx.passes.transform.quantize import RemoveQuantizers
from nce_fx.passes.transform.resize import resize
from nce_fx.pipeline import Given, Pipeline
from nce_fx.plan import WidthPlan
from nce_fx.processes import start_engine
from nce_fx.search.adapt_log import AdaptLog
from nce_fx.search.adapt_recipe import AdaptRecipe
from nce_fx.search.asked import NO_CHOICE, Asked, SearchResult, finish, seconds_of
from nce_fx.search.carrying import quantizing
from nce_fx.search.moves import Moves
from nce_fx.search.outcome import plan_from
from nce_fx.tasks import Task
from nce_fx.training.loop import fit
from nce_fx.training.run import prepare

_WIDEST = 16.0
"""How wide the first plan may make a group, as a ratio of its own: it only has to fit."""


def search_by_moves(asked: Asked, recipe: AdaptRecipe) -> SearchResult[AdaptLog]:
    """Move the widths of a network while it trains at its few bits, see `nce_fx.search.search` and `Moves`."""
    gm, budget, spec = asked.gm, asked.budget, asked.spec
    channels = analyze_channels(gm)
    left = {group.id: group.pinned for group in channels if group.pinned is not None}
    if len(left) == len(list(channels)):
        raise InputError(NO_CHOICE)
    cost = asked.cost(channels)
    nearest = partial(plan_from, cost, budget=budget, least=0.0, most=_WIDEST)

    begin = _widths_at(channels.widths, cost, asked)
    if begin is None:
        free = {group: width for group, width in channels.widths.items() if group not in left}
        begin = plan_and_build(lambda reserve: nearest(free, source={}, reserve=reserve), asked.built, budget, cost)[0]

    kept = _parted(asked.data, recipe)
    calibration = kept.batches(CALIBRATION_BATCHES, CALIBRATION_SIZE)
    network = Pipeline(quantizing(spec))(resize(gm, begin), Given(calibration)).graph_module
    callback = Moves(cost, recipe, budget, spec, calibration)
    task = Task.of(asked.loss, "loss")
    run = prepare(network, kept, recipe.training(), None, start_engine(), asked.directory, None, callback, task=task)
    run = fit(run, asked.progress, asked.checkpoint_seconds)

    log = AdaptLog(begin.widths, tuple(callback.tried), left)
    widths = analyze_channels(RemoveQuantizers()(run.model).graph_module.cpu()).widths
    about = {"data": asked.data.name, "seed": recipe.seed, "search": recipe.to_dict(), "moves": len(callback.path)}

    def planned(reserve: Reserve) -> WidthPlan:
        exact = None if reserve else _widths_at(widths, cost, asked)
        if exact is None:
            return nearest({group: widths[group] for group in channels.widths if group not in left}, source=about)
        return replace(exact, source={**exact.source, **about})

    plan, _ = plan_and_build(planned, asked.built, budget, cost)
    return finish(asked, plan, log, seconds_of(run), run.model)


def _widths_at(widths: dict[str, int], cost: CostReport, asked: Asked) -> WidthPlan | None:
    """Return the plan of these widths, ``None`` where they cost more than the budget."""
    spent, limits = cost.at(widths).total.by_quantity, asked.budget.limits(cost.total.by_quantity)
    if any(spent[name] > limit for name, limit in limits.items()):
        return None
    source = {
        "metric": "search",
        "budget": asked.budget.as_mapping(),
        "limits": limits,
        "cost": {name: spent[name] for name in limits},
    }
    channels = cost.model.channels
    return WidthPlan(widths, channels.widths, cost.model.fingerprint, source=source)


def _parted(data: Data, recipe: AdaptRecipe) -> Data:
    """Return the data whose test split is what was held out of its training split."""
    parts = held_out(data, recipe.held_out, recipe.seed)
    if parts is not None:
        return parts[0]
    # Batches of the user's own can only be halved.
    kept, other = split_data(data, recipe.seed)
    return replace(kept, test=other.train)
