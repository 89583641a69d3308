"""The geometric program: least noise within every budget, over real-valued ratios, with a certificate.

    minimise  sum S_g exp(-p y_g)   over  y = log(width / original width) in a box,
    subject to  P_c(y) <= 1  for every budget c,  P_c a posynomial: a sum of exponentials of linear functions.

Objective and constraints are convex in y, so a barrier method (Boyd and Vandenberghe, *Convex Optimization*, 11.3)
finds the global optimum. Its multipliers prove it: the Lagrangian is convex, hence above its own tangent plane, and the
least of that plane over the box bounds every feasible plan from below, whatever the accuracy of the solver.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sparse

from nce_fx.passes.analysis.polynomial import Floats
from nce_fx.passes.planning.posynomial import Constraints

_ACCURACY = 1e-6
"""Duality gap, as a share of the original's objective, at which the barrier method stops."""
_GROWTH = 20.0
_JITTER = 1e-11
_SMALL = 2**18
"""Entries (terms x variables) up to which a full matrix is faster than what scipy spends on a sparse one."""


@dataclass(frozen=True)
class Relaxed:
    """The optimum over real ratios."""

    ratios: Floats
    objective: float
    bound: float
    """No plan within the budgets has a smaller objective."""
    prices: Floats
    """What a unit of each constraint (a share 1 of its budget) is worth in objective."""


@dataclass(frozen=True)
class _Program:
    noise: Floats
    exponents: Floats
    constraints: Constraints
    low: Floats
    high: Floats

    @cached_property
    def matrix(self) -> Any:
        """The exponents of the constraints (terms x variables), full where that is small."""
        exponents = self.constraints.exponents
        return exponents.toarray() if prod(exponents.shape) <= _SMALL else exponents

    @cached_property
    def sums(self) -> Any:
        """Which terms a constraint sums (constraints x terms), full where the exponents are."""
        rows = self.constraints.rows
        shape = len(self.constraints.constants), len(rows)
        spread = sparse.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=shape)
        return spread if sparse.issparse(self.matrix) else spread.toarray()

    def spent(self, y: Floats) -> tuple[Floats, Floats]:
        """The value of every term, and of every constraint."""
        terms = self.constraints.coefficients * np.exp(self.matrix @ y)
        count = len(self.constraints.constants)
        return terms, self.constraints.constants + np.bincount(self.constraints.rows, terms, count)

    def objective(self, y: Floats) -> float:
        return float(self.noise @ np.exp(-self.exponents * y))

    def slopes(self, terms: Floats) -> Floats:
        """Gradients of the constraints (constraints x variables)."""
        return _full(self.sums @ (self.matrix * terms[:, None]))


def _full(matrix: Any) -> Floats:
    result: Floats = matrix.toarray() if sparse.issparse(matrix) else matrix
    return result


def relax(noise: Floats, exponents: Floats, constraints: Constraints, low: Floats, high: Floats) -> Relaxed | None:
    """Solve the relaxation over ratios between ``low`` and ``high`` (both positive, low < high).

    Args:
        noise: sensitivity of each variable.
        exponents: how fast its noise falls as it widens.
        constraints: the budgets.
        low: least ratio of each variable.
        high: greatest ratio of each variable.

    Returns:
        The optimum, or ``None`` where even the narrowest widths leave no room inside some budget.
    """
    scale = float(noise.sum())
    program = _Program(noise / scale, exponents, constraints, np.log(low), np.log(high))
    y = _inside(program)
    if y is None:
        return None
    count = 2 * len(y) + len(constraints.constants)
    sharpness = max(1.0, count * 0.1)
    while True:
        y = _center(program, y, sharpness)
        if count / sharpness < _ACCURACY:
            break
        sharpness *= _GROWTH
    slack = 1 - program.spent(y)[1]
    prices = 1 / (sharpness * slack)
    # Should the solver have stopped short: everything at its widest is a bound, too.
    bound = max(_bound(program, y, prices), program.objective(program.high))
    return Relaxed(np.exp(y), scale * program.objective(y), scale * bound, scale * prices)


def _inside(program: _Program) -> Floats | None:
    """A point strictly within box and budgets: as far from the narrowest as leaves room everywhere."""
    share = 0.5
    while share > 1e-12:
        y = program.low + share * (program.high - program.low)
        if (program.spent(y)[1] < 1).all():
            closer: Floats = program.low + 0.5 * share * (program.high - program.low)
            return closer
        share *= 0.5
    return None


def _center(program: _Program, y: Floats, sharpness: float) -> Floats:
    """Newton's method on ``sharpness * objective + barrier``, started inside and kept there."""

    def walls(at: Floats) -> Floats:
        return np.concatenate([1 - program.spent(at)[1], at - program.low, program.high - at])

    def value(at: Floats, distances: Floats) -> float:
        return sharpness * program.objective(at) - float(np.log(distances).sum())

    matrix = program.matrix
    for _ in range(60):
        terms, spent = program.spent(y)
        pressure = 1 / (1 - spent)
        slopes = program.slopes(terms)
        noise = program.noise * np.exp(-program.exponents * y)
        below, above = 1 / (y - program.low), 1 / (program.high - y)
        gradient = -sharpness * program.exponents * noise + pressure @ slopes - below + above
        weighted = matrix * (terms * pressure[program.constraints.rows])[:, None]
        hessian = _full(matrix.T @ weighted) + (slopes * (pressure**2)[:, None]).T @ slopes
        hessian[np.diag_indices(len(y))] += sharpness * program.exponents**2 * noise + below**2 + above**2
        # Walls that are near make some curvatures huge: scaled to a unit diagonal the matrix stays well conditioned.
        scale = 1 / np.sqrt(np.diag(hessian))
        scaled = hessian * scale[:, None] * scale + _JITTER * np.eye(len(y))
        step = -scale * scipy.linalg.cho_solve(scipy.linalg.cho_factor(scaled), scale * gradient)
        decrement = float(-gradient @ step)
        if decrement < 1e-8:
            break
        before, length = walls(y), 1.0
        now = value(y, before)
        while True:
            # Never spend most of the way to a wall in one step: from close to it progress is slow.
            after = walls(y + length * step)
            if (after > 0.1 * before).all() and value(y + length * step, after) < now - 0.1 * length * decrement:
                break
            length *= 0.5
            if length < 1e-10:
                return y
        y = y + length * step
    return y


def _bound(program: _Program, y: Floats, prices: Floats) -> float:
    """The least value, over the box, of the tangent plane of the Lagrangian at ``y``."""
    terms, spent = program.spent(y)
    gradient = -program.exponents * program.noise * np.exp(-program.exponents * y) + prices @ program.slopes(terms)
    lagrangian = program.objective(y) + float(prices @ (spent - 1))
    down = np.maximum(gradient, 0) @ (y - program.low)
    up = np.maximum(-gradient, 0) @ (program.high - y)
    return lagrangian - float(down + up)
