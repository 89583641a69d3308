"""What somebody probably meant: the name, pattern or file that is nearest to the one that was given."""

import difflib
import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` where a known name is near, else an empty string."""
    close = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest_pattern(pattern: str, names: Iterable[str]) -> str:
    """Return `nearest` for a pattern that matches no name: ``layr1.*`` may mean ``layer1.*``, ``conv11`` ``conv1``."""
    names, own = list(names), pattern.split(".")
    written = [
        ".".join(mine if set(mine) & set("*?[") else part for mine, part in zip(own, name.split("."), strict=False))
        for name in names
    ]
    return nearest(pattern, [each for each in written if any(fnmatchcase(name, each) for name in names)] + names)


def nearest_path(path: Path) -> str:
    """Return `nearest` for a file or folder that is not there, among those that stand where it would."""
    if os.path.lexists(path):
        return ""
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:  # the folder it would stand in is not there either
        return nearest_path(path.parent) if path.parent != path else ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(path.parent / close[0])!r}?" if close else ""
