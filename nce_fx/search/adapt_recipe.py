"""How widths are moved while the network trains: one frozen value."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, StrictFloat

from nce_fx.errors import InputError
from nce_fx.search.weight_training import WeightTraining
from nce_fx.training.recipe import Recipe
from nce_fx.validated import BelowOne, Count, Positive, Whole, validated


@validated("search recipe")
class AdaptRecipe(WeightTraining):
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
    learning_rate: Positive = 0.02
    """At which a stretch of ``every`` epochs begins; in it the rate falls to zero, so all moves are tried alike."""

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
        super().__post_init__()

    def training(self) -> Recipe:
        """Return the recipe of the weights; what its learning rate does in a try is the search's."""
        return replace(super().training(), cosine=False)
