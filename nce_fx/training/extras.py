"""What goes on beside the steps of a run and has state of its own, which checkpoints keep.

Averaged weights: what is evaluated and returned is an exponential moving average over the steps (Polyak and
Juditsky 1992; at few bits it also averages over weights that go from level to level and back).

    a <- d a + (1 - d) w,   d = min(decay, (1 + t) / (10 + t)) at step t

Latent weights are averaged, and quantized when the model runs; with them all that is learned (clips, steps, biases) and
BatchNorm's statistics.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from nce_fx.training.oscillation import Freezing
from nce_fx.training.recipe import Recipe
from nce_fx.training.shards import placed


class Average:
    """A moving average of a model's parameters and floating-point buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._live = {
            name: tensor
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if tensor.is_floating_point()
        }
        self._mean = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """Take in the weights as they are now."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, mean in self._mean.items():
            mean.lerp_(self._live[name].detach(), 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Return the average, and over how many steps it is."""
        return {**self._mean, "steps": torch.tensor(self.steps)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what ``tensors`` returned."""
        self.steps = int(tensors["steps"])
        for name, mean in self._mean.items():
            mean.copy_(placed(tensors[name], mean))

    @torch.no_grad()
    def put(self) -> None:
        """Give the model the average for good."""
        for name, live in self._live.items():
            live.copy_(self._mean[name])

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Give the model the average for as long as the context lasts."""
        kept = {name: live.detach().clone() for name, live in self._live.items()}
        self.put()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, live in self._live.items():
                    live.copy_(kept[name])


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
