"""The loss of trained networks as a smooth function of their widths, and the best of it within the budgets.

    loss(x) = level + slopes . x + curvature / 2 |x|^2        x the log2 of each width over the centre's

A slope a group and one curvature for all: a few dozen networks tell no more. Slopes are drawn to zero (ridge), as
strongly as predicts best what was left out; where networks differ by their seeds alone, little is left of them, and the
best promises nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nce_fx.frozen import Frozen
from nce_fx.passes.analysis.polynomial import Floats, Integers
from nce_fx.passes.planning.settings import Setting, Settings

_STRENGTHS = np.geomspace(1e-3, 1e4, 29)
"""Of the ridge, from which the best is chosen; the greatest leaves no slope."""
_STEPS = (1, 2, 4, 8)
"""By how many choices one group goes up, or another down, in one step of the climb."""
_AT_ONCE = 512
"""Settings whose cost is counted together."""


@dataclass(frozen=True)
class Ridge(Frozen):
    """A fit of one strength."""

    strength: float
    level: float
    """The loss at the centre."""
    slopes: Floats
    """For each group: by how much the loss rises where its width doubles."""
    errors: Floats
    """The standard errors of the slopes."""
    curvature: float
    """0 or more, of a surface."""
    noise: float
    """Standard deviation of what is left."""
    left_out: Floats
    """Of each network: what was measured less what the others foretell."""


@dataclass(frozen=True)
class Surface(Ridge):
    """The fitted loss: the best of the fits."""

    centre: Floats
    """The log2 of the centre's widths over the original ones."""
    explained: float
    """The share of the variance that is foretold of networks left out one at a time (R2); below 0 it is none."""
    ranked: float
    """Spearman's correlation of what is foretold so with what was measured."""

    def __call__(self, points: Floats) -> Floats:
        """Return the loss at points: settings x groups, log2 of the widths over the original ones."""
        away = points - self.centre
        result: Floats = self.level + away @ self.slopes + self.curvature / 2 * (away**2).sum(-1)
        return result


def fitted(points: Floats, losses: Floats, centre: Floats) -> Surface:
    """Return the surface of measured losses: networks x groups, and one loss a network; repeated points are several."""
    from scipy.stats import spearmanr  # half a second, which no other command shall wait for

    away = points - centre
    bent = _best_ridge(away, losses, curved=True)
    if bent.curvature < 0:
        bent = _best_ridge(away, losses, curved=False)
    foretold = losses - bent.left_out
    spread = float(((losses - losses.mean()) ** 2).sum())
    ranked = float(spearmanr(foretold, losses).statistic) if np.ptp(foretold) and np.ptp(losses) else 0.0
    explained = 1 - float((bent.left_out**2).sum()) / spread if spread else 0.0
    return Surface(**vars(bent), centre=centre, explained=explained, ranked=ranked)


def _best_ridge(away: Floats, losses: Floats, *, curved: bool) -> Ridge:
    """Return the fit whose strength foretells best what is left out; of equals the strongest."""
    found = [_ridge(away, losses, float(strength), curved) for strength in _STRENGTHS]
    return min(reversed(found), key=lambda each: float((each.left_out**2).sum()))


def _ridge(away: Floats, losses: Floats, strength: float, curved: bool) -> Ridge:
    networks, groups = away.shape
    columns = [np.ones((networks, 1)), away, *([(away**2).sum(1, keepdims=True) / 2] if curved else [])]
    design = np.concatenate(columns, 1)
    drawn = np.zeros(design.shape[1])
    drawn[1 : groups + 1] = strength
    # The pseudo-inverse: a curvature that nothing tells (all networks equally far away) is none.
    inverse = np.linalg.pinv(design.T @ design + np.diag(drawn), hermitian=True)
    told = inverse @ design.T @ losses
    leverage = np.minimum(np.einsum("ij,jk,ik->i", design, inverse, design), 1 - 1e-9)
    residual = losses - design @ told
    free = max(networks - float(leverage.sum()), 1.0)
    noise = float(np.sqrt((residual**2).sum() / free))
    errors = noise * np.sqrt(np.maximum(np.diag(inverse)[1 : groups + 1], 0.0))
    curvature = float(told[-1]) if curved else 0.0
    slopes, left_out = told[1 : groups + 1], residual / (1 - leverage)
    return Ridge(strength, float(told[0]), slopes, errors, curvature, noise, left_out)


@dataclass(frozen=True)
class Region:
    """Where a surface is trusted: between the least and the greatest of each width that was measured, and no further.

    Together widths go no further from the centre than the furthest network did.
    """

    centre: Floats
    least: Floats
    greatest: Floats
    radius: float

    @staticmethod
    def of(points: Floats, centre: Floats) -> "Region":
        """Return the region of measured points."""
        radius = float(np.sqrt(((points - centre) ** 2).sum(1).max()))
        return Region(centre, points.min(0), points.max(0), radius)

    def has(self, points: Floats) -> Integers:
        """Return which points are in it."""
        inside = ((points >= self.least - 1e-9) & (points <= self.greatest + 1e-9)).all(1)
        near = ((points - self.centre) ** 2).sum(1) <= self.radius**2 + 1e-9
        found: Integers = inside & near
        return found


def best_of(surface: Surface, settings: Settings, region: Region, starts: Iterable[Setting]) -> Setting:
    """Return the setting of least loss within the budgets and the region that is reached from one of these.

    Each step takes the best of: a group some choices wider or narrower, or one wider and another narrower.
    """
    steps = _steps(len(settings.choices.groups))
    climbed = [_climbed(surface, settings, region, start, steps) for start in starts]
    return min(climbed, key=lambda found: (float(surface(settings.logs(np.array([found])))[0]), found))


def _steps(groups: int) -> Integers:
    one = np.eye(groups, dtype=np.int64)
    single = np.concatenate([sign * step * one for step in _STEPS for sign in (1, -1)])
    wider = np.concatenate([step * one for step in _STEPS])
    both: Integers = (wider[:, None] - wider[None]).reshape(-1, groups)
    return np.unique(np.concatenate([single, both]), axis=0)


def _climbed(surface: Surface, settings: Settings, region: Region, start: Setting, steps: Integers) -> Setting:
    last = np.array(settings.widest)
    picks, loss = np.array(start), float(surface(settings.logs(np.array([start])))[0])
    while True:
        near = picks + steps
        near = near[((near >= 0) & (near <= last)).all(1)]
        points = settings.logs(near)
        losses = surface(points)
        wanted = np.flatnonzero((losses < loss - 1e-12) & region.has(points))
        wanted = wanted[np.argsort(losses[wanted], kind="stable")]
        for first in range(0, len(wanted), _AT_ONCE):
            some = wanted[first : first + _AT_ONCE]
            fitting = some[settings.fit(near[some])]
            if len(fitting):
                picks, loss = near[fitting[0]], float(losses[fitting[0]])
                break
        else:
            return tuple(picks.tolist())
