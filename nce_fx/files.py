"""Single files that are whole or not there: written beside, then put in place in one step.

The system itself takes its mask off the permissions of what is created: asking for the mask means to set it, and for
that moment it is another thread's, too.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sibling_name(path: Path) -> Path:
    """Return a free name in the same folder, such as ``.plan.json.1f0c9a2e.new`` for ``plan.json``."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write, which takes its name when the block ends well and is removed otherwise.

    Whenever the machine stops, ``path`` holds the old content or the new, never a part.

    Raises:
        OSError: the file cannot be written; one that was there is as it was.
    """
    fresh = sibling_name(path)
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield fresh
        flush_to_disk(fresh)
        fresh.replace(path)
        flush_to_disk(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that, whenever the machine stops, it holds the old content or the new, never a part.

    Raises:
        OSError: the file cannot be written; one that was there is as it was.
    """
    with replaced_file(path) as fresh:
        fresh.write_bytes(content)


def flush_to_disk(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
