"""Exported files, whole or not there, with the errors of an export."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nce_fx import files
from nce_fx.errors import ExportError


def check_asked(path: Path, batch: int | None) -> None:
    """Check, before anything is computed, where a file is to be written and for what batch.

    Raises:
        ExportError: it is a folder, its folder is not there, or the batch is no number of samples.
    """
    if batch is not None and batch < 1:
        raise ExportError(f"batch is {batch}: give a number of samples, or leave it out for any number")
    if path.is_dir() or not path.parent.is_dir():
        raise ExportError(f"{path} cannot be written: it is a folder, or its folder is not there")


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
