"""The search that trains a network for every setting it looks at, in reading order: networks, surfaces, finals, a plan.

It is dear, and it models nothing of noise or capacity: what it finds is what there is to win, which cheaper methods are
held against.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import ndtri, stdtr

from nce_fx.data.data_split import holding_out
from nce_fx.errors import InputError
from nce_fx.passes.planning.choices import Rules
from nce_fx.passes.planning.settings import Setting, Settings
from nce_fx.processes import start_engine
from nce_fx.search.asked import NO_CHOICE, Asked, SearchResult, finish
from nce_fx.search.recipes import SurfaceRecipe
from nce_fx.search.surface_fit import Region, Surface, best_of, fitted
from nce_fx.search.surface_log import Final, Fit, SurfaceLog
from nce_fx.search.surface_networks import Measured, Networks, Wanted
from nce_fx.training.folder import held
from nce_fx.training.result import reporting

_STARTS = 8
"""From how many of the most promising settings that were trained the climb begins, beside the centre."""
_LEAST_CHANCE = 1e-300


def search_surface(asked: Asked, recipe: SurfaceRecipe) -> SearchResult[SurfaceLog]:
    """Train networks of many widths and climb the surface of their losses, see `nce_fx.search.search`."""
    cost = asked.cost
    settings = Settings.of(cost, asked.budget, Rules(1 / recipe.reach, recipe.reach))
    if not settings.choices.groups:
        raise InputError(NO_CHOICE)
    kept = holding_out(asked.data, recipe.held_out, recipe.seed)

    fits_as_it_is = bool(settings.fit(np.array([settings.original]))[0])
    start = settings.original if fits_as_it_is else settings.filled(np.ones(len(settings.original)))
    engine = start_engine()
    with (
        held(asked.directory if engine.is_main else None),
        reporting(asked.progress if engine.is_main else False) as report,
    ):
        networks = Networks(asked, recipe, kept, report)
        surface, fits, centres = _climbed(settings, recipe, networks, start)
        finals = _finals(settings, recipe, networks, surface, centres)

    costs = [cost.at({**asked.channels.widths, **one.widths}).total.by_quantity for one, _ in networks.found]
    log = SurfaceLog(tuple(networks.found), tuple(costs), tuple(fits), tuple(finals), asked.pinned)
    source = asked.source(recipe, metric="surface")
    told = [
        (one.widths, source | {"loss": one.loss, "first_loss": finals[0].loss, "better": one.better})
        for one in preferred(finals, recipe.sure)
    ]
    plan, network = asked.first_plan(told)
    return finish(asked, plan, log, networks.seconds, network)


def preferred(finals: Sequence[Final], sure: float) -> list[Final]:
    """Return the settings that are surely better than the first, the best first; then the first, then the others."""

    def place(one: Final) -> tuple[bool, bool, float]:
        return one is not finals[0] and one.better < sure, one is finals[0], one.loss

    return sorted(finals, key=place)


def spread_of_seeds(found: Sequence[tuple[Wanted, Measured]]) -> tuple[float, int]:
    """Return the standard deviation of the loss between networks of the same widths, and its degrees of freedom.

    NaN and 0 where no two are alike.
    """
    alike: dict[Mapping[str, int], list[float]] = {}
    for one, told in found:
        alike.setdefault(one.widths, []).append(told.loss)
    squares = sum(float(((np.array(own) - np.mean(own)) ** 2).sum()) for own in alike.values())
    free = sum(len(own) - 1 for own in alike.values())
    return (math.sqrt(squares / free) if free else math.nan), free


def surely(gain: float, error: float, free: int) -> float:
    """Return by how many standard errors a gain is more than nothing, as if the error were known exactly.

    It is known from so many degrees of freedom: of few, Student's distribution has it that more is needed.
    """
    if not gain or not error:
        return 0.0
    chance = max(float(stdtr(free, -abs(gain) / error)), _LEAST_CHANCE)
    return math.copysign(-float(ndtri(chance)), gain)


def _climbed(
    settings: Settings, recipe: SurfaceRecipe, networks: Networks, start: Setting
) -> tuple[Surface, list[Fit], list[Setting]]:
    """Return the last surface, what every round came to, and the centres: the first, then each round's best."""
    fits: list[Fit] = []
    centres = [start]
    for number in range(1, recipe.rounds + 1):
        centre, before = centres[-1], len(networks.found)
        generator = np.random.default_rng([recipe.seed, number])
        drawn = [settings.near(centre, recipe.deviation, generator) for _ in range(recipe.networks)]
        every = [("centre", centre)] * recipe.repeats + [("drawn", setting) for setting in drawn]
        networks.train(
            [
                Wanted(number, what, settings.widths(setting), recipe.seed + before + place)
                for place, (what, setting) in enumerate(every)
            ]
        )
        trained = [settings.setting(one.widths) for one, _ in networks.found]
        points, at = settings.logs(np.array(trained)), settings.logs(np.array([centre]))[0]
        surface = fitted(points, np.array([told.loss for _, told in networks.found]), at)
        region = Region.of(points[before:], at)
        best = best_of(surface, settings, region, [centre, *_promising(surface, settings, region, trained[before:])])
        fits.append(_fit_of(surface, settings, networks, best, number))
        centres.append(best)
    return surface, fits, centres


