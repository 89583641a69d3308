"""The progress bar of a training run: on a terminal's stderr, where it was asked for, and nowhere else."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from nce_fx.training.result import StepReport

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
