"""The rows of the evidence: where each takes its widths, or its bits, from."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import geometric_mean
from typing import Any

import numpy as np
from torch.fx import GraphModule

import nce_fx
from benchmarks.evidence.bench import Bench, Choice, Plan
from benchmarks.evidence.mixed import mixed
from nce_fx.candidates import around
from nce_fx.end_bits import plan_ends
from nce_fx.errors import InputError
from nce_fx.passes.planning.budget import Reserve, budget_at, plan_and_build
from nce_fx.passes.planning.choices import Rules
from nce_fx.passes.planning.even import even_widths
from nce_fx.plan import WidthPlan
from nce_fx.report.records import CostRecord
from nce_fx.rewrite import plan_analyzed
from nce_fx.search import AdaptRecipe, SlimmableRecipe, SurfaceRecipe, search
from nce_fx.search.search import AnyRecipe


@dataclass(frozen=True)
class Row:
    """How a row chooses, and what it is in words."""

    choose: Callable[[Bench], Choice]
    about: str
    searches: bool = True
    """Whether it needs the trained float network to choose: training that is then a cost of its search."""


@dataclass(frozen=True)
class Outcome:
    """What a row is written from."""

    accuracy: float
    cost: CostRecord
    """Of one example."""
    search_seconds: float
    train_seconds: float
    widths: Plan


def uniform(bench: Bench) -> Choice:
    """The widths as given."""
    return Choice(bench.channels.widths)


def uniform_longer(bench: Bench) -> Choice:
    """The widths as given, and in float the epochs that finding a plan takes as well: those of the float network."""
    return Choice(bench.channels.widths, float_times=2)


def nce_plan(bench: Bench) -> Choice:
    """Sensitivity and solver, as `nce-fx rewrite` does it; no search."""

    limits: dict[str, Any] = {"capacity": bench.study.capacity, "streams": bench.study.streams}
    if bench.study.region is not None:
        even, before = multiplier(bench).widths, bench.channels.widths
        near = geometric_mean([even[name] / before[name] for name in even])
        limits["min_width"], limits["max_width"] = around(near, bench.study.region)

    def plan(reserve: Reserve) -> WidthPlan:
        return plan_analyzed(bench.analyses, bench.budget, reserve, **limits)

    def build(found: WidthPlan) -> GraphModule:
        return nce_fx.quantize(nce_fx.resize(bench.untrained, found), bench.spec)

    return Choice(plan_and_build(plan, build, bench.budget, bench.cost)[0].widths)


def nce_ends(bench: Bench) -> Choice:
    """As nce-plan, with the weight bits of the first and last layers chosen with the widths."""
    limits: dict[str, Any] = {"capacity": bench.study.capacity, "streams": bench.study.streams}
    planned, _ = plan_ends(bench.analyses, bench.budget, bench.batches, bench.study.metric, limits)

    def plan(reserve: Reserve) -> WidthPlan:
        return plan_analyzed(planned, budget_at(planned.cost, bench.cost, bench.budget), reserve, **limits)

    def build(found: WidthPlan) -> GraphModule:
        return nce_fx.quantize(nce_fx.resize(bench.untrained, found), planned.spec)

    return Choice(plan_and_build(plan, build, bench.budget, bench.cost)[0].widths, planned.spec)


def uniform_ends(bench: Bench) -> Choice:
    """The widths as given, with the ends' bits of nce-ends: what bits alone do."""
    return Choice(bench.channels.widths, nce_ends(bench).spec)


def multiplier(bench: Bench) -> Choice:
    """One factor for all groups: the greatest that the budget allows, which at a budget of 1.0 is 1.

    What is left of a smaller budget is spent too. It is the rival that `nce_fx.rewrite` has within such a budget.
    """
    widths = even_widths(bench.cost, bench.budget, Rules(min_width=0.0), {})
    return Choice({name: widths[name] for name in free_groups(bench)})


def random_plan(bench: Bench) -> Choice:
    """Ratios drawn evenly on a logarithmic scale from 1/2 to 2, times the greatest factor that the budget allows.

    What is left of the budget is spent too, a step at a time on groups in random order: a control that costs less than
    it may would be none.
    """
    steps, before = free_groups(bench), bench.channels.widths
    generator = np.random.default_rng(bench.seed)
    drawn = np.exp2(generator.uniform(-1, 1, len(steps)))
    widths = dict(fill(bench, dict(zip(steps, drawn.tolist(), strict=True))))
    growing = generator.permutation(list(steps)).tolist()
    while growing:
        name = growing[0]
        wider = {**widths, name: widths[name] + steps[name]}
        if bench.fits(wider) and wider[name] <= 2 * before[name]:
            widths, growing = wider, [*growing[1:], name]
        else:
            growing = growing[1:]
    return Choice(widths)


def shuffled(bench: Bench) -> Choice:
    """As nce-plan, with the sensitivities permuted among the groups that may change."""
    analyses = bench.analyses
    free, found = list(free_groups(bench)), analyses.sensitivity.by_group
    others = np.random.default_rng(bench.seed).permutation(free).tolist()
    moved = {group: found[other] for group, other in zip(free, others, strict=True)}
    wrong = replace(analyses.sensitivity, by_group={**found, **moved})
    return Choice(plan_analyzed(replace(analyses, sensitivity=wrong), bench.budget).widths)


def searched(bench: Bench, name: str, **changes: Any) -> Choice:
    """Widths learned by gradient, starting where the 2-bit networks start."""
    return found_by(bench, name, bench.study.searching(bench.seed, **changes))


def slimmable(bench: Bench) -> Choice:
    """The best of the settings of one network of choosable widths, trained for the epochs of the search by gradient."""
    epochs = bench.study.searching(bench.seed).epochs
    return found_by(bench, "slimmable", SlimmableRecipe(epochs=epochs, evaluations=25 * epochs, seed=bench.seed))


