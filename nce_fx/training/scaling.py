"""The loss scaled, so that its gradients are not too small for float16 (Micikevicius et al. 2018, "Mixed precision
training", arXiv 1710.03740).

    gradients of (scale loss), divided by scale;   where one is not finite: no step, scale <- scale / 2
    after 2000 steps in a row:                     scale <- 2 scale

As PyTorch's GradScaler does it, which refuses gradients of which some are in parts and some whole. Here their norm,
the same in every process, says whether they are finite.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nce_fx.training.shards import local

START = 2.0**16
STEPS = 2000
"""Steps without an overflow after which the scale is doubled."""


class LossScale:
    """What the loss is multiplied by: 1 where nothing is scaled.

    Args:
        enabled: whether it is scaled.
        state: what ``state`` returned, to go on from; empty at the start.
    """

    def __init__(self, enabled: bool, state: dict[str, Any]) -> None:
        self.enabled = enabled
        self.value = float(state.get("scale", START)) if enabled else 1.0
        self._steps = int(state.get("_growth_tracker", 0))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, by the names that GradScaler has; empty where nothing is scaled."""
        return {"scale": self.value, "_growth_tracker": self._steps} if self.enabled else {}

    def unscale(self, gradients: Iterable[Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        if self.enabled:
            torch._foreach_mul_([local(gradient) for gradient in gradients], 1 / self.value)

    def update(self, finite: bool) -> None:
        """Take in whether the gradients of a step were finite."""
        self._steps += 1
        if self.enabled and (not finite or self._steps == STEPS):
            self.value, self._steps = self.value * (2.0 if finite else 0.5), 0
