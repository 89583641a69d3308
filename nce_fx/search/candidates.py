"""Which widths a group chooses from: legal ones near ratios of its original width, and those that a search adds."""

from dataclasses import dataclass

import numpy as np

from nce_fx.passes.analysis.channels import ChannelGraph, ChannelGroup
from nce_fx.passes.planning.choices import Rules, widths_of
from nce_fx.search.recipes import SearchRecipe


@dataclass(frozen=True)
class Start:
    """The candidates a search starts with, and the groups that keep their width, with the reason."""

    candidates: dict[str, tuple[int, ...]]
    left: dict[str, str]


def first_candidates(channels: ChannelGraph, recipe: SearchRecipe) -> Start:
    """Return for each group the legal widths nearest to the recipe's ratios."""
    start = Start({}, {})
    for group in channels:
        if group.pinned is not None:
            start.left[group.id] = group.pinned
            continue
        legal = _legal(group, recipe)
        chosen = {_nearest(legal, ratio * group.width) for ratio in recipe.ratios}
        if len(chosen) < 2 and not (recipe.expand and legal[-1] > group.width):
            start.left[group.id] = "no other legal width is near the ratios"
            continue
        start.candidates[group.id] = tuple(sorted(chosen))
    return start


def wider_candidate(group: ChannelGroup, widest: int, recipe: SearchRecipe) -> int | None:
    """Return the width to add to a group whose widest candidate is this, or ``None`` at the upper limit."""
    legal = [width for width in _legal(group, recipe) if width > widest]
    return min(legal, key=lambda width: abs(width - widest - recipe.expand_by * group.width)) if legal else None


def _legal(group: ChannelGroup, recipe: SearchRecipe) -> list[int]:
    widths: list[int] = np.asarray(widths_of(group, Rules(0.0, recipe.max_ratio))).tolist()
    return widths


def _nearest(legal: list[int], wanted: float) -> int:
    return min(legal, key=lambda width: (abs(width - wanted), width))
