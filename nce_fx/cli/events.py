"""What a run says beside its result: how much, `--quiet` and `--verbose`, and as JSON lines, `--log FILE.jsonl`.

The lines are for other programs to follow: one object a line, each with ``time`` and ``event``: ``step`` (a named step
starts), ``epoch`` (of one training run), ``note``, and at the end ``result``, which is what `--json` prints, or
``stopped``, with ``why``: what was refused, or "KeyboardInterrupt".
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

import typer

_file: ContextVar[TextIO | None] = ContextVar("events", default=None)


@contextmanager
def logging_to(path: Path | None) -> Iterator[None]:
    """Write what happens meanwhile to a file; a file that is there goes on.

    Raises:
        typer.BadParameter: it cannot be written.
    """
    if path is None:
        yield
        return
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"--log {path} cannot be written: {error.strerror or error}") from error
    with file:
        token = _file.set(file)
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if not isinstance(error, typer.Exit):
                log_event("stopped", why=" ".join(str(error).split()) or type(error).__name__)
            raise
        finally:
            _file.reset(token)


def log_event(event: str, **fields: Any) -> None:
    """Write one line, at once, so that it can be followed; nothing where no log was asked for."""
    file = _file.get()
    if file is not None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        file.write(json.dumps(line, allow_nan=False) + "\n")
        file.flush()


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
