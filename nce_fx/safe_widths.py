"""What a plan has to beat: the widths as they are or, where these cost too much, all narrowed by one factor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import geometric_mean

from nce_fx.end_bits import total_noise
from nce_fx.passes.analysis.cost import CostReport
from nce_fx.passes.analysis.sensitivity import SensitivityReport
from nce_fx.passes.planning import Budget
from nce_fx.plan import WidthPlan


def too_dear(cost: CostReport, budget: Budget) -> bool:
    """Return whether the widths as they are cost more than a budget."""
    before = cost.total.by_quantity
    return any(before[name] > limit for name, limit in budget.limits(before).items())


def factor_of(plan: WidthPlan) -> float:
    """Return the geometric mean of the ratios that a plan changes widths by; 1 where it changes none."""
    ratios = [width / plan.original[group] for group, width in plan.changed.items()]
    return geometric_mean(ratios) if ratios else 1.0


def kept(plan: WidthPlan, widths: Mapping[str, int], cost: CostReport, sensitivity: SensitivityReport) -> WidthPlan:
    """Return the plan of widths that are safe, saying what it was held against.

    Args:
        plan: what it was held against.
        widths: of every group.
        cost: of the network at its own widths.
        sensitivity: of the same network.
    """
    source = {name: value for name, value in plan.source.items() if name not in ("end_bits", "bound", "gap", "noise")}
    same, channels = replace(plan, widths=dict(plan.original)), cost.model.channels
    after, before = (total_noise(channels, sensitivity, each) for each in (replace(plan, widths=dict(widths)), same))
    source |= {"objective": plan.source["noise_before"] + (after - before), "kept": "a trial found nothing better"}
    spent = cost.at(widths).total.by_quantity
    source["cost"] = {name: spent[name] for name in plan.source["cost"]}
    return replace(plan, widths=dict(widths), source=source)
