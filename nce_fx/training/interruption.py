"""Ctrl-C between two steps, never in the middle of one: a checkpoint saved then is as good as any other."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 1.0
"""Seconds after which a second Ctrl-C is meant."""


@contextmanager
def interruptions(enabled: bool) -> Iterator[Callable[[], bool]]:
    """Give a function that says whether the user (Ctrl-C) or the scheduler (SIGTERM) asked to stop.

    Another Ctrl-C a second later stops at once. (Launchers pass on the first one, which has reached us already.) Off
    the main thread Python delivers no signals, so there is nothing to catch.
    """
    asked = False
    since = 0.0
    owner = os.getpid()

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked, since
        if os.getpid() != owner:
            # A process that loads data, forked from this one: whether to stop is not for it to say, to die is.
            if number == signal.SIGTERM:
                os._exit(1)
            return
        if not asked:
            asked, since = True, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - since > PATIENCE:
            raise KeyboardInterrupt

    if not enabled or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
