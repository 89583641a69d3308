"""A plan held against the network that is built from it, by the count that the report makes.

What a plan costs is known before anything is built, exactly, but for what a resize may have to put into the graph: a
product with the shares of copies, say, whose value is one more that is in memory. Where that breaks a limit, the plan
is made again with so much of the limit left free.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch.fx import GraphModule

from nce_fx.errors import BudgetError
from nce_fx.passes.analysis.channels.graph import ChannelGraph
from nce_fx.passes.analysis.cost import Cost, CostReport, analyze_cost
from nce_fx.passes.planning.budget import Budget
from nce_fx.plan import WidthPlan

Reserve = Mapping[str, float]
"""Quantity -> how much of its limit a plan leaves free: ``{"activation_bytes": 256}``."""

_ATTEMPTS = 6


def count(gm: GraphModule, like: CostReport | None = None) -> Cost:
    """Return what a network costs as it is, at the bits of its own quantizers, in the quantities of a report."""
    hardware, rows = (None, ()) if like is None else (like.model.hardware, like.model.quantities.values())
    # At its own widths no axis needs a group, so the channels need no analysis.
    return analyze_cost(gm, ChannelGraph((), (), {}, {}), hardware=hardware, quantities=rows).total


def budget_at(cost: CostReport, asked: CostReport, budget: Budget) -> Budget:
    """Return a budget whose ratios are of one cost as one whose ratios are of another: the same limits."""
    if cost is asked:
        return budget
    before, limits = cost.total.by_quantity, budget.limits(asked.total.by_quantity)
    return Budget(**{name: limit / before[name] if before[name] else 1.0 for name, limit in limits.items()})


def plan_and_build(
    plan: Callable[[Reserve], WidthPlan],
    build: Callable[[WidthPlan], GraphModule],
    budget: Budget,
    cost: CostReport,
) -> tuple[WidthPlan, GraphModule]:
    """Return a plan whose network keeps every limit in the count that the report makes, and that network.

    Args:
        plan: makes the plan that leaves so much of each limit free.
        build: makes the network of a plan.
        budget: the limits.
        cost: of the original network.

    Raises:
        BudgetError: no such plan was found.
    """
    reserve: dict[str, float] = {}
    limits = budget.limits(cost.total.by_quantity)
    for _ in range(_ATTEMPTS):
        found = plan(reserve)
        network = build(found)
        counted = count(network, cost).by_quantity
        over = {name: counted[name] - limit for name, limit in limits.items() if counted[name] > limit}
        if not over:
            claimed = found.source.get("cost", {})
            other = {name: counted[name] for name in limits if isinstance(counted[name], int)}
            if any(value != claimed.get(name) for name, value in other.items()):
                found = replace(found, source={**found.source, "cost": {**claimed, **other}})
                network = build(found)
            return found, network
        reserve |= {name: reserve.get(name, 0.0) + excess for name, excess in over.items()}
    most = ", ".join(f"{name} by {excess:,.0f}" for name, excess in over.items())
    raise BudgetError(f"the network of every plan tried is over its limit, at last {most}: raise the budget by so much")
