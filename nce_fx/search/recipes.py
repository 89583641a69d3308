"""How widths are searched, one frozen value a method, and the schedules that follow from it.

What all of them say of the weights is `WeightTraining`.
"""

import math
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt

from nce_fx.errors import InputError
from nce_fx.training.recipe import Recipe
from nce_fx.validated import AsMapping, AtLeastOne, BelowOne, Count, NotNegative, Positive, Share, Whole, validated

Inside = Annotated[StrictFloat, Field(gt=0, lt=1)]
"""A share that is neither nothing nor all."""


@validated("search recipe")
class WeightTraining(AsMapping):
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
        """Refuse what the recipe of the weights refuses."""
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
    threshold: Inside = 0.5
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
        """Refuse what cannot be searched."""
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


def tau_at(recipe: SearchRecipe, done: float) -> float:
    """Return the temperature when a share ``done`` of the search is over: a cosine from start to end."""
    wave = 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done))))
    return recipe.tau_end + (recipe.tau_start - recipe.tau_end) * wave


def width_rate(recipe: SearchRecipe, steps: int) -> float:
    """Return the learning rate of the preferences for a search of so many steps on widths."""
    if recipe.width_learning_rate is not None:
        return recipe.width_learning_rate
    return min(_FASTEST, 1e-3 * max(1.0, _TAS_STEPS / max(1, steps)))


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
    held_out: Inside = 0.2
    """The share of the training split that decides, and is not trained on."""
    learning_rate: Positive = 0.02
    """At which a stretch of ``every`` epochs begins; in it the rate falls to zero, so all moves are tried alike."""

    def __post_init__(self) -> None:
        """Refuse what leaves no time to move anything."""
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


@validated("search recipe")
class SlimmableRecipe(WeightTraining):
    """The choices of a search among the widths of one slimmable network (see docs/search.md)."""

    method: Literal["slimmable"] = "slimmable"
    epochs: Count = 30
    """Passes over the training data without what is held out; each step trains several settings of the widths."""
    min_ratio: Annotated[StrictFloat, Field(gt=0, le=1)] = 0.5
    """Least width of a group, as a ratio of its own."""
    max_ratio: AtLeastOne = 1.5
    """Greatest width of a group, as a ratio of its own."""
    random: Whole = 2
    """Settings within the budgets that each step trains, beside the widest and the narrowest network."""
    drawn: Count = 16
    """Settings within the budgets that are drawn for each epoch; its steps take them in turn."""
    distill_alpha: Share = 0.9
    """How much the others learn from what the widest says, the rest from the targets."""
    distill_temperature: Positive = 4.0
    held_out: Inside = 0.2
    """Share of the training data that settings are compared on; no weight learns from it."""
    evaluations: Count = 400
    """Settings that are compared."""
    population: Count = 40
    """Settings of one generation; the first is drawn, the others come from the best so far."""
    parents: Count = 10
    """How many of the best so far others come from."""
    sure: NotNegative = 3.0
    """How many standard errors a setting has to be better than the widths as they are; where none is, these stay. Of
    hundreds of settings that are no better, one is by two."""
    statistics: Count = 8
    """Batches that the statistics of BatchNorm are taken from anew, for each setting that is compared."""

    def __post_init__(self) -> None:
        """Refuse what cannot be searched."""
        if self.min_ratio == self.max_ratio:
            raise InputError("search recipe: min_ratio and max_ratio are both 1: no group has a width to choose")
        super().__post_init__()


_FURTHEST = 3.0
"""How many deviations widths may move in a round."""


@validated("search recipe")
class SurfaceRecipe(WeightTraining):
    """The choices of a search that trains a network for every setting it looks at (see docs/search.md)."""

    method: Literal["surface"] = "surface"
    epochs: Count = 8
    """Of each network at low precision."""
    float_epochs: Whole = 8
    """Of each network before that, in float at its own widths."""
    networks: Count = 36
    """Drawn near the centre in each round."""
    rounds: Count = 2
    """Each ends with a step to the best of the surface, which is the next one's centre."""
    deviation: Positive = 0.25
    """Of the logarithm of a drawn width from the centre's: 0.25 makes most widths 0.78 to 1.28 times the centre's."""
    repeats: Annotated[StrictInt, Field(ge=2)] = 4
    """Seeds that each centre is trained with: what they differ by is the noise."""
    candidates: Count = 3
    """Settings that are held against the first centre at the end, the most promising ones."""
    finals: Annotated[StrictInt, Field(ge=2)] = 4
    """Fresh seeds that each of them, and the first centre, is trained with."""
    sure: NotNegative = 2.0
    """How many standard errors a candidate has to be better than the first centre; where none is, that stays."""
    held_out: Inside = 0.2
    """Share of the training data that settings are compared on; no weight learns from it."""
    statistics: Whole = 8
    """Batches that the statistics of BatchNorm are taken from anew before a network is measured."""
    distill: StrictBool = True
    """Whether a network learns at low precision from what it was in float, as well as from the targets."""

    def in_float(self, seed: int) -> Recipe:
        """Return how a network is trained in float."""
        return replace(self.training(), epochs=self.float_epochs, seed=seed)

    def at_low_precision(self, seed: int) -> Recipe:
        """Return how a network is trained after it was quantized."""
        return replace(self.training(), reestimate=self.statistics, seed=seed)

    @property
    def reach(self) -> float:
        """How far from the first centre widths can come in all rounds, as a ratio."""
        return math.exp(_FURTHEST * self.deviation * self.rounds)