def adapted(bench: Bench) -> Choice:
    """Widths moved while the quantized network trains, for four times the epochs of the published search."""
    epochs = 4 * bench.study.searching(bench.seed).epochs
    warmup = min(AdaptRecipe.warmup_epochs, epochs // 4)
    return found_by(bench, "adapt", AdaptRecipe(epochs=epochs, warmup_epochs=warmup, seed=bench.seed))


def surface(bench: Bench) -> Choice:
    """The best of a surface over the widths of networks trained as the rows are, each stage with half of the epochs."""
    stages = bench.study.float_training(bench.seed), bench.study.retraining(bench.seed)
    in_float, low = (max(1, stage.epochs // 2) for stage in stages)
    recipe = SurfaceRecipe(epochs=low, float_epochs=in_float, seed=bench.seed)
    return found_by(bench, "nce-surface", recipe, bench.untrained)


def found_by(bench: Bench, name: str, recipe: AnyRecipe, begin: GraphModule | None = None) -> Choice:
    """Widths found by training, by default from what the 2-bit networks start from."""
    if begin is None:
        begin = bench.teacher if bench.study.start == "float" else bench.untrained
    folder = bench.work / f"{name}-search"
    result = search(
        copy.deepcopy(begin).train(), bench.data, recipe, budget=bench.budget, spec=bench.spec, directory=folder
    )
    return Choice(result.plan.widths)


FLOAT = "float"
CHOICES: Mapping[str, Row] = {
    "uniform": Row(uniform, "low precision, widths as given", searches=False),
    "uniform-longer": Row(
        uniform_longer, "uniform, with the float training that a plan is found with on top of its own", searches=False
    ),
    "nce-plan": Row(nce_plan, "sensitivity and solver, no search (`nce-fx rewrite`)"),
    "nce-ends": Row(nce_ends, "nce-plan that chooses the bits of the ends' weights too (`--end-bits plan`)"),
    "uniform-ends": Row(uniform_ends, "widths as given, the ends' bits of nce-ends"),
    "multiplier": Row(
        multiplier,
        "one factor for all groups, the greatest that the budget allows; at 1.0x it is 1: uniform's own run",
        searches=False,
    ),
    "random": Row(
        random_plan, "random ratios from 1/2 to 2, scaled and filled up until the budget is spent", searches=False
    ),
    "shuffled": Row(shuffled, "nce-plan with the sensitivities permuted among the groups"),
    "mixed": Row(mixed, "widths as given, 1 to 4 bits a layer, chosen by sensitivity at uniform's cost"),
    "nce-search": Row(
        lambda bench: searched(bench, "nce-search"),
        "widths learned on the quantized network, expanding (`nce-fx search`)",
    ),
    "adapt": Row(adapted, "widths moved while the quantized network trains (`nce-fx search --method adapt`)"),
    "slimmable": Row(
        slimmable, "the best setting of one network of choosable widths (`nce-fx search --method slimmable`)"
    ),
    "nce-surface": Row(
        surface,
        "the best of a surface fitted to trained networks, a hundred of them (`nce-fx search --method surface`)",
        searches=False,
    ),
    "no-expand": Row(lambda bench: searched(bench, "no-expand", expand=False), "the search without expansion: TAS"),
    "float-search": Row(
        lambda bench: searched(bench, "float-search", quantized=False),
        "the search on the float network, quantized afterwards",
    ),
}
ROWS = (FLOAT, *CHOICES)


def run_row(bench: Bench, row: str) -> Outcome:
    """Find the widths of a row, train it, and return what came of it.

    Raises:
        InputError: the row costs more than the budget: it is no evidence.
    """
    if row == FLOAT:
        gm, accuracy, seconds = bench.float_network(bench.channels.widths)
        return Outcome(accuracy, bench.cost_of(gm), 0.0, seconds, bench.channels.widths)
    found = 0.0
    if CHOICES[row].searches:
        found = bench.float_network(bench.channels.widths)[2]
    with bench.watch.timed(f"widths {row}"):
        choice = CHOICES[row].choose(bench)
    choice = replace(choice, widths={**bench.channels.widths, **choice.widths})
    refuse_dearer(bench, row, choice)
    gm, accuracy, seconds = bench.low_precision_network(choice)
    found += bench.watch[f"widths {row}"]
    return Outcome(accuracy, bench.cost_of(gm), round(found, 2), round(seconds, 2), choice.widths)


def refuse_dearer(bench: Bench, row: str, choice: Choice) -> None:
    """Raise where the network of a choice costs more than the budget, before it is trained.

    Raises:
        InputError: says of what, and how much.
    """
    over = bench.excess(nce_fx.quantize(bench.network(choice.widths), choice.spec or bench.spec))
    if over:
        raise InputError(f"{row} costs more than {bench.study.budget:g}x uniform's, it is no evidence: {over}")


def free_groups(bench: Bench) -> dict[str, int]:
    """Return the groups that may change, and the steps their widths come in."""
    return {group.id: group.step for group in bench.channels.groups if group.pinned is None}


def fill(bench: Bench, ratios: Mapping[str, float]) -> Plan:
    """Return the widths of these ratios times the greatest common factor, from 1/8 to 8, that the budget allows."""

    def at(factor: float) -> Plan:
        steps, widths = free_groups(bench), bench.channels.widths
        return {
            name: max(1, math.floor(widths[name] * ratio * factor / steps[name] + 0.5)) * steps[name]
            for name, ratio in ratios.items()
        }

    # The cost rises with the factor, by steps: bisection ends at the last step that fits.
    low, high = 0.125, 8.0
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if bench.fits(at(middle)) else (low, middle)
    return at(low)
