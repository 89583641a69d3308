"""How widths are moved while the network trains: one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field, StrictFloat, StrictInt

from nce_fx.errors import InputError
from nce_fx.training.recipe import Recipe
from nce_fx.validated import BelowOne, Count, NotNegative, Positive, Whole, from_mapping, validated


@validated("search recipe")
class AdaptRecipe:
    """The choices of a search that moves widths, a little at a time, while the quantized network trains."""

    method: Literal["adapt"] = "adapt"
    epochs: Count = 60
    """In all: those in which a move is tried and those in which the network goes on without it."""
    warmup_epochs: Whole = 4
    """Epochs before the first move; one at least."""
    every: Count = 1
    """Epochs that a moved network is trained for, and the one that was not moved as well, before they are compared."""
    region: Positive = 0.2
    """How far one move changes a group: to at most 1 + region times its present width, at least 1 / (1 + region).
    After a move that was undone half as far, down to a quarter, then as far again."""
    margin: BelowOne = 0.0
    """A move stays where the loss on what is held out is less, by more than this share of it."""
    held_out: Annotated[StrictFloat, Field(gt=0, lt=1)] = 0.2
    """The share of the training split that decides, and is not trained on."""
    batch_size: Count = 64
    learning_rate: Positive = 0.02
    """At which a stretch of ``every`` epochs begins; in it the rate falls to zero, so all moves are tried alike."""
    momentum: BelowOne = 0.9
    weight_decay: NotNegative = 5e-4
    lr_warmup_epochs: NotNegative = 1.0
    clip_gradient: Positive | None = None
    seed: StrictInt = 0

    def __post_init__(self) -> None:
        """Refuse what leaves no time to move anything.

        Raises:
            InputError: a field is out of range; the message names the field and what it may be.
        """
        least = max(1, self.warmup_epochs) + 2 * self.every
        if self.epochs < least:
            raise InputError(
                f"search recipe: epochs is {self.epochs}; with {max(1, self.warmup_epochs)} to warm up and twice"
                f" {self.every} to try a move it must be at least {least}"
            )
        self.training()

    def training(self) -> Recipe:
        """Return the recipe of the weights."""
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.momentum > 0,
            weight_decay=self.weight_decay,
            warmup_epochs=self.lr_warmup_epochs,
            cosine=False,
            clip_gradient=self.clip_gradient,
            evaluate_every=0,
            seed=self.seed,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AdaptRecipe:
        """Return the recipe that ``to_dict`` wrote.

        Raises:
            InputError: a field that a recipe does not have, or a value out of range.
        """
        return from_mapping(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return asdict(self)