def _promising(surface: Surface, settings: Settings, region: Region, trained: Sequence[Setting]) -> list[Setting]:
    picks = np.array(list(dict.fromkeys(trained)))
    points = settings.logs(picks)
    order = np.argsort(np.where(region.has(points), surface(points), np.inf), kind="stable")
    return [tuple(picks[place].tolist()) for place in order[:_STARTS]]


def _fit_of(surface: Surface, settings: Settings, networks: Networks, best: Setting, number: int) -> Fit:
    groups = [group.id for group in settings.choices.groups]
    return Fit(
        round=number,
        networks=len(networks.found),
        slopes=dict(zip(groups, surface.slopes.tolist(), strict=True)),
        errors=dict(zip(groups, surface.errors.tolist(), strict=True)),
        curvature=surface.curvature,
        noise=surface.noise,
        seeds=spread_of_seeds(networks.found)[0],
        explained=surface.explained,
        ranked=surface.ranked,
        promised=surface.level - float(surface(settings.logs(np.array([best])))[0]),
    )


def _finals(
    settings: Settings, recipe: SurfaceRecipe, networks: Networks, surface: Surface, centres: Sequence[Setting]
) -> list[Final]:
    """Train the most promising settings and the first centre with fresh seeds; the latter comes first."""
    start = centres[0]

    def foretold(setting: Setting) -> float:
        return float(surface(settings.logs(np.array([setting])))[0])

    trained = [settings.setting(one.widths) for one, _ in networks.found]
    every = dict.fromkeys([*centres[1:], *trained])
    better = sorted((one for one in every if foretold(one) < foretold(start)), key=foretold)
    if centres[-1] in better:
        # What the last surface leads to is what all of it was for.
        better = [centres[-1], *(one for one in better if one != centres[-1])]
    chosen, first = [start, *better[: recipe.candidates]], len(networks.found)
    if len(chosen) == 1:
        known = [told for one, told in networks.found if one.widths == settings.widths(start)]
        return [_final(settings.widths(start), foretold(start), known, 0.0)]
    networks.train(
        [
            Wanted(recipe.rounds + 1, "final", settings.widths(setting), recipe.seed + first + k)
            for setting in chosen
            for k in range(recipe.finals)
        ]
    )
    told = [told for _, told in networks.found[first:]]
    runs = [told[k : k + recipe.finals] for k in range(0, len(told), recipe.finals)]
    own = np.mean([one.loss for one in runs[0]])
    spread, free = spread_of_seeds(networks.found)
    error = spread * math.sqrt(2 / recipe.finals)
    found = []
    for setting, mine in zip(chosen, runs, strict=True):
        gain = float(own - np.mean([one.loss for one in mine]))
        found.append(_final(settings.widths(setting), foretold(setting), mine, surely(gain, error, free)))
    return found


def _final(widths: Mapping[str, int], foretold: float, told: Sequence[Measured], better: float) -> Final:
    return Final(widths, foretold, tuple(one.loss for one in told), tuple(one.score for one in told), better)
