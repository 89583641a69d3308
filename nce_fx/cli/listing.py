"""What there is: `nce-fx models`, the built-in networks; `nce-fx passes`; `nce-fx list`, everything that has a name."""

import json
import sys
from inspect import signature
from typing import Any

import torch

from nce_fx.cli.commands import List, Models, Passes
from nce_fx.cli.completing import known_names
from nce_fx.cli.console import console_of
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
    entries = {}
    for row in rows:
        shape = "x".join(str(size) for size in row["input"])
        shown = " ".join(f"{key}={json.dumps(value)}" for key, value in row["args"].items())
        entries[row["name"]] = f"{shape:14}{row['params']:>12,} parameters   {shown}"
    console_of(sys.stdout).entries(entries.items(), column=14)


def show_passes(job: Passes) -> None:
    """List the passes with their options."""
    rows = [row_of(kind) for kind in PASSES.values()]
    if job.as_json:
        print(json.dumps({"passes": rows}, indent=2))
        return
    console = console_of(sys.stdout)
    for row in rows:
        console.lines(f"{row['name']}{{{', '.join(row['options'])}}}", hang=4)
        console.lines(row["does"], indent=4)


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
    console = console_of(sys.stdout)
    for name, rows in sorted(shown.items()):
        console.lines(name, style="bold")
        console.entries([(each, says.replace("``", "`")) for each, says in rows.items()], column=26, indent=2)
