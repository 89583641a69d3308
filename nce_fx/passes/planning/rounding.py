"""From real ratios to widths: round down, then climb with the exact cost until nothing helps.

Costs never fall as a group widens, so rounding down stays within every budget. What is left of the budgets is spent one
step at a time where it buys most; then steps are swapped between two groups; then, while the certified bound is not
near, a few groups at a time are rearranged together. Every plan that is kept was costed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nce_fx.passes.analysis.costmodel import CostModel
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

    def objective(self, picks: Integers) -> float:
        """Return the noise of a plan given as choice indices."""
        return float(sum(self.gains(g)[pick] for g, pick in enumerate(picks.tolist())))

    def gains(self, group: int) -> Floats:
        """Return the noise of one group at each of its choices."""
        noise: Floats = self.noise[group] * self.choices.ratios[group] ** -self.exponents[group]
        return noise

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
    noise = [problem.gains(group) for group in range(len(picks))]
    generator = np.random.default_rng(0)
    picks = _settle(problem, noise, picks)
    fruitless = 0
    while problem.objective(picks) > problem.bound * (1 + _NEAR) and fruitless < _FRUITLESS:
        better = _rearrange(problem, noise, picks, generator)
        fruitless = fruitless + 1 if better is None else 0
        picks = picks if better is None else _settle(problem, noise, better)
        if len(picks) <= _TOGETHER and better is None:
            break
    return picks


def _settle(problem: Problem, noise: list[Floats], picks: Integers) -> Integers:
    for _ in range(_ROUNDS):
        picks = _climb(problem, noise, picks)
        better = _swap(problem, noise, picks)
        if better is None:
            break
        picks = better
    return picks


def _moved(picks: Integers, *moves: tuple[int, int]) -> Integers:
    result = picks.copy()
    for group, by in moves:
        result[group] += by
    return result


def _room(noise: list[Floats], picks: Integers, by: int) -> list[int]:
    return [g for g, pick in enumerate(picks.tolist()) if 0 <= pick + by < len(noise[g])]


def _climb(problem: Problem, noise: list[Floats], picks: Integers) -> Integers:
    """Widen one group by one choice at a time, the best bargain first, until nothing fits."""
    while True:
        groups = _room(noise, picks, 1)
        if not groups:
            return picks
        now = problem.shares([picks])[0]
        after = problem.shares([_moved(picks, (g, 1)) for g in groups])
        fitting = np.flatnonzero((after <= 1).all(axis=1))
        if not len(fitting):
            return picks
        gain = np.array([noise[g][picks[g]] - noise[g][picks[g] + 1] for g in groups])
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


def _swap(problem: Problem, noise: list[Floats], picks: Integers) -> Integers | None:
    """Narrow one group and widen another (by one choice or two), where the sum gains and fits."""
    now = problem.shares([picks])[0]
    moves = [(g, by) for by in (-2, -1, 1, 2) for g in _room(noise, picks, by)]
    if not moves:
        return None
    change = problem.shares([_moved(picks, move) for move in moves]) - now
    gain = np.array([noise[g][picks[g]] - noise[g][picks[g] + by] for g, by in moves])
    down = np.flatnonzero([by < 0 for _, by in moves])
    up = np.flatnonzero([by > 0 for _, by in moves])
    total = gain[down][:, None] + gain[up][None, :]
    excess = (now + change[down][:, None, :] + change[up][None, :, :]).max(axis=2) - 1
    owner = np.array([group for group, _ in moves])
    distinct = owner[down][:, None] != owner[up][None, :]
    threshold = _TINY * float(problem.noise.sum())
    # Costs are products, so a pair may cost a little more or less than its two moves: look a little beyond.
    rows, columns = np.nonzero((total > threshold) & distinct & (excess < 1e-3))
    order = np.argsort(-total[rows, columns], kind="stable")[:_SWAPS_TRIED]
    if not len(order):
        return None
    tried = [_moved(picks, moves[down[rows[i]]], moves[up[columns[i]]]) for i in order]
    fits = np.flatnonzero((problem.shares(tried) <= 1).all(axis=1))
    return tried[int(fits[0])] if len(fits) else None


def _rearrange(
    problem: Problem, noise: list[Floats], picks: Integers, generator: np.random.Generator
) -> Integers | None:
    """Look at all arrangements of a few groups near their choices; return the best that fits and gains, if any does."""
    count = min(_TOGETHER, len(picks))
    groups = np.sort(generator.choice(len(picks), count, replace=False))
    whole = count == len(picks) and np.prod([len(noise[g]) for g in groups]) <= 2 * _WINDOW
    reach = max(map(len, noise)) if whole else int((_WINDOW ** (1 / count) - 1) / 2)
    options = [
        np.arange(max(p - reach, 0), min(p + reach + 1, len(noise[g])))
        for g, p in zip(groups, picks[groups], strict=True)
    ]
    now = problem.shares([picks])[0]
    singles = [_moved(picks, (int(g), int(o - picks[g]))) for g, own in zip(groups, options, strict=True) for o in own]
    change = np.split(problem.shares(singles) - now, np.cumsum([len(own) for own in options])[:-1])
    mesh = np.stack([axis.ravel() for axis in np.meshgrid(*(np.arange(len(own)) for own in options), indexing="ij")])
    gain = sum(noise[g][picks[g]] - noise[g][own][i] for g, own, i in zip(groups, options, mesh, strict=True))
    excess = (now + sum(part[i] for part, i in zip(change, mesh, strict=True))).max(axis=1) - 1
    promising = np.flatnonzero((gain > _TINY * float(problem.noise.sum())) & ((excess < 0.02) | whole))
    order = promising[np.argsort(-gain[promising], kind="stable")]
    for chunk in np.split(order, range(_SWAPS_TRIED, len(order), _SWAPS_TRIED)):
        if not len(chunk):
            return None
        tried = np.tile(picks, (len(chunk), 1))
        for group, own, i in zip(groups, options, mesh[:, chunk], strict=True):
            tried[:, group] = own[i]
        fits = np.flatnonzero((problem.shares(tried) <= 1).all(axis=1))
        if len(fits):
            best: Integers = tried[int(fits[0])]
            return best
    return None
