"""What goes on beside the steps of a run and has state of its own: checkpoints keep it."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from nce_fx.training.average import Average
from nce_fx.training.freezing import Freezing
from nce_fx.training.recipe import Recipe


class Extra(Protocol):
    """Looks at the weights, or changes them, after every step."""

    def after_step(self, done: float) -> None:
        """The weights have made a step; ``done``: the share of the run that lies behind, in [0, 1]."""

    def tensors(self) -> dict[str, Tensor]:
        """Return its state by name."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what ``tensors`` returned."""


def extras_of(model: nn.Module, recipe: Recipe) -> dict[str, Extra]:
    """Return what a recipe asks for, by name.

    Raises:
        InputError: the model has nothing to freeze.
    """
    found: dict[str, Extra] = {}
    if recipe.freeze:
        found["freezing"] = Freezing(model, recipe.freeze)
    if recipe.average:
        found["average"] = Average(model, recipe.average)
    return found
