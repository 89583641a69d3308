"""The passes that there are: nce-fx's own, those that installed packages bring, and those that a caller gives.

A package brings passes of its own by entry points:

    [project.entry-points."nce_fx.passes"]
    my-pass = "my_package.passes:MyPass"
"""

from collections.abc import Iterable, Mapping
from typing import Any

from nce_fx.callables import load_callable
from nce_fx.errors import InputError, PassError
from nce_fx.nearest import nearest
from nce_fx.passes.transform.fold import FoldBatchNorm
from nce_fx.passes.transform.new_weights import NewWeights
from nce_fx.passes.transform.quantize import InsertQuantizers, RemoveQuantizers
from nce_fx.passes.transform.resize import ResizeChannels
from nce_fx.passes.transform.widths import InsertWidthChoices, RemoveWidthChoices
from nce_fx.pipeline import Pass, Pipeline
from nce_fx.pipeline.text import parse
from nce_fx.registry import Registry
from nce_fx.tracing import TraceAgain

PASSES: Registry[type[Pass]] = Registry(
    "passes",
    {
        kind.name: kind
        for kind in (
            ResizeChannels,
            InsertQuantizers,
            RemoveQuantizers,
            FoldBatchNorm,
            NewWeights,
            InsertWidthChoices,
            RemoveWidthChoices,
            TraceAgain,
        )
    },
    lambda kind: isinstance(kind, type) and issubclass(kind, Pass),
)


def known_pass(name: str, given: Iterable[type[Pass]] = ()) -> type[Pass] | None:
    """Return the pass of a name: nce-fx's own, one of the given classes, or one of an installed package.

    Raises:
        InputError: an entry point does not hold a pass.
        PassError: two have that name, or the entry point holds a pass of another name.
    """
    found = {kind for kind in map(_checked, given) if kind.name == name}
    if name in PASSES.names():
        found.add(PASSES[name])
        if PASSES[name].name != name:
            raise PassError(f"the entry point {name} holds the pass {PASSES[name].name}: give both the same name")
    if len(found) > 1:
        one, two = sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in found)[:2]
        raise PassError(f"two passes are called {name}: {one} and {two}; give one another name")
    return found.pop() if found else None


def pass_named(name: str) -> type[Pass]:
    """Return the pass of a name, or the class that ``package.module:Class`` or ``path/to/file.py:Class`` names.

    Raises:
        InputError: there is none.
    """
    found = load_callable(name, "pass") if ":" in name else known_pass(name)
    if found is None:
        names = PASSES.names()
        raise InputError(
            f"no pass {name!r}: there are {', '.join(names)}, package.module:Class and path/to/file.py:Class"
            f"{nearest(name, names)}"
        )
    return _checked(found)


def pipeline_from(text: str, defaults: Mapping[str, Mapping[str, Any]] | None = None) -> Pipeline:
    """Return the pipeline that a text such as ``resize{plan=@plan.json},quantize`` says, see `nce_fx.pipeline.text`.

    Raises:
        InputError: no pipeline, or a pass that is not known.
        PassError: options that a pass does not have.
    """
    return parse(text, pass_named, defaults)


def _checked(kind: Any) -> type[Pass]:
    if not (isinstance(kind, type) and issubclass(kind, Pass)):
        raise PassError(f"{kind!r} is no pass: give a class that derives from nce_fx.pipeline.Pass")
    return kind
