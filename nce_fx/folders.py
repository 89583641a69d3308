"""Result folders that are whole or not there: written beside, then swapped into place in one step.

A crash or a full disk at any moment leaves the old folder or the new one. Files in the old folder that are not ours
are in the new one too: linked before the swap, so that no moment is without them.
"""

import ctypes
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nce_fx.errors import ArtifactError
from nce_fx.files import flush_to_disk, new_sibling, remove_half_written

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
