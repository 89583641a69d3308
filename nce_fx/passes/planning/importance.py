"""How much each group matters to the planner: the noise that few bits make in it, and what its width is worth at all.

Noise is measured. What capacity is worth is read off the network: whoever chose its widths spent a budget on them, and
where that was done well, a percent more width of a group gains what its percent of the budget costs. So a group's
capacity is its elasticity of cost at the original widths, d log cost / d log width, the mean over MACs and parameters.
With ``capacity`` a of its importance from there,

    importance_g = (1 - a) noise_g / sum(noise) + a elasticity_g / sum(elasticity),

in units of the noise's sum. At a = 1 the original widths are the optimum at their own budget: the gradient of
``sum of elasticity_g (w0 / w)^p`` is then a positive combination of those of the budgets, all of which are met. At
a = 0 the noise decides alone; groups that are cheap in what binds are then given away, however much they hold.
"""

from collections.abc import Iterable

import numpy as np

from nce_fx.errors import BudgetError
from nce_fx.passes.analysis.polynomial import Floats
from nce_fx.passes.planning.posynomial import Constraints

_DESIGNED = ("macs", "params")
"""What networks are designed by; where neither is limited, whatever is takes their place."""


def importance_of(noise: Floats, rows: Constraints, capacity: float) -> Floats:
    """Return the importance of each group, of the same sum as its noise.

    Args:
        noise: sensitivity of each group.
        rows: the budgets.
        capacity: the share of importance that is elasticity of cost, 0 to 1.

    Raises:
        BudgetError: nothing is limited that could tell what a width costs.
    """
    if capacity == 0 or not len(noise):
        return noise
    found = elasticities(rows, _DESIGNED)
    if not found.any():
        found = elasticities(rows, rows.names)
    if not found.any():
        raise BudgetError(f"capacity={capacity} needs a budget that widths cost something of: limit MACs or parameters")
    total = float(noise.sum())
    result: Floats = (1 - capacity) * noise + capacity * total * found / found.sum()
    return result


def elasticities(rows: Constraints, quantities: Iterable[str]) -> Floats:
    """Return by how many percent cost rises where a group is a percent wider, the mean over some of the quantities."""
    wanted = [row for row, name in enumerate(rows.names) if name in set(quantities)]
    spent = rows.constants + np.bincount(rows.rows, rows.coefficients, len(rows.constants))
    result = np.zeros(rows.exponents.shape[1])
    for row in wanted:
        terms = np.where(rows.rows == row, rows.coefficients, 0.0)
        result += np.asarray(rows.exponents.T @ terms).ravel() / spent[row] / len(wanted)
    return result
