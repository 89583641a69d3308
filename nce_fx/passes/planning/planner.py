"""Reports + budget -> plan: relax, certify, round, prove."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from nce_fx.arguments import checked
from nce_fx.passes.analysis.channels.graph import ChannelGraph
from nce_fx.passes.analysis.cost import CostReport
from nce_fx.passes.analysis.polynomial import Floats, Integers
from nce_fx.passes.planning.budget import Budget
from nce_fx.passes.planning.choices import Choices, Rules, check_feasible, legal_choices, sensitivity_of
from nce_fx.passes.planning.even import even_widths, stream_widths
from nce_fx.passes.planning.importance import importance_of
from nce_fx.passes.planning.integer_widths import Problem, to_integers
from nce_fx.passes.planning.posynomial import Constraints, constraints
from nce_fx.passes.planning.relaxation import relax
from nce_fx.plan import WidthPlan

NOISE_EXPONENT = 1.0
"""How the noise of a group falls with its width, ``(original / width) ** p``."""


class Sensitivity(Protocol):
    """What the planner needs of a ``SensitivityReport``."""

    @property
    def by_group(self) -> Mapping[str, float]:
        """Loss that low-precision noise causes in each group."""

    @property
    def metric(self) -> str:
        """How it was found."""


@checked
def plan_widths(
    channels: ChannelGraph,
    cost: CostReport,
    sensitivity: Sensitivity,
    budget: Budget,
    *,
    min_width: float = 0.25,
    max_width: float = 2.0,
    round_to: int = 1,
    freeze: Iterable[str] = (),
    only: Iterable[str] = (),
    exponent: float = NOISE_EXPONENT,
    capacity: float = 0.0,
    streams: float = 1.0,
    reserve: Mapping[str, float] | None = None,
) -> WidthPlan:
    """Return the widths of least total noise within the budget, with a certified bound on how far from the best it is.

    The noise of a plan is the sum over groups of sensitivity times ``(original / width) ** exponent``. The plan's
    ``source`` says the noise (``objective``), what no plan can beat (``bound``), and ``gap = objective / bound - 1``.

    Args:
        channels: the groups of the model.
        cost: its cost, from ``analyze_cost`` with the same ``channels``.
        sensitivity: how much each group's noise hurts.
        budget: upper limits.
        min_width: least width of a group as a ratio of its own.
        max_width: greatest width of a group as a ratio of its own.
        round_to: widths that change become multiples of this.
        freeze: name patterns (``fnmatch``) of group ids or producers that keep their width.
        only: name patterns of the only groups that may change.
        exponent: how fast noise falls with width.
        capacity: the share of a group's importance that is not its noise but what its width costs, 0 to 1, see
            `nce_fx.passes.planning.importance`. The objective is then of importances; ``source`` says the ``noise``
            beside it.
        streams: where the budget is below what the network costs, the least width of a residual stream as a share of
            what one factor for all groups would leave it; 0 narrows streams as noise alone says. See
            `nce_fx.passes.planning.even`.
        reserve: how much of a limit stays free, by quantity, see `nce_fx.passes.planning.budget`.

    Raises:
        BudgetError: no plan can meet the budget, or an option makes no sense.
    """
    rules = Rules(min_width, max_width, round_to, tuple(freeze), tuple(only), capacity, streams)
    choices = legal_choices(channels, rules)
    original = cost.model.totals([part.width for part in channels.parts])
    limits = {name: limit - (reserve or {}).get(name, 0.0) for name, limit in budget.limits(original).items()}
    check_feasible(cost.model, choices, rules, limits, original)
    if streams and any(original[name] > limit for name, limit in limits.items()):
        even = even_widths(cost, budget, rules, reserve or {})
        choices = legal_choices(channels, rules, stream_widths(channels, even, streams))
    noise = sensitivity_of(choices, sensitivity.by_group)
    exponents = np.full(len(noise), exponent)
    rows = constraints(cost.model, choices, limits)
    importance = importance_of(noise, rows, capacity)
    picks, bound = _solve(cost, choices, importance, exponents, rows, limits)
    widths = choices.named(picks)
    spent = cost.at(widths)
    for name, limit in limits.items():
        if getattr(spent.total, name) > limit:
            raise AssertionError(f"the plan costs {getattr(spent.total, name)} {name}, over its limit {limit}")
    objective = _objective(choices, importance, exponents, picks)
    held = {"streams": streams} if streams != 1 else {}
    mixed = {"capacity": capacity, "noise": _rounded(_objective(choices, noise, exponents, picks))} if capacity else {}
    source = (
        {
            "metric": sensitivity.metric,
            "measured_on": dict(getattr(sensitivity, "batches", {})),
            "budget": budget.as_mapping(),
            "limits": {name: _rounded(limit) for name, limit in limits.items()},
            "cost": {name: _rounded(getattr(spent.total, name)) for name in limits},
            "rules": {"min_width": min_width, "max_width": max_width, "round_to": round_to}
            | {"freeze": list(rules.freeze), "only": list(rules.only)},
            "exponent": exponent,
            "noise_before": _rounded(float(noise.sum())),
            "objective": _rounded(objective),
            "bound": _rounded(bound),
            "gap": _rounded(max(objective / bound - 1, 0.0) if len(noise) else 0.0),
        }
        | mixed
        | held
    )
    return WidthPlan(widths, channels.widths, cost.model.fingerprint, source=source)


def _solve(
    cost: CostReport,
    choices: Choices,
    noise: Floats,
    exponents: Floats,
    rows: Constraints,
    limits: dict[str, float],
) -> tuple[Integers, float]:
    """Return the choices of the best plan found, and the bound that none can beat."""
    if not choices.groups:
        return np.zeros(0, np.int64), 0.0
    if not limits:
        widest = np.array([len(widths) - 1 for widths in choices.widths], np.int64)
        return widest, _objective(choices, noise, exponents, widest)
    low = np.array([ratios[0] for ratios in choices.ratios])
    high = np.array([ratios[-1] for ratios in choices.ratios])
    names = tuple(limits)
    ceilings = np.array([limits[name] for name in names])
    relaxed = relax(noise, exponents, rows, low, high)
    prices = np.ones(len(names))
    if relaxed is not None:
        found = np.array(
            [sum(p for p, n in zip(relaxed.prices, rows.names, strict=True) if n == name) for name in names]
        )
        prices = found + 1e-9 * float(noise.sum())
    start = low if relaxed is None else relaxed.ratios
    bound = _objective_at(noise, exponents, high) if relaxed is None else relaxed.bound
    problem = Problem(cost.model, choices, noise, exponents, names, ceilings, prices, bound)
    picks = to_integers(problem, start)
    if problem.fits(choices.original):
        # The original is a plan too: what cannot beat it is not worth a change.
        picks = min(choices.original, picks, key=problem.objective)
    return picks, bound


def _objective(choices: Choices, noise: Floats, exponents: Floats, picks: Integers) -> float:
    ratios = np.array([r[p] for r, p in zip(choices.ratios, picks.tolist(), strict=True)])
    return _objective_at(noise, exponents, ratios)


def _objective_at(noise: Floats, exponents: Floats, ratios: Floats) -> float:
    return float(noise @ ratios**-exponents)


def _rounded(value: float) -> float | int:
    """Ten digits: as exact as the figures mean, and the same on every machine."""
    return value if isinstance(value, int) else float(f"{value:.10g}")
