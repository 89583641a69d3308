"""How far a long step has come: said where it runs, and shown by whoever watches, such as the command line.

    with watched(print, lambda done, total: print(done, "of", total)):
        begin("look at the batches")
        for batch in counted(batches):
            ...

Where nobody watches nothing happens. Inside a loop that is counted nothing is told: it is the whole that is asked for.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from operator import length_hint
from typing import TypeVar

Item = TypeVar("Item")
Observer = Callable[[str], None]
"""Called with the name of each step as it starts."""
Progress = Callable[[int, int], None]
"""Called with (done, in all)."""


@dataclass
class _Watch:
    begin: Observer
    advance: Progress
    counting: bool = False


_watch: ContextVar[_Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(begin: Observer | None, advance: Progress | None) -> Iterator[None]:
    """Call these meanwhile; with ``None`` for both whoever watched before goes on."""
    if begin is None and advance is None:
        yield
        return
    token = _watch.set(_Watch(begin or (lambda name: None), advance or (lambda done, total: None)))
    try:
        yield
    finally:
        _watch.reset(token)


def begin(name: str) -> None:
    """Say that a step starts, such as "trace"."""
    watch = _watch.get()
    if watch is not None and not watch.counting:
        watch.begin(name)


def advance(done: int, total: int) -> None:
    """Say how much of the step is done, such as 3 of 8 batches."""
    watch = _watch.get()
    if watch is not None and not watch.counting:
        watch.advance(done, total)


def counted(items: Iterable[Item], total: int = 0) -> Iterator[Item]:
    """Yield items, and say after each how many of them are done.

    ``total`` is how many there are where the items themselves do not know; where nobody does, nothing is told.
    """
    watch, total = _watch.get(), total or length_hint(items)
    if watch is None or watch.counting or not total:
        yield from items
        return
    try:
        for done, item in enumerate(items, start=1):
            watch.counting = True
            yield item
            watch.counting = False
            watch.advance(done, total)
    finally:
        watch.counting = False
