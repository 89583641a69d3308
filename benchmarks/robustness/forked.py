"""Work in a forked process, with bounds on what it uses."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

GIBIBYTES = 8
"""The memory that a process may hold."""
WAITING = 300
"""Seconds without any work after which a process is ended."""
PAUSE = 0.05
"""Seconds between two looks at a process."""


def processor_seconds(process: int) -> float:
    """Return how long a process has run on a processor: what else runs there does not count."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def in_a_process(work: Callable[[], int], seconds: float, log: Path) -> tuple[int, float]:
    """Run work in a forked process; return its exit status, negative where a signal ended it, and its seconds.

    What it may use of a processor is bounded; a process that only waits is ended, too.
    """
    folder = tempfile.mkdtemp(prefix="forked-")
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setpgid(0, 0)  # of the same session, whose share of the processor it has
            out = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            for stream in (0, 1, 2):
                os.dup2(out if stream else os.open(os.devnull, os.O_RDONLY), stream)
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 5))
            resource.setrlimit(resource.RLIMIT_DATA, (GIBIBYTES << 30, GIBIBYTES << 30))
            os.environ["PYTEST_DEBUG_TEMPROOT"] = tempfile.tempdir = folder
            status = work()
        finally:
            sys.stdout.flush()
            os._exit(status)
    used, waited = 0.0, 0.0
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        # By what it used and not by the clock: other programs may leave it little of the processor, or stop both.
        if (now := processor_seconds(child)) > used:
            used, waited = now, 0.0
        elif (waited := waited + PAUSE) > WAITING:
            os.kill(child, signal.SIGKILL)
        time.sleep(PAUSE)
    # What it has started ends with it.
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    return os.waitstatus_to_exitcode(ended[1]), ended[2].ru_utime + ended[2].ru_stime
