"""From real ratios to widths: round down, then climb with the exact cost until nothing helps.

Costs never fall as a group widens, so rounding down stays within every budget. What is left of the budgets is spent one
step at a time where it buys most; then steps are swapped between two groups; then, while the certified bound is not
near, a few groups at a time are rearranged together. Every plan that is kept was costed exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nce_fx.passes.analysis.cost_model import CostModel
from nce_fx.passes.analysis.polynomial import Floats, Integers
from nce_fx.passes.planning.choices import Choices

_SWAPS_TRIED = 400
"""Swaps costed exactly in one round, best first."""
_ROUNDS = 60
_TINY = 1e-12
_NEAR = 1e-3
"""A plan this near the bound, relative to it, is not searched further."""
_TOGETHER = 4
"""Groups that are rearranged together."""
_WINDOW = 2500
"""Arrangements of them that are looked at."""
_FRUITLESS = 120
"""Rearrangements in a row without success after which the search ends."""


@dataclass(frozen=True)
class Problem:
    """Everything a search over integers needs."""

    model: CostModel
    choices: Choices
    noise: Floats
    exponents: Floats
    names: tuple[str, ...]
    limits: Floats
    prices: Floats
    """What a share 1 of each limit is worth in objective; only guides the search."""
    bound: float
    """No plan is better; says when to stop searching."""

    @cached_property
    def curves(self) -> tuple[Floats, ...]:
        """The noise of each group at each of its choices."""
        return tuple(n * r**-p for n, r, p in zip(self.noise, self.choices.ratios, self.exponents, strict=True))

    @cached_property
    def threshold(self) -> float:
        """What a change must gain at least, or it gains nothing."""
        return _TINY * float(self.noise.sum())

    def objective(self, picks: Integers) -> float:
        """Return the noise of a plan given as choice indices."""
        return float(sum(curve[pick] for curve, pick in zip(self.curves, picks.tolist(), strict=True)))

    def room(self, picks: Integers, by: int) -> list[int]:
        """Return the groups that can take the choice so many beyond theirs."""
        return [g for g, pick in enumerate(picks.tolist()) if 0 <= pick + by < len(self.curves[g])]

    def gain(self, picks: Integers, group: int, by: int) -> float:
        """Return how much less noise a group has at the choice so many beyond its own."""
        curve, pick = self.curves[group], int(picks[group])
        return float(curve[pick] - curve[pick + by])

    def shares(self, picks: Integers | list[Integers]) -> Floats:
        """Return what plans cost (plans x budgets), as shares of the limits."""
        widths = self.choices.part_widths(np.asarray(picks, np.int64))
        return self.model.totals_of_many(widths, self.names) / self.limits

    def fits(self, picks: Integers) -> bool:
        """Return whether a plan is within every limit."""
        return bool((self.shares([picks])[0] <= 1).all())


def to_integers(problem: Problem, ratios: Floats) -> Integers:
    """Return the choice of every group, near the given ratios and within every limit.

    The narrowest plan must be within the limits.
    """
    low = [
        max(0, int(np.searchsorted(r, x * (1 + 1e-9), "right")) - 1)
        for r, x in zip(problem.choices.ratios, ratios, strict=True)
    ]
    picks = np.array(low, np.int64)
    while not problem.fits(picks):
        picks = np.maximum(picks - 1, 0)
    return _improve(problem, picks)


def _improve(problem: Problem, picks: Integers) -> Integers:
    """Climb from a plan within the limits until neither a step nor a swap nor a rearrangement makes it better."""
    generator = np.random.default_rng(0)
    picks = _settle(problem, picks)
    fruitless = 0
    while problem.objective(picks) > problem.bound * (1 + _NEAR) and fruitless < _FRUITLESS:
        better = _rearrange(problem, picks, generator)
        fruitless = fruitless + 1 if better is None else 0
        picks = picks if better is None else _settle(problem, better)
        if len(picks) <= _TOGETHER and better is None:
            break
    return picks


def _settle(problem: Problem, picks: Integers) -> Integers:
    for _ in range(_ROUNDS):
        picks = _climb(problem, picks)
        better = _swap(problem, picks)
        if better is None:
            break
        picks = better
    return picks


def _moved(picks: Integers, *moves: tuple[int, int]) -> Integers:
    result = picks.copy()
    for group, by in moves:
        result[group] += by
    return result


def _climb(problem: Problem, picks: Integers) -> Integers:
    """Widen one group by one choice at a time, the best bargain first, until nothing fits."""
    while True:
        groups = problem.room(picks, 1)
        if not groups:
            return picks
        now = problem.shares([picks])[0]
        after = problem.shares([_moved(picks, (g, 1)) for g in groups])
        fitting = np.flatnonzero((after <= 1).all(axis=1))
        if not len(fitting):
            return picks
        gain = np.array([problem.gain(picks, g, 1) for g in groups])
        price = (after - now) @ problem.prices + _TINY
        order = sorted(fitting.tolist(), key=lambda i: (-gain[i] / price[i], groups[i]))
        spent = now
        for i in order:
            # The sum of single steps nearly is the cost of all: skip what cannot fit, cost the rest exactly.
            if (spent + after[i] - now <= 1).all():
                tried = _moved(picks, (groups[i], 1))
                cost = problem.shares([tried])[0]
                if (cost <= 1).all():
                    picks, spent = tried, cost


def _swap(problem: Problem, picks: Integers) -> Integers | None:
    """Narrow one group and widen another (by one choice or two), where the sum gains and fits."""
    now = problem.shares([picks])[0]
    moves = [(g, by) for by in (-2, -1, 1, 2) for g in problem.room(picks, by)]
    if not moves:
        return None
    change = problem.shares([_moved(picks, move) for move in moves]) - now
    gain = np.array([problem.gain(picks, g, by) for g, by in moves])
    down = np.flatnonzero([by < 0 for _, by in moves])
    up = np.flatnonzero([by > 0 for _, by in moves])
    total = gain[down][:, None] + gain[up][None, :]
    excess = (now + change[down][:, None, :] + change[up][None, :, :]).max(axis=2) - 1
    owner = np.array([group for group, _ in moves])
    distinct = owner[down][:, None] != owner[up][None, :]
    # Costs are products, so a pair may cost a little more or less than its two moves: look a little beyond.
    rows, columns = np.nonzero((total > problem.threshold) & distinct & (excess < 1e-3))
    order = np.argsort(-total[rows, columns], kind="stable")[:_SWAPS_TRIED]
    if not len(order):
        return None
    tried = [_moved(picks, moves[down[rows[i]]], moves[up[columns[i]]]) for i in order]
    fits = np.flatnonzero((problem.shares(tried) <= 1).all(axis=1))
    return tried[int(fits[0])] if len(fits) else None


def _rearrange(problem: Problem, picks: Integers, generator: np.random.Generator) -> Integers | None:
    """Look at all arrangements of a few groups near their choices; return the best that fits and gains, if any does."""
    count = min(_TOGETHER, len(picks))
    groups = np.sort(generator.choice(len(picks), count, replace=False)).tolist()
    curves, chosen = [problem.curves[g] for g in groups], picks[groups].tolist()
    sizes = [len(curve) for curve in curves]
    whole = count == len(picks) and np.prod(sizes) <= 2 * _WINDOW
    reach = max(sizes) if whole else int((_WINDOW ** (1 / count) - 1) / 2)
    options = [np.arange(max(p - reach, 0), min(p + reach + 1, size)) for p, size in zip(chosen, sizes, strict=True)]
    counts = [len(own) for own in options]
    singles = np.tile(picks, (sum(counts), 1))
    singles[np.arange(len(singles)), np.repeat(groups, counts)] = np.concatenate(options)
    cost = problem.shares(singles)
    now = cost[chosen[0] - options[0][0]]
    change = np.split(cost - now, np.cumsum(counts)[:-1])
    gain = _sums([curve[p] - curve[own] for curve, p, own in zip(curves, chosen, options, strict=True)])
    excess = (now + _sums(change)).max(axis=1) - 1
    promising = np.flatnonzero((gain > problem.threshold) & ((excess < 0.02) | whole))
    order = promising[np.argsort(-gain[promising], kind="stable")]
    for chunk in np.split(order, range(_SWAPS_TRIED, len(order), _SWAPS_TRIED)):
        if not len(chunk):
            return None
        tried = np.tile(picks, (len(chunk), 1))
        places = np.unravel_index(chunk, counts)
        for group, own, i in zip(groups, options, places, strict=True):
            tried[:, group] = own[i]
        fits = np.flatnonzero((problem.shares(tried) <= 1).all(axis=1))
        if len(fits):
            best: Integers = tried[int(fits[0])]
            return best
    return None


def _sums(parts: Sequence[Floats]) -> Floats:
    """Return the sums of one row of every part, for all ways to choose them; the last part's rows change fastest."""
    total: Floats = parts[0]
    for part in parts[1:]:
        total = (total[:, None] + part[None]).reshape(-1, *part.shape[1:])
    return total
