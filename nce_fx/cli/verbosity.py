"""How much a run says: quiet, normal or verbose."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Verbosity = Literal["quiet", "normal", "verbose"]
_verbosity: ContextVar[Verbosity] = ContextVar("verbosity", default="normal")


@contextmanager
def with_verbosity(chosen: Verbosity) -> Iterator[None]:
    """Let a command say this much, such as ``"quiet"``, while it runs."""
    token = _verbosity.set(chosen)
    try:
        yield
    finally:
        _verbosity.reset(token)


def current_verbosity() -> Verbosity:
    """Return how much the run that is on says."""
    return _verbosity.get()
