"""What goes on beside the training of the weights: nothing, or a search that learns something else in step with it.

The loop calls these at the same places whatever runs; what a companion keeps is in the checkpoints.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from nce_fx.training.run import Run


class Companion:
    """Training alone; a search overrides these."""

    def identity(self) -> dict[str, Any]:
        """Return what makes this run another run than one that trains the same model by the same recipe."""
        return {}

    def structure(self, original: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        """Return the copy of a model that is trained, as it was when ``state()`` returned this; empty at the start."""
        return copy.deepcopy(original)

    def restore(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Go on with a model that ``structure`` returned, from what ``tensors()`` returned."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON values."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps, as tensors by name."""
        return {}

    def before_epoch(self, run: Run) -> None:
        """An epoch begins, or goes on after it was interrupted."""

    def before_step(self, run: Run) -> None:
        """The weights are about to make a step."""

    def after_step(self, run: Run) -> None:
        """The weights have made a step, which the position does not count yet."""

    def after_epoch(self, run: Run) -> Run:
        """An epoch has ended; return the run that goes on, with another model where this one is not enough."""
        return run
