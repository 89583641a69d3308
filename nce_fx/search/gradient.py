"""The search by gradient, in reading order: candidates, a network that chooses among them, two losses, a plan."""

from functools import partial

from nce_fx.data.data_split import split_data
from nce_fx.errors import InputError
from nce_fx.passes.planning.budget import plan_and_build
from nce_fx.passes.transform.widths import InsertWidthChoices, channel_order
from nce_fx.passes.transform.widths.choice_sites import find_choice_sites
from nce_fx.search.asked import NO_CHOICE, Asked, SearchResult, calibrated, finish, seconds_of
from nce_fx.search.expansion import first_candidates
from nce_fx.search.outcome import plan_from
from nce_fx.search.recipes import SearchRecipe
from nce_fx.search.search_log import SearchLog
from nce_fx.search.width_search import WidthSearch
from nce_fx.tasks import Task


def search_by_gradient(asked: Asked, recipe: SearchRecipe) -> SearchResult[SearchLog]:
    """Learn the width of every channel group by gradient, see `nce_fx.search.search`."""
    gm, budget, spec, channels, cost = asked.gm, asked.budget, asked.spec, asked.channels, asked.cost
    start, order = first_candidates(channels, recipe), channel_order(gm)
    for group, reason in find_choice_sites(gm, start.candidates, order).refused.items():
        del start.candidates[group]
        start.left[group] = reason
    if not start.candidates:
        raise InputError(NO_CHOICE)
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

    for_weights, for_widths = split_data(asked.data, recipe.seed)
    quantized = spec if recipe.quantized else None
    choices = InsertWidthChoices(start.candidates, order, recipe.mixing)
    network = calibrated(gm, quantized, asked.data, choices)
    callback = WidthSearch(for_widths, cost, start.candidates, order, recipe, budget, quantized)
    run = asked.trained(network, for_weights, recipe.training(), callback, Task.of(asked.loss))

    log = SearchLog(tuple(callback.epochs), tuple(callback.expansions), start.left)
    planned = partial(within, log.epochs[-1].widths, source=asked.source(recipe, expansions=len(log.expansions)))
    plan, _ = plan_and_build(lambda reserve: planned(reserve=reserve), asked.built, budget, cost)
    return finish(asked, plan, log, seconds_of(run), run.model)
