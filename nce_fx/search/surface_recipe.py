"""How a surface over widths is measured and climbed: one frozen value."""

import math
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt

from nce_fx.search.weight_training import WeightTraining
from nce_fx.training.recipe import Recipe
from nce_fx.validated import Count, NotNegative, Positive, Whole, validated

_FURTHEST = 3.0
"""How many deviations widths may move in a round."""


@validated("search recipe")
class SurfaceRecipe(WeightTraining):
    """The choices of a search that trains a network for every setting it looks at (see docs/search.md)."""

    method: Literal["surface"] = "surface"
    epochs: Count = 8
    """Of each network at low precision."""
    float_epochs: Whole = 8
    """Of each network before that, in float at its own widths."""
    networks: Count = 36
    """Drawn near the centre in each round."""
    rounds: Count = 2
    """Each ends with a step to the best of the surface, which is the next one's centre."""
    deviation: Positive = 0.25
    """Of the logarithm of a drawn width from the centre's: 0.25 makes most widths 0.78 to 1.28 times the centre's."""
    repeats: Annotated[StrictInt, Field(ge=2)] = 4
    """Seeds that each centre is trained with: what they differ by is the noise."""
    candidates: Count = 3
    """Settings that are held against the first centre at the end, the most promising ones."""
    finals: Annotated[StrictInt, Field(ge=2)] = 4
    """Fresh seeds that each of them, and the first centre, is trained with."""
    sure: NotNegative = 2.0
    """How many standard errors a candidate has to be better than the first centre; where none is, that stays."""
    held_out: Annotated[StrictFloat, Field(gt=0, lt=1)] = 0.2
    """Share of the training data that settings are compared on; no weight learns from it."""
    statistics: Whole = 8
    """Batches that the statistics of BatchNorm are taken from anew before a network is measured."""
    distill: StrictBool = True
    """Whether a network learns at low precision from what it was in float, as well as from the targets."""

    def in_float(self, seed: int) -> Recipe:
        """Return how a network is trained in float."""
        return replace(self.training(), epochs=self.float_epochs, seed=seed)

    def at_low_precision(self, seed: int) -> Recipe:
        """Return how a network is trained after it was quantized."""
        return replace(self.training(), reestimate=self.statistics, seed=seed)

    @property
    def reach(self) -> float:
        """How far from the first centre widths can come in all rounds, as a ratio."""
        return math.exp(_FURTHEST * self.deviation * self.rounds)
