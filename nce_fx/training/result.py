"""What training returns and what it tells while it runs, with a bar on a terminal where one was asked for."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: means over its training samples, and the metric on the test split where it was evaluated."""

    epoch: int
    """Counted from 1."""
    steps: int
    """Steps since the start of training, this epoch's included."""
    learning_rate: float
    bits: int | None
    """Of the stage: 32 in float; ``None`` where the quantizers have their own from first to last."""
    loss: float
    accuracy: float | None
    """``None``, as is ``test_accuracy``, where the metric is another."""
    test_accuracy: float | None
    seconds: float = field(compare=False)
    moved: float | None = None
    """The share of quantized weights that are on another level than when the epoch began, in [0, 1]."""
    test_metric: float | None = None
    """The metric, where it is another than accuracy."""

    @property
    def tested(self) -> float | None:
        """What the metric said on the test split, whatever it is."""
        return self.test_metric if self.test_accuracy is None else self.test_accuracy


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
    accuracy: float | None
    test_accuracy: float | None
    """On the test split, when last evaluated."""
    seconds_left: float
    metric: str = "accuracy"
    test_metric: float | None = None
    """What the metric of this name said on the test split, when last evaluated."""


@dataclass(frozen=True)
class TrainResult(Generic[M]):
    """A trained model and how it came to be."""

    model: M
    accuracy: float | None
    """On the test split, in [0, 1]; ``None`` where the metric is another."""
    history: tuple[EpochRecord, ...]
    score: float = math.nan
    """What the metric says on the test split."""
    metric: str = "accuracy"

    @property
    def graph_module(self) -> M:
        """The trained model, by the name that the other results of this package use."""
        return self.model


Progress = bool | Callable[[StepReport], None] | None
Watch = Callable[[str], AbstractContextManager[Callable[[StepReport], None] | None]]
"""Given the name of a run, a context in which its progress is shown."""


@contextmanager
def reporting(progress: Progress) -> Iterator[Callable[[StepReport], None]]:
    """Give a function to call after every step: the user's own, one that draws a bar, or one that does nothing."""
    if callable(progress):
        yield progress
    elif progress and sys.stderr.isatty():
        with _bar() as draw:
            yield draw
    else:
        yield lambda report: None


@contextmanager
def _bar() -> Iterator[Callable[[StepReport], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=5) as bar:
        task = bar.add_task("retrain", total=None, said="")
        yield lambda report: bar.update(task, total=report.steps, completed=report.step, said=progress_line(report))


def progress_line(report: StepReport) -> str:
    """Return one line on where training is."""
    minutes, seconds = divmod(round(report.seconds_left), 60)
    right = "" if report.accuracy is None else f"  accuracy {report.accuracy:.2%}"
    tested = "" if report.test_accuracy is None else f"  test {report.test_accuracy:.2%}"
    if report.accuracy is None and report.test_metric is not None:
        tested = f"  test {report.metric} {report.test_metric:.4g}"
    return f"epoch {report.epoch}/{report.epochs}  loss {report.loss:.4f}{right}{tested}  {minutes}:{seconds:02d} left"
