"""How widths are searched: one frozen value, and the schedules that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from nce_fx.errors import InputError
from nce_fx.training.recipe import Recipe

_TAS_STEPS = 600 * 98
"""Steps on widths in TAS's own CIFAR recipe: 600 epochs of half of 50,000 images in batches of 256."""
_FASTEST = 0.05
BETAS = (0.5, 0.999)
"""Of Adam on the preferences, as in TAS."""


@dataclass(frozen=True)
class SearchRecipe:
    """The choices of a search; the defaults are TAS's where TAS has them (see docs/search.md)."""

    epochs: int = 60
    """Passes over the half of the training data that the weights learn from; each weight step has a width step."""
    expand: bool = True
    """Whether a group's widest candidate gets a wider one where it is preferred; off, widths only shrink: TAS."""
    threshold: float = 0.5
    """Preference (softmax) of a group's widest candidate from which a wider one is added."""
    lambda_flop: float = 2.0
    """Weight of the loss on what computation costs: MACs, bit operations."""
    lambda_param: float = 2.0
    """Weight of the loss on what storage costs: parameters, bytes of weights."""
    ratios: tuple[float, ...] = (0.4, 0.55, 0.7, 0.85, 1.0)
    """Candidates at the start, as ratios of the original width; each becomes the nearest legal width."""
    expand_by: float = 0.15
    """How much wider an added candidate is than the widest, as a ratio of the original width."""
    max_ratio: float = 2.0
    """No candidate is wider than this, as a ratio of the original width."""
    warmup_epochs: int = 5
    """Epochs at the start in which only weights learn, on widths drawn evenly."""
    band: float = 0.05
    """The cost loss leaves networks alone that are under a budget by no more than this share of the original cost."""
    tau_start: float = 5.0
    tau_end: float = 0.1
    width_learning_rate: float | None = None
    """Of Adam on the preferences. None: TAS's 1e-3 over its 58,800 steps, as much more as the steps are fewer, at most
    0.05, so that preferences can travel as far."""
    width_weight_decay: float = 1e-3
    mixing: Literal["zeros", "interpolate"] = "zeros"
    """What becomes of the narrower of two drawn candidates: padded with zeros, or interpolated as published."""
    batch_size: int = 64
    """Samples in one step over all processes together, on weights and on widths alike."""
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    lr_warmup_epochs: float = 1.0
    clip_gradient: float | None = None
    quantized: bool = True
    """Off: the search runs on the float network, whatever bits it is for."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be searched.

        Raises:
            InputError: a field is out of range; the message names the field and what it may be.
        """
        object.__setattr__(self, "ratios", tuple(sorted(set(self.ratios))))
        rate = self.width_learning_rate
        checks = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "threshold": (0 < self.threshold < 1, "in (0, 1)"),
            "lambda_flop": (0 <= self.lambda_flop < math.inf, "0 or more"),
            "lambda_param": (0 <= self.lambda_param < math.inf, "0 or more"),
            "ratios": (bool(self.ratios) and self.ratios[0] > 0 and self.ratios[-1] == 1.0, "in (0, 1], 1 among them"),
            "expand_by": (0 < self.expand_by < math.inf, "positive"),
            "max_ratio": (1 <= self.max_ratio < math.inf, "1 or more"),
            "warmup_epochs": (0 <= self.warmup_epochs < self.epochs, f"in [0, epochs = {self.epochs})"),
            "band": (0 <= self.band < 1, "in [0, 1)"),
            "tau_start": (0 < self.tau_start < math.inf, "positive"),
            "tau_end": (0 < self.tau_end <= self.tau_start, "in (0, tau_start]"),
            "width_learning_rate": (rate is None or 0 < rate < math.inf, "positive, or None"),
            "mixing": (self.mixing in ("zeros", "interpolate"), "'zeros' or 'interpolate'"),
            "width_weight_decay": (0 <= self.width_weight_decay < math.inf, "0 or more"),
        }
        for name, (holds, allowed) in checks.items():
            if not holds:
                raise InputError(f"search recipe: {name} is {getattr(self, name)!r}; it must be {allowed}")
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
    def from_dict(cls, values: Mapping[str, Any]) -> SearchRecipe:
        """Return the recipe that ``to_dict`` wrote.

        Raises:
            InputError: a field that a recipe does not have, or a value out of range.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(f"search recipe: no such field: {', '.join(unknown)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return asdict(self) | {"ratios": list(self.ratios)}


def tau_at(recipe: SearchRecipe, done: float) -> float:
    """Return the temperature when a share ``done`` of the search is over: a cosine from start to end."""
    wave = 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done))))
    return recipe.tau_end + (recipe.tau_start - recipe.tau_end) * wave


def width_rate(recipe: SearchRecipe, steps: int) -> float:
    """Return the learning rate of the preferences for a search of so many steps on widths."""
    if recipe.width_learning_rate is not None:
        return recipe.width_learning_rate
    return min(_FASTEST, 1e-3 * max(1.0, _TAS_STEPS / max(1, steps)))
