"""`nce-fx passes`: the passes that pipelines are made of."""

from typing import Any

from nce_fx.cli import options


def passes(as_json: options.Json = False) -> None:
    """List the passes with their options, as `--passes` takes them; those of installed packages among them."""
    import json

    from nce_fx.passes.by_name import PASSES

    rows = [row_of(kind) for kind in PASSES.values()]
    if as_json:
        print(json.dumps({"passes": rows}, indent=2))
        return
    for row in rows:
        print(f"{row['name']}{{{','.join(row['options'])}}}\n    {row['does']}")


def row_of(kind: Any) -> dict[str, Any]:
    """Return a pass's name, class, options, what it does, and what it requires and ensures."""
    return {
        "name": kind.name,
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "options": kind.option_names(),
        "does": (kind.__doc__ or "").strip().splitlines()[0],
        "requires": [holds.__name__ for holds in kind.requires],
        "ensures": [holds.__name__ for holds in kind.ensures],
    }
