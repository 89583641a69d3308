"""Exported files, whole or not there, with the errors of an export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nce_fx import files
from nce_fx.errors import ExportError


@contextmanager
def export_file(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write, as `nce_fx.files.replaced_file` does.

    Raises:
        ExportError: the file cannot be written; one that was there is as it was.
    """
    try:
        with files.replaced_file(path) as fresh:
            yield fresh
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error
