"""What training returns and what it tells while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: means over its training samples, and the accuracy on the test split where it was evaluated."""

    epoch: int
    """Counted from 1."""
    steps: int
    """Steps since the start of training, this epoch's included."""
    learning_rate: float
    bits: int | None
    """Of the stage: 32 in float; ``None`` where the quantizers have their own from first to last."""
    loss: float
    accuracy: float
    test_accuracy: float | None
    seconds: float = field(compare=False)
    moved: float | None = None
    """The share of quantized weights that are on another level than when the epoch began, in [0, 1]."""


@dataclass(frozen=True)
class StepReport:
    """Where training is after one step; what a progress callback is given."""

    epoch: int
    epochs: int
    step: int
    """Steps of the whole run that are done, and below how many there are."""
    steps: int
    loss: float
    """Means over the epoch so far, as is the accuracy (on training samples, in [0, 1])."""
    accuracy: float
    test_accuracy: float | None
    """On the test split, when last evaluated."""
    seconds_left: float


@dataclass(frozen=True)
class TrainResult(Generic[M]):
    """A trained model and how it came to be."""

    model: M
    accuracy: float
    """On the test split, in [0, 1]."""
    history: tuple[EpochRecord, ...]

    @property
    def graph_module(self) -> M:
        """The trained model, by the name that the other results of this package use."""
        return self.model
