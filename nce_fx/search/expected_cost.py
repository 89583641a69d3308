"""What a network costs in the mean when every group draws its width by its preferences; in closed form.

A cost is a sum of products of axis lengths, and an axis length is a sum of one function for each group on it. So a cost
is a sum of products of functions of single groups; those of different groups are independent, and the mean of a product
is the product of the means:

    E[cost] = sum over monomials of coefficient * product over groups g of  sum_j p_g[j] * f(width j of group g)

Several axes of one term may follow the same group (a convolution within a residual stage): their functions are
multiplied before the mean is taken, so nothing is approximated. Everything is in float64 and differentiable in p.

The loss of a width step is cross entropy, and what keeps the network within its budgets:

    L = CE + lambda_flop * L_flop + lambda_param * L_param

    L_x = + log E[cost]   where the preferred network costs more than the budget R
          - log E[cost]   where it costs less than R - t,   t a share of the original cost
            0             in between

(TAS, Dong and Yang 2019.) The preferred network takes the likeliest candidate of every group.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nce_fx.passes.analysis.cost_model import CostModel
from nce_fx.passes.analysis.polynomial import Floats, Term
from nce_fx.passes.planning import Budget
from nce_fx.quantities import Sums
from nce_fx.search.recipes import SearchRecipe

Values = tuple[float, ...]
"""A function of one group: its value at each candidate."""


@dataclass(frozen=True)
class ExpectedCost:
    """One quantity over the candidates of all groups."""

    table: Tensor
    """Functions of single groups (functions x candidates of all groups in turn); the first is the constant 1."""
    monomials: Tensor
    """Indices of functions (monomials x most factors), padded with 0."""
    coefficients: Tensor
    counts: tuple[int, ...]

    def __call__(self, shares: Sequence[Tensor]) -> Tensor:
        """Return the mean cost, 0-dimensional; ``shares`` are the probabilities of each group's candidates."""
        means = self.table @ torch.cat([torch.ones(1, dtype=torch.float64), *(p.double().cpu() for p in shares)])
        return (self.coefficients * means[self.monomials].prod(1)).sum()

    def at(self, picks: Sequence[int]) -> float:
        """Return the cost when each group takes the candidate of that index."""
        return float(self([torch.eye(n, dtype=torch.float64)[k] for n, k in zip(self.counts, picks, strict=True)]))


def expected_cost(model: CostModel, candidates: Mapping[str, Sequence[int]], quantity: str) -> ExpectedCost:
    """Return the mean of a quantity that is one sum as a function of probabilities of candidates.

    Args:
        model: the cost of the original network.
        candidates: for each group that has a choice, the widths it chooses from; other groups stay.
        quantity: which.
    """
    builder = _Builder(model, candidates)
    cost = model.costs[quantity]
    assert isinstance(cost, Sums)
    assert cost.sets is None, "of a maximum the mean is no sum of products"
    for term, weight in zip(cost.terms.terms, cost.weights, strict=True):
        # Rounding each tensor up to whole bytes is left out: it is less than a byte a tensor.
        builder.add(term, weight / cost.divisor)
    return builder.build()


class _Builder:
    def __init__(self, model: CostModel, candidates: Mapping[str, Sequence[int]]) -> None:
        channels = model.channels
        self.base = np.array([part.width for part in channels.parts], dtype=np.float64)
        self.counts = tuple(len(widths) for widths in candidates.values())
        self.owner: dict[int, int] = {}
        self.parts: list[Floats] = []
        """For each group, part widths at its candidates (candidates x parts)."""
        for index, (name, widths) in enumerate(candidates.items()):
            self.parts.append(np.array([channels.part_widths({name: width}) for width in widths], dtype=np.float64))
            self.owner.update(dict.fromkeys(channels[name].parts, index))
        self.functions: dict[tuple[int, Values], int] = {}
        self.monomials: dict[tuple[int, ...], float] = defaultdict(float)

    def add(self, term: Term, weight: float) -> None:
        """Multiply a term out and add it."""
        product: dict[tuple[tuple[int, Values], ...], float] = {(): term.coefficient * weight}
        for axis in term.axes:
            constant, by_group = float(axis.fixed), dict[int, Floats]()
            for part, factor in axis.terms:
                group = self.owner.get(part)
                if group is None:
                    constant += float(factor) * self.base[part]
                else:
                    values = float(factor) * self.parts[group][:, part]
                    by_group[group] = by_group.get(group, np.zeros_like(values)) + values
            if len(by_group) == 1:
                # One function, not a sum of two: fewer monomials.
                by_group, constant = {group: values + constant for group, values in by_group.items()}, 0.0
            longer: dict[tuple[tuple[int, Values], ...], float] = defaultdict(float)
            for known, coefficient in product.items():
                if constant:
                    longer[known] += coefficient * constant
                for group, values in by_group.items():
                    longer[_times(known, group, values)] += coefficient
            product = longer
        for factors, coefficient in product.items():
            key = tuple(sorted(self.functions.setdefault(factor, len(self.functions) + 1) for factor in factors))
            self.monomials[key] += coefficient

    def build(self) -> ExpectedCost:
        starts = np.cumsum([1, *self.counts])
        table = np.zeros((len(self.functions) + 1, int(starts[-1])))
        table[0, 0] = 1.0
        for (group, values), row in self.functions.items():
            table[row, starts[group] : starts[group + 1]] = values
        longest = max((len(key) for key in self.monomials), default=0)
        rows = [[*key, *[0] * (longest - len(key))] for key in self.monomials]
        return ExpectedCost(
            torch.from_numpy(table),
            torch.tensor(rows, dtype=torch.int64).reshape(len(rows), longest),
            torch.tensor(list(self.monomials.values()), dtype=torch.float64),
            self.counts,
        )


def _times(known: tuple[tuple[int, Values], ...], group: int, values: Floats) -> tuple[tuple[int, Values], ...]:
    """Multiply a product of functions by one more of a group."""
    factors = dict(known)
    before = np.array(factors.get(group, 1.0))
    factors[group] = tuple((before * values).tolist())
    return tuple(sorted(factors.items()))


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
