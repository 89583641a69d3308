"""What there is: `nce-fx models`, the built-in networks; `nce-fx passes`; `nce-fx list`, everything that has a name."""

import json
from inspect import signature
from typing import Any

import torch

from nce_fx.cli.commands import List, Models, Passes
from nce_fx.cli.completing import known_names
from nce_fx.errors import InputError
from nce_fx.models import INPUT_SHAPES, MODELS
from nce_fx.nearest import nearest
from nce_fx.passes.by_name import PASSES


def show_models(job: Models) -> None:
    """List the built-in models."""
    rows: list[dict[str, Any]] = []
    for name, builder in MODELS.items():
        # Without memory or values: counting a VGG's parameters must not take seconds.
        with torch.device("meta"):
            params = sum(parameter.numel() for parameter in builder().parameters())
        args = {key: parameter.default for key, parameter in signature(builder).parameters.items()}
        rows.append({"name": name, "input": [1, *INPUT_SHAPES.get(name, ())], "params": params, "args": args})
    if job.as_json:
        print(json.dumps({"models": rows}, indent=2))
        return
    for row in rows:
        shape = "x".join(str(size) for size in row["input"])
        shown = " ".join(f"{key}={json.dumps(value)}" for key, value in row["args"].items())
        print(f"{row['name']:14}{shape:14}{row['params']:>12,} parameters   {shown}")


def show_passes(job: Passes) -> None:
    """List the passes with their options."""
    rows = [row_of(kind) for kind in PASSES.values()]
    if job.as_json:
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


def show_known(job: List) -> None:
    """List what can be named."""
    kind, found = job.kind, known_names()
    if kind is not None and kind not in found:
        raise InputError(f"no kind {kind!r}: there are {', '.join(sorted(found))}{nearest(kind, found)}")
    shown = found if kind is None else {kind: found[kind]}
    if job.as_json:
        print(json.dumps(shown, indent=2))
        return
    for name, rows in sorted(shown.items()):
        print(name)
        for each, says in rows.items():
            print(f"  {each:26}{says}")
