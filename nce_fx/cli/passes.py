"""`nce-fx passes`: the passes that pipelines are made of."""

from __future__ import annotations

from typing import Any

from nce_fx.cli import options


def passes(as_json: options.Json = False) -> None:
    """List the passes with their options."""
    import json

    rows = [row_of(kind) for kind in find_passes()]
    if as_json:
        print(json.dumps({"passes": rows}, indent=2))
        return
    for row in rows:
        print(f"{row['name']}({', '.join(row['options'])})\n    {row['does']}")


def find_passes() -> list[Any]:
    """Return every pass of the package, in the order of their names; found, so that no list of them can rot."""
    import importlib
    import pkgutil

    import nce_fx.passes
    from nce_fx.pipeline import Pass

    for module in pkgutil.walk_packages(nce_fx.passes.__path__, "nce_fx.passes."):
        importlib.import_module(module.name)
    kinds, found = [Pass], []
    while kinds:
        subclasses = kinds.pop().__subclasses__()
        kinds += subclasses
        found += [kind for kind in subclasses if kind.__module__.startswith("nce_fx.")]
    return sorted(found, key=_name)


def row_of(kind: Any) -> dict[str, Any]:
    """Return a pass's name, class, options and what it does."""
    from dataclasses import fields

    return {
        "name": _name(kind),
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "options": [entry.name for entry in fields(kind) if entry.init],
        "does": (kind.__doc__ or "").strip().splitlines()[0],
    }


def _name(kind: Any) -> str:
    return str(kind.name)
