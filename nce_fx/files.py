"""Files and result folders that are whole or not there: written beside, then put in place in one step.

The system itself takes its mask off the permissions of what is created: asking for the mask means to set it, and for
that moment it is another thread's, too. What a killed process leaves half written is removed by the next that writes
beside it: nobody holds its lock any more.

A crash or a full disk at any moment leaves the old folder or the new one. Files in the old folder that are not ours
are in the new one too: linked before the swap, so that no moment is without them.
"""

import ctypes
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nce_fx.errors import ArtifactError

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
    try:
        with new_sibling(path) as fresh:
            try:
                yield fresh
                flush_to_disk(fresh)
                fresh.replace(path)
                flush_to_disk(path.parent)
            finally:
                fresh.unlink(missing_ok=True)
    except OSError as error:
        # The system names no file where a disk is full, and of a file beside another a name that nobody gave.
        if error.errno and (error.filename is None or _HALF_WRITTEN.fullmatch(Path(str(error.filename)).name)):
            error.filename = str(path)
        raise


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


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def replaced(target: Path, ours: Collection[str]) -> Iterator[Path]:
    """Give a new folder beside ``target`` to write into, and put it in the target's place when the block ends.

    Args:
        target: the folder to create or replace.
        ours: names that the new folder takes over; anything else in the old folder is in the new one as well.

    Raises:
        ArtifactError: the folder cannot be written; the old one is as it was.
    """
    target = Path(os.path.abspath(target))
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file, not a folder: choose another --out")
    with ExitStack() as held:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = held.enter_context(new_sibling(target, folder=True))
        except OSError as error:
            raise ArtifactError(f"cannot write beside {target}: {error.strerror or error}") from error
        try:
            yield fresh
            for path in [*fresh.rglob("*"), fresh]:  # so that the swap cannot overtake the data
                flush_to_disk(path)
            if target.exists():
                _keep_others(target, fresh, ours)
                _exchange(fresh, target)  # from here on `fresh` is the old folder
            else:
                fresh.rename(target)
        except OSError as error:
            raise ArtifactError(
                f"cannot write {target}: {error.strerror or error}; free space or choose another"
            ) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _keep_others(old: Path, fresh: Path, ours: Collection[str]) -> None:
    """Link what is not ours into the new folder; folders are made anew, and files copied where links cannot be."""
    remove_half_written(old)
    for entry in old.iterdir():
        if entry.name in ours or (fresh / entry.name).exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, fresh / entry.name, symlinks=True, copy_function=_link)
        else:
            _link(entry, fresh / entry.name)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders: in one step where the system can (Linux), else in two renames."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        rename = None
    paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    if rename is not None and rename(*paths, _RENAME_EXCHANGE) == 0:
        return
    aside = one.with_suffix(".old")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)
