"""The compiled form of a cost report: arrays over part widths, evaluated for one plan or for many at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from nce_fx.passes.analysis.cost_terms import CostTerms
from nce_fx.passes.analysis.polynomial import Floats, Integers, Term, Terms
from nce_fx.quantities import Prices, Quantity, Sums, known_quantities


@dataclass(frozen=True)
class CostModel(CostTerms):
    """The terms of a graph's cost, and the quantities that are asked of them."""

    fingerprint: str = ""
    """Of the graph that was analysed, so that a plan made from this can say which model it is for."""
    quantities: Mapping[str, Quantity] = field(default_factory=known_quantities)
    """What may be asked of it."""

    @cached_property
    def costs(self) -> Mapping[str, Sums | Prices]:
        """What each quantity sums, for those that the graph has."""
        found = {name: quantity.cost(self) for name, quantity in self.quantities.items()}
        return {name: cost for name, cost in found.items() if cost is not None}

    @cached_property
    def _sizes(self) -> Terms:
        """What the prices of ``sites`` depend on, four terms a site."""
        sizes = [Term.of((axis,)) for site in self.sites for axis in site.sizes]
        return Terms(tuple(sizes), len(self.channels.parts))

    def evaluate(self, part_widths: Sequence[int]) -> dict[str, Integers]:
        """Return every term's value at these widths: MACs, numels, bytes of tensors, prices of layers."""
        widths = np.asarray(part_widths, np.int64)
        bits = np.array([tensor.bits for tensor in self.tensors], np.int64)
        return {
            "work": self.work_macs.at(widths),
            "parameters": self.numels.at(widths),
            "bytes": -(-self.values.at(widths) * bits // 8),
            "custom": self._prices(widths[None].astype(np.float64))[0],
        }

    def totals(self, part_widths: Sequence[int]) -> Mapping[str, float]:
        """Return the total of every quantity at these widths; integers are exact."""
        widths = np.asarray(part_widths, np.int64)
        result: dict[str, float] = {}
        for name, cost in self.costs.items():
            if isinstance(cost, Prices):
                result[name] = float(self._prices(widths[None].astype(np.float64)).sum())
                continue
            values = -(-cost.terms.at(widths) * np.array(cost.weights, np.int64) // cost.divisor)
            sums = [values] if cost.sets is None else [values[list(members)] for members in cost.sets]
            result[name] = max((int(each.sum()) for each in sums), default=0)
        return result

    def totals_of_many(self, part_widths: Floats, quantities: Sequence[str]) -> Floats:
        """Return totals (batch x quantities) at a batch of part widths (batch x parts)."""
        values: dict[int, Floats] = {}
        columns: list[Floats] = []
        for name in quantities:
            cost = self.costs[name]
            if isinstance(cost, Prices):
                columns.append(self._prices(part_widths).sum(axis=1))
                continue
            key = id(cost.terms)
            values[key] = values[key] if key in values else cost.terms.at_many(part_widths)
            weights = np.array(cost.weights, np.float64) / cost.divisor
            if cost.divisor == 1 and cost.sets is None:
                columns.append(values[key] @ weights)
                continue
            sizes = values[key] * weights if cost.divisor == 1 else np.ceil(values[key] * weights)
            columns.append(sizes.sum(axis=1) if cost.sets is None else (sizes @ self._spread[name].T).max(1, initial=0))
        return np.stack(columns, axis=1)

    @cached_property
    def _spread(self) -> Mapping[str, Floats]:
        """Which terms each sum of a quantity takes (sums x terms), of those that are the greatest of several sums."""
        found = {}
        for name, cost in self.costs.items():
            if isinstance(cost, Sums) and cost.sets is not None:
                matrix = np.zeros((len(cost.sets), len(cost.weights)))
                for row, members in enumerate(cost.sets):
                    matrix[row, list(members)] = 1.0
                found[name] = matrix
        return found

    def _prices(self, part_widths: Floats) -> Floats:
        """Price of every site (batch x sites) in the user's table; zeros without one."""
        if self.hardware is None:
            return np.zeros((len(part_widths), len(self.sites)))
        sizes = self._sizes.at_many(part_widths).reshape(len(part_widths), len(self.sites), 4)
        alike: dict[tuple[str, str, int, bool], list[int]] = {}
        for i, site in enumerate(self.sites):
            alike.setdefault((site.op, site.kernel, site.weight_bits, site.free), []).append(i)
        result = np.zeros((len(part_widths), len(self.sites)))
        for (op, kernel, bits, free), own in alike.items():
            path = self.sites[own[0]].path
            prices = self.hardware.price(op, kernel, sizes[:, own].reshape(-1, 4), bits, path, free=free)
            result[:, own] = prices.reshape(len(part_widths), len(own))
        return result
