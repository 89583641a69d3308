"""Plans along a range of budgets: how much predicted noise each share of the cost buys."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nce_fx.analyses import Analyses
from nce_fx.errors import BudgetError, InputError
from nce_fx.frozen import Frozen
from nce_fx.passes.planning import Budget
from nce_fx.plan import WidthPlan
from nce_fx.progress import counted
from nce_fx.rewrite import plan_analyzed

POINTS = 15


@dataclass(frozen=True)
class SweepPoint(Frozen):
    """The plan at one budget: what it costs and what it promises."""

    budget: float
    """Ratio of the original's, of every quantity that a rewrite limits by default."""
    cost: Mapping[str, float]
    """What the plan costs, by quantity."""
    noise: float
    """Predicted loss through low precision, as a ratio of the original widths' (lower is better); where capacity counts
    as well, the planner's objective."""
    bound: float
    """What no plan of this budget can go below, on the same scale."""
    widths: str
    """The widths of the groups that change: ``conv1=7 layer2.0.conv1=6``."""

    def to_row(self) -> dict[str, Any]:
        """Return the point as columns: the budget, one a quantity, what it promises, the widths."""
        ends = {"noise": self.noise, "bound": self.bound, "widths": self.widths}
        return {"budget": self.budget, **self.cost, **ends}


@dataclass(frozen=True)
class Sweep:
    """The points that have a plan, and the budgets that have none, with why not."""

    points: tuple[SweepPoint, ...]
    refused: tuple[tuple[float, str], ...]

    def to_csv(self) -> str:
        """Return the points as CSV."""
        text = io.StringIO()
        rows = [point.to_row() for point in self.points]
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def sweep(analyses: Analyses, ratios: Sequence[float], **limits: Any) -> Sweep:
    """Plan at each ratio of what a rewrite limits by default; ``limits`` are those of `plan_widths`.

    Raises:
        BudgetError: no ratio has a plan; the message is that of the largest.
    """
    points, refused = [], []
    for ratio in counted(ratios):
        try:
            plan = plan_analyzed(analyses, Budget(**dict.fromkeys(Budget.default().as_mapping(), ratio)), **limits)
        except BudgetError as error:
            refused.append((ratio, str(error)))
            continue
        points.append(_point(analyses, ratio, plan))
    if not points:
        raise BudgetError(refused[-1][1])
    return Sweep(tuple(points), tuple(refused))


def ratios_of(text: str) -> tuple[float, ...]:
    """Return the ratios of a range such as ``0.6x..2.0x``, evenly spaced.

    Raises:
        InputError: not a range of ratios.
    """
    first, dots, last = text.partition("..")
    try:
        low, high = (float(part.strip().removesuffix("x")) for part in (first, last))
    except ValueError:
        low = high = 0.0
    if not dots or not 0 < low < high <= 16:
        raise InputError(f"--sweep {text} is not a range of ratios: write such as 0.6x..2.0x")
    return tuple(round(low + (high - low) * index / (POINTS - 1), 4) for index in range(POINTS))


def _point(analyses: Analyses, ratio: float, plan: WidthPlan) -> SweepPoint:
    before = float(plan.source["noise_before"]) or 1.0
    noise = float(plan.source["objective"]) / before if plan.source["noise_before"] else 1.0
    return SweepPoint(
        budget=ratio,
        cost=analyses.cost.at(plan.widths).total.by_quantity,
        noise=round(noise, 6),
        bound=round(float(plan.source["bound"]) / before, 6),
        widths=" ".join(f"{group}={width}" for group, width in plan.changed.items()),
    )
