"""The passes that there are: nce-fx's own, those that installed packages bring, and those that a caller gives.

A package brings passes of its own by entry points:

    [project.entry-points."nce_fx.passes"]
    my-pass = "my_package.passes:MyPass"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points

from nce_fx.errors import PassError, one_line
from nce_fx.passes.transform.fold import FoldBatchNorm
from nce_fx.passes.transform.quantize import InsertQuantizers, RemoveQuantizers
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.passes.transform.widths import InsertWidthChoices, RemoveWidthChoices
from nce_fx.pipeline import Pass

OWN: tuple[type[Pass], ...] = (
    ResizeChannels,
    InsertQuantizers,
    RemoveQuantizers,
    FoldBatchNorm,
    InsertWidthChoices,
    RemoveWidthChoices,
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


def _installed() -> Iterable[type[Pass]]:
    for point in entry_points(group=GROUP):
        try:
            yield point.load()
        except Exception as error:
            raise PassError(f"the pass {point.name} of the entry point {point.value}: {one_line(error)}") from error
