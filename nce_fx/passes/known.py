"""The passes that there are: nce-fx's own, those that installed packages bring, and those that a caller gives.

A package brings passes of its own by entry points:

    [project.entry-points."nce_fx.passes"]
    my-pass = "my_package.passes:MyPass"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

from nce_fx.callables import load_callable, nearest
from nce_fx.errors import InputError, PassError, one_line
from nce_fx.passes.transform.fold import FoldBatchNorm
from nce_fx.passes.transform.quantize import InsertQuantizers, RemoveQuantizers
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.passes.transform.widths import InsertWidthChoices, RemoveWidthChoices
from nce_fx.pipeline import Pass, Pipeline
from nce_fx.pipeline.text import parse
from nce_fx.tracing.again import TraceAgain

OWN: tuple[type[Pass], ...] = (
    ResizeChannels,
    InsertQuantizers,
    RemoveQuantizers,
    FoldBatchNorm,
    InsertWidthChoices,
    RemoveWidthChoices,
    TraceAgain,
)
GROUP = "nce_fx.passes"
"""The group of entry points."""


def known_passes(given: Iterable[type[Pass]] = ()) -> Mapping[str, type[Pass]]:
    """Return passes by name: nce-fx's own, those of entry points, and the given classes.

    Raises:
        PassError: two have one name, or an entry point does not hold a pass.
    """
    found = {kind.name: kind for kind in OWN}
    for kind in (*_installed(), *given):
        if not (isinstance(kind, type) and issubclass(kind, Pass)):
            raise PassError(f"{kind!r} is not a pass: give classes that derive from nce_fx.pipeline.Pass")
        if found.setdefault(kind.name, kind) is not kind:
            other = found[kind.name]
            raise PassError(
                f"two passes are called {kind.name}: {kind.__module__}.{kind.__qualname__} and "
                f"{other.__module__}.{other.__qualname__}; give one another name"
            )
    return found


def pass_named(name: str) -> type[Pass]:
    """Return the pass of a name, or the class that ``package.module:Class`` or ``path/to/file.py:Class`` names.

    Raises:
        InputError: there is none.
    """
    known = known_passes()
    if ":" not in name and name not in known:
        raise InputError(
            f"no pass {name!r}: there are {', '.join(known)}, package.module:Class and path/to/file.py:Class"
            f"{nearest(name, known)}"
        )
    found: Any = known[name] if name in known else load_callable(name, "pass")
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise InputError(f"pass {name!r} is no pass: give a class that derives from nce_fx.pipeline.Pass")
    return found


def pipeline_from(text: str, defaults: Mapping[str, Mapping[str, Any]] | None = None) -> Pipeline:
    """Return the pipeline that a text such as ``resize{plan=@plan.json},quantize`` says, see `nce_fx.pipeline.text`.

    Raises:
        InputError: no pipeline, or a pass that is not known.
        PassError: options that a pass does not have.
    """
    return parse(text, pass_named, defaults)


def _installed() -> Iterable[type[Pass]]:
    for point in entry_points(group=GROUP):
        try:
            yield point.load()
        except Exception as error:
            raise PassError(f"the pass {point.name} of the entry point {point.value}: {one_line(error)}") from error
