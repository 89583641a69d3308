"""Text from files that strangers wrote: JSON that cannot exhaust the reader, and names that no terminal obeys."""

import json
import re
from typing import Any

LONGEST = 1000
"""Characters of a message; what is longer loses its middle."""
_NEW_LINES = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def read_json(text: str | bytes) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested deeper than can be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 epoch``, ``1,797 images``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def visible(text: str) -> str:
    r"""Return a text in which whatever a terminal obeys or does not show is spelled out, such as ``\x1b``.

    New lines stay.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\u00a0" else each.encode("unicode_escape").decode() for each in text
    )


def one_clear_line(text: str) -> str:
    """Return a message as one line, not too long, of characters that are seen."""
    line = visible(_NEW_LINES.sub(" ", text.strip()))
    if len(line) <= LONGEST:
        return line
    # What went wrong is said first, what to do last.
    return f"{line[: 2 * LONGEST // 3]} ... {line[-LONGEST // 4 :]}"
