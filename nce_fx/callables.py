"""Find what a user names: ``package.module:callable`` or ``path/to/file.py:callable``."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from nce_fx.errors import InputError, one_line
from nce_fx.nearest import nearest, nearest_path


def load_callable(spec: str, what: str, known: Iterable[str] = ()) -> Callable[..., Any]:
    """Return the callable that ``spec`` names; its module is imported, with the current folder on the path.

    Args:
        spec: ``package.module:callable`` or ``path/to/file.py:callable``; dots after the colon reach into classes.
        what: what it is for ("model", "data"), for the messages.
        known: what may stand before the colon beside modules, for the messages too: ``imagefolder``.

    Raises:
        InputError: no such module, file or callable, or the import itself failed.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise InputError(f"{what} {spec!r}: write package.module:callable or path/to/file.py:callable")
    module = _load_file(place, spec, what) if place.endswith(".py") else _load_module(place, spec, what, known)
    try:
        found = reduce(getattr, name.split("."), module)
    except AttributeError:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"{what} {spec!r}: {place} has no {name!r}{nearest(name, own)}") from None
    if not callable(found):
        raise InputError(f"{what} {spec!r}: {name!r} is of type {type(found).__name__}, not a callable")
    return found


def _load_module(place: str, spec: str, what: str, known: Iterable[str]) -> ModuleType:
    try:
        with _on_path(Path.cwd()):
            return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            hint = nearest(error.name, [*known, *_modules_beside(error.name)])
            raise InputError(f"{what} {spec!r}: no module named {error.name!r}: is it installed?{hint}") from error
        raise InputError(f"{what} {spec!r}: importing {place} failed: {one_line(error)}") from error
    except Exception as error:
        raise InputError(f"{what} {spec!r}: importing {place} failed: {one_line(error)}") from error


def _modules_beside(name: str) -> list[str]:
    """The modules that stand where one of this name would: those of its package, or all that are installed."""
    package = name.rpartition(".")[0]
    places = list(sys.modules[package].__path__) if package in sys.modules else [str(Path.cwd()), *sys.path]
    return [f"{package}.{each.name}".lstrip(".") for each in iter_modules(places)]


def _load_file(place: str, spec: str, what: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise InputError(f"{what} {spec!r}: there is no file {place}{nearest_path(Path(place))}")
    # A name of its own, the same every time: two files called model.py do not meet, and pickling finds its classes.
    name = f"nce_fx_user_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    description = importlib.util.spec_from_file_location(name, path)
    if description is None or description.loader is None:
        raise InputError(f"{what} {spec!r}: {place} is not a Python file")
    module = importlib.util.module_from_spec(description)
    sys.modules[name] = module
    try:
        with _on_path(path.parent):
            description.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{what} {spec!r}: running {place} failed: {one_line(error)}") from error
    return module


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Let imports find the modules of a folder while something is imported."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
