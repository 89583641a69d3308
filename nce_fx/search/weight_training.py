"""How a search trains weights, whatever its method: the fields that every search recipe has."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

from pydantic import StrictInt

from nce_fx.training.recipe import Recipe
from nce_fx.validated import BelowOne, Count, NotNegative, Positive, from_mapping, validated


@validated("search recipe")
class WeightTraining:
    """The choices of a search that concern the weights, such as ``WeightTraining(epochs=60, learning_rate=0.05)``."""

    epochs: Count = 60
    """In all."""
    batch_size: Count = 64
    """Samples in one step over all processes together."""
    learning_rate: Positive = 0.05
    momentum: BelowOne = 0.9
    weight_decay: NotNegative = 5e-4
    lr_warmup_epochs: NotNegative = 1.0
    clip_gradient: Positive | None = None
    seed: StrictInt = 0

    def __post_init__(self) -> None:
        """Refuse what the recipe of the weights refuses.

        Raises:
            InputError: a field is out of range; the message names the field and what it may be.
        """
        self.training()

    def training(self) -> Recipe:
        """Return the recipe of the weights; no test data is looked at before the last epoch."""
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
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the recipe that ``to_dict`` wrote.

        Raises:
            InputError: a field that a recipe does not have, or a value out of range.
        """
        return from_mapping(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return asdict(self)
