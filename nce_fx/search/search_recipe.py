"""How widths are searched: one frozen value, and the schedules that follow from it."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictFloat

from nce_fx.errors import InputError
from nce_fx.search.weight_training import WeightTraining
from nce_fx.validated import AtLeastOne, BelowOne, Count, NotNegative, Positive, Whole, validated

_TAS_STEPS = 600 * 98
"""Steps on widths in TAS's own CIFAR recipe: 600 epochs of half of 50,000 images in batches of 256."""
_FASTEST = 0.05
BETAS = (0.5, 0.999)
"""Of Adam on the preferences, as in TAS."""


@validated("search recipe")
class SearchRecipe(WeightTraining):
    """The choices of a search by gradient; the defaults are TAS's where TAS has them (see docs/search.md)."""

    method: Literal["gradient"] = "gradient"
    epochs: Count = 60
    """Passes over the half of the training data that the weights learn from; each weight step has a width step."""
    expand: StrictBool = True
    """Whether a group's widest candidate gets a wider one where it is preferred; off, widths only shrink: TAS."""
    threshold: Annotated[StrictFloat, Field(gt=0, lt=1)] = 0.5
    """Preference (softmax) of a group's widest candidate from which a wider one is added."""
    lambda_flop: NotNegative = 2.0
    """Weight of the loss on what computation costs: MACs, bit operations."""
    lambda_param: NotNegative = 2.0
    """Weight of the loss on what storage costs: parameters, bytes of weights."""
    ratios: tuple[Positive, ...] = (0.4, 0.55, 0.7, 0.85, 1.0)
    """Candidates at the start, as ratios of the original width; each becomes the nearest legal width."""
    expand_by: Positive = 0.15
    """How much wider an added candidate is than the widest, as a ratio of the original width."""
    max_ratio: AtLeastOne = 2.0
    """No candidate is wider than this, as a ratio of the original width."""
    warmup_epochs: Whole = 5
    """Epochs at the start in which only weights learn, on widths drawn evenly."""
    band: BelowOne = 0.05
    """The cost loss leaves networks alone that are under a budget by no more than this share of the original cost."""
    tau_start: Positive = 5.0
    tau_end: Positive = 0.1
    width_learning_rate: Positive | None = None
    """Of Adam on the preferences. None: TAS's 1e-3 over its 58,800 steps, as much more as the steps are fewer, at most
    0.05, so that preferences can travel as far."""
    width_weight_decay: NotNegative = 1e-3
    mixing: Literal["zeros", "interpolate"] = "zeros"
    """What becomes of the narrower of two drawn candidates: padded with zeros, or interpolated as published."""
    quantized: StrictBool = True
    """Off: the search runs on the float network, whatever bits it is for."""

    def __post_init__(self) -> None:
        """Refuse what cannot be searched.

        Raises:
            InputError: a field is out of range; the message names the field and what it may be.
        """
        object.__setattr__(self, "ratios", tuple(sorted(set(self.ratios))))
        checks = {
            "ratios": (bool(self.ratios) and self.ratios[-1] == 1.0, "in (0, 1], 1 among them"),
            "warmup_epochs": (self.warmup_epochs < self.epochs, f"in [0, epochs = {self.epochs})"),
            "tau_end": (self.tau_end <= self.tau_start, "in (0, tau_start]"),
        }
        for name, (holds, allowed) in checks.items():
            if not holds:
                raise InputError(f"search recipe: {name} is {getattr(self, name)!r}; it must be {allowed}")
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return super().to_dict() | {"ratios": list(self.ratios)}


def tau_at(recipe: SearchRecipe, done: float) -> float:
    """Return the temperature when a share ``done`` of the search is over: a cosine from start to end."""
    wave = 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done))))
    return recipe.tau_end + (recipe.tau_start - recipe.tau_end) * wave


def width_rate(recipe: SearchRecipe, steps: int) -> float:
    """Return the learning rate of the preferences for a search of so many steps on widths."""
    if recipe.width_learning_rate is not None:
        return recipe.width_learning_rate
    return min(_FASTEST, 1e-3 * max(1.0, _TAS_STEPS / max(1, steps)))
