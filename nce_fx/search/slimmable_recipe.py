"""How a network of choosable widths is trained and searched: one frozen value."""

from typing import Annotated, Literal

from pydantic import Field, StrictFloat

from nce_fx.errors import InputError
from nce_fx.search.weight_training import WeightTraining
from nce_fx.validated import AtLeastOne, Count, NotNegative, Positive, Share, Whole, validated


@validated("search recipe")
class SlimmableRecipe(WeightTraining):
    """The choices of a search among the widths of one slimmable network (see docs/search.md)."""

    method: Literal["slimmable"] = "slimmable"
    epochs: Count = 30
    """Passes over the training data without what is held out; each step trains several settings of the widths."""
    min_ratio: Annotated[StrictFloat, Field(gt=0, le=1)] = 0.5
    """Least width of a group, as a ratio of its own."""
    max_ratio: AtLeastOne = 1.5
    """Greatest width of a group, as a ratio of its own."""
    random: Whole = 2
    """Settings within the budgets that each step trains, beside the widest and the narrowest network."""
    drawn: Count = 16
    """Settings within the budgets that are drawn for each epoch; its steps take them in turn."""
    distill_alpha: Share = 0.9
    """How much the others learn from what the widest says, the rest from the targets."""
    distill_temperature: Positive = 4.0
    held_out: Annotated[StrictFloat, Field(gt=0, lt=1)] = 0.2
    """Share of the training data that settings are compared on; no weight learns from it."""
    evaluations: Count = 400
    """Settings that are compared."""
    population: Count = 40
    """Settings of one generation; the first is drawn, the others come from the best so far."""
    parents: Count = 10
    """How many of the best so far others come from."""
    sure: NotNegative = 3.0
    """How many standard errors a setting has to be better than the widths as they are; where none is, these stay. Of
    hundreds of settings that are no better, one is by two."""
    statistics: Count = 8
    """Batches that the statistics of BatchNorm are taken from anew, for each setting that is compared."""

    def __post_init__(self) -> None:
        """Refuse what cannot be searched.

        Raises:
            InputError: a field is out of range; the message names the field and what it may be.
        """
        if self.min_ratio == self.max_ratio:
            raise InputError("search recipe: min_ratio and max_ratio are both 1: no group has a width to choose")
        super().__post_init__()
