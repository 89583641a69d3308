"""The plans of a rewrite: the planner's own, plans that move widths less far, and what they have to beat.

What they have to beat is safe: the widths as they are or, where these cost too much, all narrowed by one factor, which
knows nothing of the network.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from statistics import geometric_mean
from typing import Any, NamedTuple

from torch.fx import GraphModule

from nce_fx.analyses import Analyses
from nce_fx.end_bits import total_noise
from nce_fx.errors import BudgetError
from nce_fx.frozen import Frozen
from nce_fx.passes.planning import Budget
from nce_fx.passes.planning.budget import Reserve, budget_at, plan_and_build
from nce_fx.passes.planning.choices import Rules
from nce_fx.passes.planning.even import even_widths
from nce_fx.plan import WidthPlan

UNIFORM = "own widths"
EVEN = "all narrowed by one factor"
"""What is safe where the widths as they are cost more than the budget."""


class Candidate(NamedTuple):
    """A plan, the network that is built from it, and what the plan was made from."""

    plan: WidthPlan
    graph_module: GraphModule
    analyses: Analyses


@dataclass(frozen=True)
class Candidates(Frozen):
    """What the plans of one rewrite are made from."""

    given: Analyses
    """At the bits that were asked for, which the budget's ratios are of."""
    planned: Analyses
    """The same, or at the bits of the ends that were planned."""
    budget: Budget
    limits: Mapping[str, Any]
    """Of widths, as `plan_widths` takes them."""
    about: Mapping[str, Any]
    """What a plan shall say of where it comes from."""
    plan: Callable[..., WidthPlan]
    """(analyses, budget, what of it stays free) -> a plan, with ``source`` and the limits by name."""
    build: Callable[..., GraphModule]
    """plan -> its network, with ``spec`` and the ``uniform`` network by name."""

    def within(self, least: float, most: float) -> Candidate:
        """Return the best plan whose widths move no further than this, in the budget by the count of its network.

        Raises:
            BudgetError: no plan meets the budget.
        """
        limits = dict(self.limits)
        limits |= {"min_width": max(least, limits["min_width"]), "max_width": min(most, limits["max_width"])}
        asked = budget_at(self.planned.cost, self.given.cost, self.budget)

        def plan(reserve: Reserve) -> WidthPlan:
            found = self.plan(self.planned, asked, reserve, source={**self.about, **self.rival}, **limits)
            return replace(found, source={**found.source, "budget": self.budget.as_mapping()})

        return self._built(plan, self.planned)

    def beside(self, best: Candidate, regions: Sequence[tuple[float, float]]) -> dict[str, Candidate]:
        """Return what a plan is tried with, by name: what is safe first, then it, then plans nearer to what is safe."""

        def safe_plan(reserve: Reserve) -> WidthPlan:
            return kept(best.plan, self._even(reserve) if self.dear else best.plan.original, self.given)

        safe = self._built(safe_plan, self.given)
        found = {EVEN if self.dear else UNIFORM: safe}
        found[f"{self.limits['min_width']:g}x to {self.limits['max_width']:g}x"] = best
        # Around the factor that all widths are narrowed by, where they are.
        near = factor_of(safe.plan)
        for region in regions:
            least, most = around(near, region)
            with suppress(BudgetError):  # so near no plan may keep the budget
                other = self.within(least, most)
                if other.plan.changed and all(other.plan.widths != each.plan.widths for each in found.values()):
                    found[f"{least:.3g}x to {most:.3g}x"] = other
        return found

    @cached_property
    def dear(self) -> bool:
        """Whether the widths as they are cost more than the budget."""
        before = self.given.cost.total.by_quantity
        return any(before[name] > limit for name, limit in self.budget.limits(before).items())

    @cached_property
    def rival(self) -> dict[str, dict[str, int]]:
        """What plans say of the rival within a budget that the widths as they are do not keep, under ``even``.

        Nothing where they do, and where with the ends' bits as given there are no such widths.
        """
        if self.dear:
            with suppress(BudgetError):
                return {"even": self._even({})}
        return {}

    def _even(self, reserve: Reserve) -> dict[str, int]:
        return even_widths(self.given.cost, self.budget, Rules(**self.limits), reserve)

    def _built(self, plan: Callable[[Reserve], WidthPlan], analyses: Analyses) -> Candidate:
        build = partial(self.build, spec=analyses.spec, uniform=analyses.uniform)
        return Candidate(*plan_and_build(plan, build, self.budget, self.given.cost), analyses)


def around(factor: float, region: tuple[float, float]) -> tuple[float, float]:
    """Return the least and the greatest ratio of a region around a factor; every group may keep its width."""
    low, high = region
    return low * factor, max(1.0, high * factor)


def factor_of(plan: WidthPlan) -> float:
    """Return the geometric mean of the ratios that a plan changes widths by; 1 where it changes none."""
    ratios = [width / plan.original[group] for group, width in plan.changed.items()]
    return geometric_mean(ratios) if ratios else 1.0


def kept(plan: WidthPlan, widths: Mapping[str, int], analyses: Analyses) -> WidthPlan:
    """Return the plan of ``widths`` of every group, which are safe, saying which plan it was held against."""
    cost, channels = analyses.cost, analyses.channels
    source = {name: value for name, value in plan.source.items() if name not in ("end_bits", "bound", "gap", "noise")}
    same, safe = replace(plan, widths=dict(plan.original)), replace(plan, widths=dict(widths))
    after, before = (total_noise(channels, analyses.sensitivity, each) for each in (safe, same))
    spent = cost.at(widths).total.by_quantity
    source |= {"objective": plan.source["noise_before"] + (after - before), "kept": "a trial found nothing better"}
    source["cost"] = {name: spent[name] for name in plan.source["cost"]}
    return replace(safe, source=source)
