"""What knows nothing of a network: all widths narrowed by one factor; and how far a plan may leave it behind.

A residual stream, such as ``conv1`` of a ResNet, holds all that its blocks hand on. At the 8 bits that shortcuts have
it makes little noise, so noise alone narrows it first within a budget below the network's own cost; what is lost there
nothing behind it brings back (docs/search.md has the figures).
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from nce_fx.passes.analysis.channels.graph import ChannelGraph
from nce_fx.passes.analysis.cost import CostReport
from nce_fx.passes.planning.budget import Budget, Reserve
from nce_fx.passes.planning.choices import Rules
from nce_fx.passes.planning.settings import Settings


def even_widths(cost: CostReport, budget: Budget, rules: Rules, reserve: Reserve) -> dict[str, int]:
    """Return the width of every group, none wider than it was, that spends the budget as evenly as widths allow.

    Such as 0.65 of each at half of the cost.

    Args:
        cost: of the network at its own widths.
        budget: the limits.
        rules: what the user allows; groups that keep their width do here, too.
        reserve: how much of a limit stays free, by quantity, see `nce_fx.passes.planning.budget`.

    Raises:
        BudgetError: not even the narrowest network keeps the limits.
    """
    settings = Settings.of(cost, budget, replace(rules, max_width=1.0))
    left = {name: limit - reserve.get(name, 0.0) for name, limit in settings.limits.items()}
    chosen = replace(settings, limits=left).filled(np.ones(len(settings.original)))
    return {**cost.model.channels.widths, **settings.widths(chosen)}


def stream_widths(channels: ChannelGraph, even: Mapping[str, int], share: float) -> dict[str, int]:
    """Return the least width of each residual stream: so much of what one factor for all groups leaves it."""
    return {group.id: int(-(-share * even[group.id] // 1)) for group in channels if group.sums}
