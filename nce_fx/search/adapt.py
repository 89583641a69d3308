"""The search that moves widths while it trains, in reading order: what it begins with, what it trains, the plan."""

from functools import partial

from nce_fx.data.data_split import holding_out
from nce_fx.data.loaders import CALIBRATION_BATCHES, CALIBRATION_SIZE
from nce_fx.errors import InputError
from nce_fx.passes.analysis.channels import analyze_channels
from nce_fx.passes.planning.budget import Reserve, plan_and_build
from nce_fx.passes.transform.quantize import RemoveQuantizers
from nce_fx.passes.transform.resize import resize
from nce_fx.plan import WidthPlan
from nce_fx.search.adapt_log import AdaptLog
from nce_fx.search.asked import NO_CHOICE, Asked, SearchResult, calibrated, finish, seconds_of
from nce_fx.search.moves import Moves
from nce_fx.search.outcome import plan_from
from nce_fx.search.recipes import AdaptRecipe
from nce_fx.tasks import Task

_WIDEST = 16.0
"""How wide the first plan may make a group, as a ratio of its own: it only has to fit."""


def search_by_moves(asked: Asked, recipe: AdaptRecipe) -> SearchResult[AdaptLog]:
    """Move the widths of a network while it trains at its few bits, see `nce_fx.search.search` and `Moves`."""
    budget, spec, channels, left = asked.budget, asked.spec, asked.channels, asked.pinned
    if len(left) == len(channels.groups):
        raise InputError(NO_CHOICE)
    cost = asked.cost
    nearest = partial(plan_from, cost, budget=budget, least=0.0, most=_WIDEST)

    begin = asked.plan_at({}, {"metric": "search"})
    if begin is None:
        free = {group: width for group, width in channels.widths.items() if group not in left}
        begin = plan_and_build(lambda reserve: nearest(free, source={}, reserve=reserve), asked.built, budget, cost)[0]

    kept = holding_out(asked.data, recipe.held_out, recipe.seed)
    callback = Moves(cost, recipe, budget, spec, kept.batches(CALIBRATION_BATCHES, CALIBRATION_SIZE))
    network = calibrated(resize(asked.gm, begin), spec, kept)
    run = asked.trained(network, kept, recipe.training(), callback, Task.of(asked.loss, "loss"))

    log = AdaptLog(begin.widths, tuple(callback.tried), left)
    widths = analyze_channels(RemoveQuantizers()(run.model).graph_module.cpu()).widths
    about = asked.source(recipe, moves=len(callback.path))

    def planned(reserve: Reserve) -> WidthPlan:
        exact = None if reserve else asked.plan_at(widths, {"metric": "search", **about})
        free = {group: widths[group] for group in channels.widths if group not in left}
        return exact or nearest(free, source=about)

    plan, _ = plan_and_build(planned, asked.built, budget, cost)
    return finish(asked, plan, log, seconds_of(run), run.model)
