"""From preferences to a plan: the preferred widths, in their proportions, as far as the budgets reach.

The plan solves

    minimise  sum over groups of (v_g / w_g)^4      v the preferred widths, over all legal w within every budget

Without a budget that binds, all w_g / v_g would be as large as they may; with one, the power holds the ratios nearly
equal, so the network is the preferred one scaled to what may be spent, and what rounding leaves over is spent where the
network is narrowest against what it prefers. It is the planner's own problem (``plan_widths`` with sensitivities
(v_g / original_g)^4), so the budgets hold by construction, exactly, and the plan is a function of its inputs alone.
"""

import glob
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nce_fx.frozen import Frozen
from nce_fx.passes.analysis.cost import CostReport
from nce_fx.passes.planning import Budget, plan_widths
from nce_fx.passes.planning.budget import Reserve
from nce_fx.plan import WidthPlan

_POWER = 4.0


@dataclass(frozen=True)
class Importance(Frozen):
    """What the planner is given in the place of sensitivities: ``Importance({"conv1": 2.0}, "adapt")``."""

    by_group: Mapping[str, float]
    metric: str


def plan_from(
    cost: CostReport,
    preferred: Mapping[str, int],
    budget: Budget,
    *,
    least: float,
    most: float,
    source: Mapping[str, Any],
    reserve: Reserve | None = None,
) -> WidthPlan:
    """Return the plan within the budget that is nearest to the preferred widths.

    Args:
        cost: of the original network.
        preferred: the preferred width of every group that has a choice; others keep theirs.
        budget: upper limits.
        least: least width of a group, as a ratio of its own.
        most: greatest.
        source: what the plan shall say of where it comes from.
        reserve: how much of a limit stays free.

    Raises:
        BudgetError: no widths keep the budget.
    """
    channels = cost.model.channels
    wanted = {group: (width / channels[group].width) ** _POWER for group, width in preferred.items()}
    others = [glob.escape(group.id) for group in channels if group.pinned is None and group.id not in preferred]
    plan = plan_widths(
        channels,
        cost,
        Importance(wanted, "search"),
        budget,
        min_width=least,
        max_width=most,
        freeze=others,
        exponent=_POWER,
        streams=0.0,
        reserve=reserve,
    )
    return replace(plan, source={**plan.source, "preferred": dict(preferred), **source})
