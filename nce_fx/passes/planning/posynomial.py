"""A cost model as posynomials of group ratios, term by term a lower bound of the exact cost.

With x_g the width of group g's free channels over its original, a part is share x group width, an axis is a sum of
parts, and a product of axes multiplies out to a posynomial: sums of positive constants times powers of x. Where shares
are rounded, each part takes the least share it gets at any choice, so that the posynomial never exceeds the true cost
and a bound computed from it holds for every integer plan.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse

from nce_fx.passes.analysis.channels.graph import AxisWidth
from nce_fx.passes.analysis.cost_model import CostModel
from nce_fx.passes.analysis.cost_terms import LayerSite
from nce_fx.passes.analysis.polynomial import Floats, Integers, Term
from nce_fx.passes.planning.choices import Choices
from nce_fx.quantities import Sums

Monomial = tuple[tuple[int, float], ...]
"""Sorted pairs (variable, exponent); empty for the constant."""
Posynomial = dict[Monomial, float]


@dataclass(frozen=True)
class Constraints:
    """``sum of coefficient * exp(exponents @ log x) over the terms of a row <= 1`` for every row."""

    exponents: sparse.csr_array
    """Terms x variables."""
    coefficients: Floats
    rows: Integers
    """The constraint that each term belongs to."""
    constants: Floats
    """What each constraint has spent before any variable counts."""
    names: tuple[str, ...]
    """The quantity behind each constraint."""


def constraints(model: CostModel, choices: Choices, limits: dict[str, float]) -> Constraints:
    """Return every budget as a posynomial over its limit."""
    slopes = part_slopes(choices)
    found: list[tuple[str, Posynomial]] = []
    for name, limit in limits.items():
        if not limit:
            # Whoever can keep within nothing spends nothing at any width: a network that multiplies nothing, say.
            continue
        found.extend((name, _scaled(p, 1 / limit)) for p in _posynomials(model, choices, slopes, name))
    exponents: list[tuple[int, int, float]] = []
    coefficients: list[float] = []
    rows: list[int] = []
    constants = np.zeros(len(found))
    for row, (_, posynomial) in enumerate(found):
        for monomial, coefficient in posynomial.items():
            if not monomial:
                constants[row] = coefficient
                continue
            exponents.extend((len(rows), variable, power) for variable, power in monomial)
            rows.append(row)
            coefficients.append(coefficient)
    at, variables, powers = zip(*exponents, strict=True) if exponents else ((), (), ())
    shape = (len(rows), len(choices.groups))
    matrix = sparse.csr_array((powers, (at, variables)), shape=shape)
    names = tuple(name for name, _ in found)
    return Constraints(matrix, np.array(coefficients), np.array(rows, np.int64), constants, names)


_COUNTED = 64
"""Choices whose shares are looked at one by one; beyond them a share is less than a step from the exact one."""


def part_slopes(choices: Choices) -> dict[int, tuple[int, float]]:
    """For each changeable part: its variable, and its least width per unit of the variable."""
    parts = choices.channels.parts
    slopes = {}
    for variable, group in enumerate(choices.groups):
        free = [part for part in group.parts if parts[part].free]
        for position, part in enumerate(group.parts):
            if not parts[part].free:
                continue
            least = 1.0
            if len(free) > 1:
                ratios = choices.ratios[variable]
                shares = [choices.parts_of(variable, pick)[position] for pick in range(min(len(ratios), _COUNTED))]
                least = float((np.array(shares) / (parts[part].width * ratios[:_COUNTED])).min())
                if len(ratios) > _COUNTED:
                    least = min(least, 1 - parts[part].step / (parts[part].width * ratios[_COUNTED]))
            slopes[part] = (variable, parts[part].width * least)
    return slopes


def _posynomials(
    model: CostModel, choices: Choices, slopes: dict[int, tuple[int, float]], name: str
) -> Iterable[Posynomial]:
    """The constraints of one quantity: one for every sum of which the greatest is the cost."""
    cost = model.costs[name]
    if isinstance(cost, Sums):
        weights = [weight / cost.divisor for weight in cost.weights]
        every = tuple(range(len(weights)))
        for members in (every,) if cost.sets is None else cost.sets:
            yield _sum(choices, slopes, ((cost.terms.terms[i], weights[i]) for i in members))
        return
    total: Posynomial = defaultdict(float)
    for site in model.sites:
        monomial, coefficient = _price_monomial(model, choices, slopes, site)
        total[monomial] += coefficient
    yield total


def _sum(choices: Choices, slopes: dict[int, tuple[int, float]], terms: Iterable[tuple[Term, float]]) -> Posynomial:
    total: Posynomial = defaultdict(float)
    expanded: dict[Term, Posynomial] = {}
    for term, weight in terms:
        if term not in expanded:
            expanded[term] = _expand(choices, slopes, term)
        for monomial, coefficient in expanded[term].items():
            total[monomial] += weight * coefficient
    return total


def _expand(choices: Choices, slopes: dict[int, tuple[int, float]], term: Term) -> Posynomial:
    if term.only_at:
        return {}
    product: Posynomial = {(): float(term.coefficient)}
    for axis in term.axes:
        affine = _affine(choices, slopes, axis)
        longer: Posynomial = defaultdict(float)
        for monomial, coefficient in product.items():
            for variable, slope in affine.items():
                longer[_times(monomial, variable)] += coefficient * slope
        product = longer
    return product


def _affine(choices: Choices, slopes: dict[int, tuple[int, float]], axis: AxisWidth) -> dict[int, float]:
    """An axis as {variable: slope}, the constant under -1."""
    affine: dict[int, float] = defaultdict(float)
    if axis.fixed:
        affine[-1] += axis.fixed
    for part, factor in axis.terms:
        variable, slope = slopes.get(part, (-1, float(choices.base[part])))
        affine[variable] += float(factor) * slope
    return affine


def _times(monomial: Monomial, variable: int) -> Monomial:
    if variable < 0:
        return monomial
    powers = dict(monomial)
    powers[variable] = powers.get(variable, 0.0) + 1.0
    return tuple(sorted(powers.items()))


def _scaled(posynomial: Posynomial, factor: float) -> Posynomial:
    return {monomial: coefficient * factor for monomial, coefficient in posynomial.items() if coefficient > 0}


def _price_monomial(
    model: CostModel, choices: Choices, slopes: dict[int, tuple[int, float]], site: LayerSite
) -> tuple[Monomial, float]:
    """The greatest monomial of a fitted shape that stays below a layer's price in the user's table.

    Prices are multilinear in logarithms within each cell of the table, so their ratio to a monomial is least at a
    corner: it is enough to look there. An axis that sums several groups is bounded by its weighted geometric mean.
    """
    if model.hardware is None:
        return (), 0.0
    ends = []
    for axis in site.sizes:
        affine = _affine(choices, slopes, axis)
        low = sum(s * (1.0 if v < 0 else choices.ratios[v][0]) for v, s in affine.items())
        high = sum(s * (1.0 if v < 0 else choices.ratios[v][-1]) for v, s in affine.items())
        ends.append((affine, low, high))
    corners = model.hardware.corners(site.op, site.kernel, site.weight_bits, [(low, high) for _, low, high in ends])
    prices = model.hardware.price(site.op, site.kernel, corners, site.weight_bits, site.path, free=site.free)
    if not prices.all() or not corners.all():
        # A layer of no channels has no logarithm.
        return (), float(prices.min())
    logs = np.column_stack([np.ones(len(corners)), np.log(corners)])
    fitted = np.maximum(np.linalg.lstsq(logs, np.log(prices), rcond=None)[0][1:], 0.0)
    coefficient = float((prices / np.exp(logs[:, 1:] @ fitted)).min())
    powers: dict[int, float] = defaultdict(float)
    for (affine, _, _), exponent in zip(ends, fitted, strict=True):
        whole = sum(affine.values())
        for variable, slope in affine.items():
            share = slope / whole
            coefficient *= (slope / share) ** (share * exponent)
            if variable >= 0 and exponent > 0:
                powers[variable] += share * exponent
    return tuple(sorted(powers.items())), coefficient
