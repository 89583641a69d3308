"""Settings of all widths within every budget: drawn at random, made from others, and filled until nothing fits.

A setting is the index of each group's choice. Costs are the planner's own polynomials, so thousands of settings are
costed in the time that one is measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nce_fx.frozen import Frozen
from nce_fx.passes.analysis.cost import CostReport
from nce_fx.passes.analysis.polynomial import Floats, Integers
from nce_fx.passes.planning.budget import Budget
from nce_fx.passes.planning.choices import Choices, Rules, check_feasible, legal_choices

Setting = tuple[int, ...]
"""For each group that has a choice, the index of its width."""
_FACTORS = np.geomspace(1 / 16, 16, 401)
"""What all widths of a setting are multiplied by, to see what fits."""
_DEVIATION = 0.25
"""Of the moves by which a setting is made from others, in log2 of the width."""


@dataclass(frozen=True)
class Settings(Frozen):
    """The settings that keep every budget."""

    cost: CostReport
    choices: Choices
    limits: dict[str, float]

    @staticmethod
    def of(cost: CostReport, budget: Budget, rules: Rules) -> "Settings":
        """Return the settings between the ratios of the rules.

        Raises:
            BudgetError: not even the narrowest network is within the budget.
        """
        channels = cost.model.channels
        choices = legal_choices(channels, rules)
        original = cost.model.totals([part.width for part in channels.parts])
        limits = budget.limits(original)
        check_feasible(cost.model, choices, rules, limits, original)
        return Settings(cost, choices, limits)

    def widths(self, setting: Setting) -> dict[str, int]:
        """Return the width of each group that has a choice."""
        picked = zip(self.choices.groups, self.choices.widths, setting, strict=True)
        return {group.id: int(widths[pick]) for group, widths, pick in picked}

    @property
    def candidates(self) -> dict[str, tuple[int, ...]]:
        """The rising widths of each group that has a choice."""
        return {g.id: tuple(own.tolist()) for g, own in zip(self.choices.groups, self.choices.widths, strict=True)}

    @property
    def narrowest(self) -> Setting:
        """Every group at its least width."""
        return (0,) * len(self.choices.groups)

    @property
    def widest(self) -> Setting:
        """Every group at its greatest width, whatever that costs."""
        return tuple(len(widths) - 1 for widths in self.choices.widths)

    @property
    def original(self) -> Setting:
        """The widths as they are."""
        return tuple(self.choices.original.tolist())

    def fit(self, picks: Integers) -> NDArray[np.bool_]:
        """Return which settings (settings x groups) are within every budget."""
        names = tuple(self.limits)
        if not names:
            return np.ones(len(picks), np.bool_)
        totals = self.cost.model.totals_of_many(self.choices.part_widths(picks), names)
        fits: NDArray[np.bool_] = np.all(totals <= np.array([self.limits[name] for name in names]), axis=1)
        return fits

    def filled(self, ratios: Floats) -> Setting:
        """Return the setting in these proportions that spends what it may.

        All widths are multiplied by the greatest factor that fits; then the group that is furthest below its proportion
        gets the next width, as long as one fits.
        """
        scaled = np.outer(_FACTORS, ratios)
        tried = np.stack(
            [np.abs(own[None] - wanted[:, None]).argmin(1) for own, wanted in zip(self._ratios, scaled.T, strict=True)],
            axis=1,
        )
        fitting = np.flatnonzero(self.fit(tried))
        picks = tried[fitting[-1]] if len(fitting) else np.array(self.narrowest, np.int64)
        last, steps = np.array(self.widest), np.eye(len(picks), dtype=np.int64)
        while True:
            room = np.flatnonzero(picks < last)
            room = room[self.fit(picks + steps[room])] if len(room) else room
            if not len(room):
                return tuple(picks.tolist())
            picks = picks + steps[min(room.tolist(), key=lambda g: float(self._ratios[g][picks[g]] / ratios[g]))]

    @property
    def _ratios(self) -> tuple[Floats, ...]:
        return self.choices.ratios

    def ratios(self, setting: Setting) -> Floats:
        """Return the widths of a setting as ratios of the original ones."""
        return np.array([own[pick] for own, pick in zip(self._ratios, setting, strict=True)], np.float64)

    def logs(self, picks: Integers) -> Floats:
        """Return the log2 of the widths over the original ones, of many settings (settings x groups)."""
        columns = [np.log2(own)[picks[:, group]] for group, own in enumerate(self._ratios)]
        result: Floats = np.stack(columns, axis=1)
        return result

    def setting(self, widths: Mapping[str, int]) -> Setting:
        """Return the setting of these widths, each of which is a choice of its group."""
        chosen = zip(self.choices.groups, self.choices.widths, strict=True)
        return tuple(int(np.searchsorted(own, widths[group.id])) for group, own in chosen)

    def drawn(self, generator: np.random.Generator) -> Setting:
        """Return a random setting: ratios even on a logarithmic scale between the least and the greatest, filled."""
        ends = np.log([(own[0], own[-1]) for own in self._ratios])
        return self.filled(np.exp(generator.uniform(ends[:, 0], ends[:, 1])))

    def near(self, setting: Setting, deviation: float, generator: np.random.Generator) -> Setting:
        """Return a random setting near another: the logarithm of every width moved by so much on average, filled."""
        return self.filled(self.ratios(setting) * np.exp(generator.normal(0.0, deviation, len(setting))))

    def child(self, one: Setting, other: Setting, generator: np.random.Generator) -> Setting:
        """Return a setting made from two: each width from either, up to three of them moved, filled."""
        ratios = np.where(generator.random(len(one)) < 0.5, self.ratios(one), self.ratios(other))
        moved = generator.choice(len(one), min(len(one), int(generator.integers(1, 4))), replace=False)
        ratios[moved] *= np.exp2(generator.normal(0.0, _DEVIATION, len(moved)))
        return self.filled(ratios)
