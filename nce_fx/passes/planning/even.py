"""The widths that one factor for all groups comes to within a budget, such as 0.65 of each at half of the cost.

Where widths as they are cost more than a budget, this is what a plan has to beat: it knows nothing of the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from nce_fx.passes.analysis.cost import CostReport
from nce_fx.passes.planning.budget import Budget
from nce_fx.passes.planning.choices import Rules
from nce_fx.passes.planning.settings import Settings


def even_widths(cost: CostReport, budget: Budget, rules: Rules, reserve: Mapping[str, float]) -> dict[str, int]:
    """Return the width of every group, none wider than it was, that spends the budget as evenly as widths allow.

    Args:
        cost: of the network at its own widths.
        budget: the limits.
        rules: what the user allows; groups that keep their width do here, too.
        reserve: how much of a limit stays free, by quantity, see `nce_fx.passes.planning.exact_budget`.

    Raises:
        BudgetError: not even the narrowest network keeps the limits.
    """
    settings = Settings.of(cost, budget, replace(rules, max_width=1.0))
    left = {name: limit - reserve.get(name, 0.0) for name, limit in settings.limits.items()}
    chosen = replace(settings, limits=left).filled(np.ones(len(settings.original)))
    return {**cost.model.channels.widths, **settings.widths(chosen)}
