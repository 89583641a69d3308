"""Single files that are whole or not there: written beside, then put in place in one step.

The system itself takes its mask off the permissions of what is created: asking for the mask means to set it, and for
that moment it is another thread's, too. What a killed process leaves half written is removed by the next that writes
beside it: nobody holds its lock any more.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there nothing is known of other processes, and nothing of theirs is removed.
    fcntl = None  # type: ignore[assignment]

_HALF_WRITTEN = re.compile(r"\..+\.[0-9a-f]{8}\.nce-fx")


def lock(handle: int) -> bool:
    """Take the lock of an open file or folder, which the system lets go when the process ends; False if it is taken."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # A file system without locks.
        return True
    return True


@contextmanager
def new_sibling(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Give a new file or folder beside ``path``, such as ``.plan.json.1f0c9a2e.nce-fx``, held until the block ends.

    Raises:
        OSError: it cannot be made.
    """
    remove_half_written(path.parent)
    while True:
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.nce-fx")
        if folder:
            fresh.mkdir()
        else:
            os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            handle = os.open(fresh, os.O_RDONLY)
        except FileNotFoundError:
            continue  # Another process took it for left, before it was held.
        if lock(handle) and fresh.exists():
            break
        os.close(handle)
    try:
        yield fresh
    finally:
        os.close(handle)


def remove_half_written(folder: Path) -> None:
    """Remove what killed processes left in a folder."""
    if fcntl is None:
        return
    for entry in os.scandir(folder):
        if not _HALF_WRITTEN.fullmatch(entry.name) or entry.is_symlink():
            continue
        try:
            handle = os.open(entry.path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if entry.is_dir():
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
        except OSError:
            pass  # Somebody writes it.
        finally:
            os.close(handle)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write, which takes its name when the block ends well and is removed otherwise.

    Whenever the machine stops, ``path`` holds the old content or the new, never a part.

    Raises:
        OSError: the file cannot be written; one that was there is as it was.
    """
    with new_sibling(path) as fresh:
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
