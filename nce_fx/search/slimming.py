"""A network of choosable widths in training: each step runs the widest, the narrowest and a few others on one batch.

    loss = mean over them;   the widest: the task's own;   the others: (1 - a) * task + a * distance from the widest

The sandwich rule and in-place distillation of Yu and Huang, "Universally slimmable networks and improved training
techniques" (2019). The others are drawn within the budgets, where they will be compared, new ones for every epoch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from nce_fx.passes.planning import Budget
from nce_fx.passes.planning.settings import Setting, Settings
from nce_fx.search.asked import choices_of
from nce_fx.search.recipes import SlimmableRecipe
from nce_fx.search.slices import Slice, Widest
from nce_fx.tasks import Loss, Task
from nce_fx.training.run import Callback, Run


class Outputs(NamedTuple):
    """What one batch gives at several settings."""

    widest: Any
    others: list[Any]


class Sandwich(nn.Module):
    """Runs a network, and slices of it in training: inputs -> `Outputs`; as the widest alone in evaluation."""

    def __init__(self, model: GraphModule) -> None:
        super().__init__()
        self.model = model
        self.slices: list[Slice] = []

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the widest gives, and what each slice does."""
        widest = self.model(*inputs, **named)
        if not self.training:
            return widest
        return Outputs(widest, [each.run(self.model, inputs, named) for each in self.slices])


def sandwich_loss(loss: Loss, recipe: SlimmableRecipe) -> Loss:
    """Return the loss of `Outputs`, and of what is evaluated as it is."""
    task, share, heat = Task.of(loss, "loss"), recipe.distill_alpha, recipe.distill_temperature

    def of(output: Any, target: Any) -> Tensor:
        if not isinstance(output, Outputs):
            return loss(output, target)
        taught = tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, output.widest)
        losses = [task.training_loss(other, target, teacher=taught, share=share, heat=heat) for other in output.others]
        return torch.stack([loss(output.widest, target), *losses]).mean()

    return replace(loss, of=of, metric="loss")


class Slimming(Callback):
    """Draws the settings that each step trains, and keeps what was measured of settings afterwards."""

    def __init__(self, widest: Widest, settings: Settings, recipe: SlimmableRecipe, budget: Budget) -> None:
        self.widest, self.settings, self.recipe, self.budget = widest, settings, recipe, budget
        self.known: dict[Setting, tuple[float, ...]] = {}
        """Setting -> losses on what is held out, see `nce_fx.search.slimmable`."""
        self.seconds = 0.0
        """What measuring took so far."""
        self.sandwich: Sandwich | None = None
        self.narrowest: Slice | None = None
        self.pool: list[Slice] = []

    def identity(self) -> dict[str, Any]:
        """Return the search's own choices, but for those of how many settings are compared: more may be, later."""
        more = ("evaluations", "population", "parents", "sure")
        return choices_of(self.recipe, self.budget, self.widest.spec, but=more)

    def structure(self, original: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        """Return the network, and take up what was measured."""
        self.known = {tuple(setting): tuple(losses) for setting, losses in state.get("known", ())}
        self.seconds = state.get("seconds", 0.0)
        return super().structure(original, state)

    def state(self) -> dict[str, Any]:
        """Return what was measured."""
        return {
            "known": [[list(setting), list(losses)] for setting, losses in self.known.items()],
            "seconds": self.seconds,
        }

    def student(self, model: nn.Module) -> nn.Module:
        """Return the network with its slices."""
        assert isinstance(model, GraphModule)
        self.sandwich = Sandwich(model)
        return self.sandwich

    def before_epoch(self, run: Run) -> None:
        """Cut the epoch's slices."""
        if self.narrowest is None:
            self.narrowest = self.cut(self.settings.narrowest, run.model)
        self.pool = [self.cut(setting, run.model) for setting in self.drawn(run.position.epoch)]

    def drawn(self, epoch: int) -> Iterator[Setting]:
        """Yield the settings that are drawn for an epoch."""
        generator = np.random.default_rng([self.recipe.seed, epoch])
        for _ in range(self.recipe.drawn if self.recipe.random else 0):
            yield self.settings.drawn(generator)

    def cut(self, setting: Setting, model: GraphModule) -> Slice:
        """Return the slice of a setting."""
        return self.widest.at(self.settings.widths(setting), model)

    def before_step(self, run: Run) -> None:
        """Take the next of the epoch's slices in turn."""
        assert self.sandwich is not None
        assert self.narrowest is not None
        first = run.position.step * self.recipe.random
        turn = [self.pool[(first + k) % len(self.pool)] for k in range(self.recipe.random)]
        self.sandwich.slices = [self.narrowest, *turn]
