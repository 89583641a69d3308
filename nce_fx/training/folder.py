"""The folder of a run: made where it is not there, and held, so that no second run writes into it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nce_fx.errors import TrainingError
from nce_fx.files import lock

PATIENCE = 10.0
"""Seconds: processes that loaded data for a run that was killed hold its folder until they notice, after five."""


@contextmanager
def held(directory: Path | None) -> Iterator[None]:
    """Hold the folder of a run until the block ends, or the process, however it ends.

    Raises:
        TrainingError: another run is under way in it, or it cannot be made.
    """
    if directory is None:
        yield
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise TrainingError(f"cannot write {directory}: {error.strerror or error}; choose another folder") from error
    try:
        until = time.monotonic() + PATIENCE
        while not (free := lock(handle)) and time.monotonic() < until:
            time.sleep(0.1)
        if not free:
            raise TrainingError(f"another run is under way in {directory}: wait for it, or choose another folder")
        yield
    finally:
        os.close(handle)
