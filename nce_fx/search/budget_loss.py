"""The loss of a width step: cross entropy, and what keeps the network within its budgets.

    L = CE + lambda_flop * L_flop + lambda_param * L_param

    L_x = + log E[cost]   where the preferred network costs more than the budget R
          - log E[cost]   where it costs less than R - t,   t a share of the original cost
            0             in between

(TAS, Dong and Yang 2019.) The preferred network takes the likeliest candidate of every group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from nce_fx.passes.analysis.cost_model import CostModel
from nce_fx.passes.planning import Budget
from nce_fx.search.expected_cost import ExpectedCost, expected_cost
from nce_fx.search.search_recipe import SearchRecipe


@dataclass(frozen=True)
class Limited:
    """One quantity with a budget."""

    name: str
    cost: ExpectedCost
    limit: float
    slack: float
    weight: float

    def loss(self, shares: Sequence[Tensor], picks: Sequence[int]) -> Tensor | None:
        """Return the weighted loss, or ``None`` where the preferred network is where it should be."""
        now = self.cost.at(picks)
        if now > self.limit:
            return self.weight * self.cost(shares).log()
        return -self.weight * self.cost(shares).log() if now < self.limit - self.slack else None


@dataclass(frozen=True)
class Costs:
    """All quantities with a budget and a gradient, over the same candidates."""

    limited: tuple[Limited, ...]

    def loss(self, shares: Sequence[Tensor], picks: Sequence[int]) -> Tensor | None:
        """Return the sum of the losses, in float64; ``None`` where all are zero."""
        parts = [part for one in self.limited if one.weight and (part := one.loss(shares, picks)) is not None]
        return sum(parts[1:], parts[0]) if parts else None

    def over(self, picks: Sequence[int]) -> str | None:
        """Return the first quantity that a network exceeds its budget in."""
        return next((one.name for one in self.limited if one.cost.at(picks) > one.limit), None)

    def used(self, picks: Sequence[int]) -> dict[str, float]:
        """Return what a network costs, as shares of the budgets."""
        return {one.name: one.cost.at(picks) / one.limit for one in self.limited}


def costs_of(model: CostModel, candidates: Mapping[str, Sequence[int]], budget: Budget, recipe: SearchRecipe) -> Costs:
    """Return the costs of a network whose groups choose among candidates."""
    original = model.totals([part.width for part in model.channels.parts])
    return Costs(
        tuple(
            Limited(
                name,
                expected_cost(model, candidates, name),
                limit,
                recipe.band * original[name],
                recipe.lambda_flop if model.quantities[name].search == "computation" else recipe.lambda_param,
            )
            for name, limit in budget.limits(original).items()
            if model.quantities[name].search is not None
        )
    )
