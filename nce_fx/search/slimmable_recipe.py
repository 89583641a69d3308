"""How a network of choosable widths is trained and searched: one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field, StrictFloat, StrictInt

from nce_fx.errors import InputError
from nce_fx.training.recipe import Recipe
from nce_fx.validated import AtLeastOne, BelowOne, Count, NotNegative, Positive, Share, Whole, from_mapping, validated


@validated("search recipe")
class SlimmableRecipe:
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
    sure: NotNegative = 2.0
    """How many standard errors a setting has to be better than the widths as they are; where none is, these stay."""
    statistics: Count = 8
    """Batches that the statistics of BatchNorm are taken from anew, for each setting that is compared."""
    batch_size: Count = 64
    """Samples in one step over all processes together."""
    learning_rate: Positive = 0.05
    momentum: BelowOne = 0.9
    weight_decay: NotNegative = 5e-4
    lr_warmup_epochs: NotNegative = 1.0
    clip_gradient: Positive | None = None
    seed: StrictInt = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be searched.

        Raises:
            InputError: a field is out of range; the message names the field and what it may be.
        """
        if self.min_ratio == self.max_ratio:
            raise InputError("search recipe: min_ratio and max_ratio are both 1: no group has a width to choose")
        self.training()

    def training(self) -> Recipe:
        """Return the recipe of the weights; what is held out is not looked at before the last epoch."""
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.momentum > 0,
            weight_decay=self.weight_decay,
            warmup_epochs=self.lr_warmup_epochs,
            clip_gradient=self.clip_gradient,
            evaluate_every=0,
            seed=self.seed,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SlimmableRecipe:
        """Return the recipe that ``to_dict`` wrote.

        Raises:
            InputError: a field that a recipe does not have, or a value out of range.
        """
        return from_mapping(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return asdict(self)
