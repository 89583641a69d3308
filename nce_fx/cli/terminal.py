"""What a run shows: results on stdout, everything else on stderr, and a bar for every step that takes long."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from nce_fx.cli.console import NARROW, PlainConsole, console_of
from nce_fx.cli.events import current_verbosity, log_event
from nce_fx.progress import watched
from nce_fx.training.result import StepReport

_LONG = 24 * 3600.0
"""Seconds that the speed of a step is measured over: one batch may take minutes."""


@dataclass(frozen=True)
class Terminal:
    """Where a run writes. With ``as_json`` stdout gets one JSON object and nothing else."""

    as_json: bool
    results: PlainConsole
    notes: PlainConsole
    is_main: bool = True
    """True in the one process that writes."""
    verbose: bool = False
    """Whether what is long is shown too."""
    said: list[str] = field(default_factory=list)
    """Every note so far; `--json` repeats them."""

    @classmethod
    def of(cls, as_json: bool) -> "Terminal":
        """Return the terminal of this run; only the first of several processes under torchrun speaks."""
        notes, chosen = console_of(sys.stderr), current_verbosity()
        is_main = os.environ.get("RANK", "0") == "0"
        notes.quiet = not is_main or chosen == "quiet"
        results = console_of(sys.stderr if as_json else sys.stdout)
        results.quiet = not is_main or (as_json and chosen == "quiet")
        return cls(as_json, results, notes, is_main, verbose=chosen == "verbose")

    def show(self, result: Table | str) -> None:
        """Print a table or a text of the result."""
        if isinstance(result, Table):
            self.results.table(result)
        else:
            self.results.lines(result)
        self.results.print()

    def note(self, text: str) -> None:
        """Say something beside the result."""
        self.said.append(text)
        log_event("note", text=text)
        self.notes.lines(text, style="dim")

    def finish(self, content: dict[str, Any]) -> None:
        """Print the one JSON object, where it was asked for."""
        if self.is_main:
            log_event("result", **content)
        if self.as_json and self.is_main:
            print(json.dumps(content | {"notes": self.said}, indent=2, allow_nan=False), file=sys.stdout, flush=True)

    @property
    def _is_live(self) -> bool:
        """Whether what is shown can move."""
        return self.notes.is_terminal and not self.notes.is_dumb_terminal

    def _spinner(self) -> SpinnerColumn:
        return SpinnerColumn("line" if self.notes.options.ascii_only else "dots", finished_text="✓")

    def _bars(self, *columns: ProgressColumn) -> Progress:
        """Bars with these columns, and a time; without the bars themselves where nobody looks or there is no room."""
        room = [BarColumn(bar_width=24)] if self.notes.is_terminal and self.notes.width >= NARROW else []
        return Progress(*columns[:-1], *room, columns[-1], _Time(), console=self.notes, speed_estimate_period=_LONG)

    @contextmanager
    def _shown(self, bars: Progress) -> Iterator[None]:
        """Move the bars meanwhile; where nothing moves they are there at the end, but for those that failed."""
        if self._is_live:
            bars.start()
        try:
            yield
        finally:
            if self._is_live:
                bars.stop()
            elif bars.tasks:
                bars.console.print(bars)

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Show on a terminal what goes on and for how long, such as "read result"; it leaves nothing behind."""
        if not self._is_live:
            yield
            return
        columns = self._spinner(), _folded("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=self.notes, transient=True) as bars:
            bars.add_task(what, total=None)
            yield

    @contextmanager
    def steps(self) -> "Iterator[Steps]":
        """Show named steps as they come, each with a spinner, its batches where it has some, and its time."""
        bars = self._bars(self._spinner(), _folded("{task.description}"), _Count())
        with self._shown(bars):
            steps = Steps(bars)
            try:
                with watched(steps, steps.advance):
                    yield steps
            except BaseException:
                steps.forget()
                raise
            steps.done()

    @contextmanager
    def training(self, name: str) -> Iterator[Callable[[StepReport], None]]:
        """Show one training run: epoch, loss, accuracy, time left."""
        said = _folded("{task.description}"), _folded("{task.fields[state]}")
        bars = self._bars(*said, TaskProgressColumn())
        with self._shown(bars):
            task = bars.add_task(name, total=None, state="")

            def advance(at: StepReport) -> None:
                test = "" if at.test_accuracy is None else f", test {at.test_accuracy:.1%}"
                if at.accuracy is None and at.test_metric is not None:
                    test = f", test {at.metric.rpartition(':')[2]} {at.test_metric:.4g}"
                train = "" if at.accuracy is None else f", train {at.accuracy:.1%}"
                state = f"epoch {at.epoch}/{at.epochs}, loss {at.loss:.3f}{train}{test}"
                bars.update(task, total=at.steps, completed=at.step, state=state)
                if self.is_main and at.step % max(at.steps // at.epochs, 1) == 0:
                    fields = {key: value for key, value in asdict(at).items() if key != "seconds_left"}
                    log_event("epoch", run=name, **fields)

            try:
                yield advance
            except BaseException:
                if bars.tasks[0].total is None:
                    bars.remove_task(task)
                raise


def _folded(text: str) -> TextColumn:
    return TextColumn(text, markup=False, table_column=Column(overflow="fold"))


class _Count(MofNCompleteColumn):
    """How much of a step is done, "3/8"; nothing where nobody counts."""

    def render(self, task: Task) -> Text:
        """Return it for one step."""
        return Text() if task.total in (None, 1) else super().render(task)


class _Time(TimeElapsedColumn):
    """How long a step still takes by its speed so far, "0:01:20 left"; how long it has taken where nobody knows."""

    def render(self, task: Task) -> Text:
        """Return it for one step."""
        left = None if task.finished else task.time_remaining
        return (
            super().render(task) if left is None else Text(f"{timedelta(seconds=int(left))} left", "progress.remaining")
        )


class Steps:
    """The steps of one run; call it with the name of each as it starts."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.current: Any = None

    def __call__(self, name: str) -> None:
        """Start a step, and end the one before."""
        self.done()
        self.current = self.bars.add_task(name, total=None)
        log_event("step", name=name)

    def done(self) -> None:
        """End the step that runs."""
        if self.current is not None:
            task = next(task for task in self.bars.tasks if task.id == self.current)
            total = task.total if task.total is not None else 1
            self.bars.update(self.current, total=total, completed=total)
            self.current = None

    def forget(self) -> None:
        """Take away the step that failed: its error says more than a bar that stands still."""
        if self.current is not None:
            self.bars.remove_task(self.current)
            self.current = None

    def advance(self, done: int, total: int) -> None:
        """Move the bar of the step that runs."""
        if self.current is not None:
            self.bars.update(self.current, total=total, completed=done)
