"""How much a run says: quiet, normal or verbose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Voice = Literal["quiet", "normal", "verbose"]
_voice: ContextVar[Voice] = ContextVar("voice", default="normal")


@contextmanager
def voice(chosen: Voice) -> Iterator[None]:
    """Say this much while a command runs."""
    token = _voice.set(chosen)
    try:
        yield
    finally:
        _voice.reset(token)


def current_voice() -> Voice:
    """Return how much the run that is on says."""
    return _voice.get()
