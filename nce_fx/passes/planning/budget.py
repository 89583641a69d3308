"""What a plan may cost: any subset of the quantities of a cost report, each a ratio of the original or a number.

A plan is held against the network that is built from it, by the count that the report makes. What it costs is known
before anything is built, exactly, but for what a resize may have to put into the graph: a product with the shares of
copies, say, whose value is one more that is in memory. Where that breaks a limit, the plan is made again with so much
of the limit left free.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import GraphModule

from nce_fx.errors import BudgetError
from nce_fx.frozen import freeze
from nce_fx.passes.analysis.channels.graph import ChannelGraph
from nce_fx.passes.analysis.cost import Cost, CostReport, analyze_cost
from nce_fx.plan import WidthPlan
from nce_fx.quantities import Quantity, known_quantities

LARGEST_RATIO = 16
"""Numbers up to this are ratios of the original, greater ones are absolute."""

Limit = float | int | str | None


@dataclass(frozen=True, init=False, repr=False)
class Budget:
    """Upper limits by quantity, such as ``Budget(macs=1.0, weight_bytes="200_000")``; what is not named is free.

    A number up to 16 is a ratio of the original model, a greater one is absolute; ``"1.5x"`` and ``"2e9"`` say which;
    ``None`` and ``"none"`` leave a quantity free.
    """

    given: Mapping[str, float | int] = field(hash=False)
    """The limits that are set: ratios as floats, absolute ones as ints."""

    def __init__(self, **limits: Limit) -> None:
        """Set limits; the names are those of `nce_fx.quantities`, or of rows that the cost report is made with.

        Raises:
            BudgetError: a limit that is no positive number, with or without an ``x``.
        """
        parsed = {name: Budget.parse(value, name) for name, value in limits.items() if value not in (None, "none")}
        object.__setattr__(self, "given", parsed)
        freeze(self)

    @staticmethod
    def default() -> "Budget":
        """Return what holds where no budget is given: nothing that the user pays rises."""
        return Budget(**{name: row.default for name, row in known_quantities().items()})

    @staticmethod
    def parse(value: Limit, name: str = "the budget") -> float | int:
        """Return a ratio as a float up to 16, or an absolute limit as an int.

        Raises:
            BudgetError: not a positive number, with or without an ``x``.
        """
        ratio = False
        number: Any = value
        if isinstance(value, str):
            match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(x?)\s*", value.replace("_", "").lower())
            number, ratio = (float(match[1]), bool(match[2])) if match else (0.0, False)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < float("inf"):
            raise BudgetError(f"{name}={value!r} is no budget: give a ratio like 0.8x or a positive number")
        if ratio and number > LARGEST_RATIO:
            raise BudgetError(f"{name}={value!r}: ratios go up to {LARGEST_RATIO}x; give the number itself")
        return float(number) if number <= LARGEST_RATIO else int(number)

    def limits(self, original: Mapping[str, float]) -> dict[str, float]:
        """Return the absolute limit of every quantity that has one, given what the original model costs.

        Raises:
            BudgetError: the original model's costs have no such quantity.
        """
        for name in self.given:
            if name not in original:
                known = known_quantities()
                missing = known[name].missing if name in known else Quantity.missing
                raise BudgetError(f"a budget of {name} {missing}; there are {', '.join(original)}")
        values = {name: self.given[name] for name in original if name in self.given}
        return {name: v * original[name] if isinstance(v, float) else v for name, v in values.items()}

    def as_mapping(self) -> dict[str, float | int]:
        """Return the limits that are set, as they were given: ratios as floats, absolute ones as ints."""
        return dict(self.given)

    def __getattr__(self, name: str) -> float | int | None:
        """Return the limit of a quantity; ``None`` where it is free.

        Raises:
            AttributeError: there is no such quantity.
        """
        if name.startswith("_") or name == "given" or name not in {**known_quantities(), **self.given}:
            raise AttributeError(f"a budget has no quantity {name!r}")
        return self.given.get(name)

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={value!r}' for name, value in self.given.items())})"


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
    own = cost.total.by_quantity
    limits = budget.limits(own)
    fits = all(own[name] <= limit for name, limit in limits.items())
    found: WidthPlan | None = None
    over: dict[str, float] = {}
    for _ in range(_ATTEMPTS):
        try:
            found = plan(reserve)
        except BudgetError:
            # What a network costs beside its plan, the widths as they are need not: they may be all that is left.
            if found is None or not fits:
                raise
            break
        network = build(found)
        counted = count(network, cost).by_quantity
        over = {name: counted[name] - limit for name, limit in limits.items() if counted[name] > limit}
        if not over:
            said = _at_cost(found, {name: counted[name] for name in limits if isinstance(counted[name], int)})
            return said, network if said is found else build(said)
        reserve |= {name: reserve.get(name, 0.0) + excess for name, excess in over.items()}
    if found is not None and fits:
        found = _unchanged(_at_cost(found, {name: own[name] for name in limits}))
        return found, build(found)
    most = ", ".join(f"{name} by {excess:,.0f}" for name, excess in over.items())
    raise BudgetError(f"the network of every plan tried is over its limit, at last {most}: raise the budget by so much")


def _at_cost(found: WidthPlan, counted: Mapping[str, int | float]) -> WidthPlan:
    """Return a plan that says so of its cost; the plan itself where it does."""
    claimed = found.source.get("cost", {})
    if all(value == claimed.get(name) for name, value in counted.items()):
        return found
    return replace(found, source={**found.source, "cost": {**claimed, **counted}})


def _unchanged(found: WidthPlan) -> WidthPlan:
    """Return the plan that leaves all widths as they are, in the place of one that was found."""
    source = dict(found.source)
    before, bound = source.get("noise_before"), source.get("bound")
    if before is not None:
        source |= {name: before for name in ("objective", "noise") if name in source}
        source["gap"] = max(before / bound - 1, 0.0) if bound else 0.0
    return replace(found, widths=dict(found.original), source=source)
