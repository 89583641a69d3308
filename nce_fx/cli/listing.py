"""What there is: `nce-fx models`, the built-in networks; `nce-fx passes`; `nce-fx list`, everything that has a name."""

from typing import Annotated, Any

import typer

from nce_fx.cli import options
from nce_fx.cli.completing import known_names, names_of


def models(as_json: options.Json = False) -> None:
    """List the built-in models.

    Examples:

        nce-fx models

        nce-fx models --json
    """
    import json
    from inspect import signature

    import torch

    from nce_fx.models import INPUT_SHAPES, MODELS

    rows: list[dict[str, Any]] = []
    for name, builder in MODELS.items():
        # Without memory or values: counting a VGG's parameters must not take seconds.
        with torch.device("meta"):
            params = sum(parameter.numel() for parameter in builder().parameters())
        args = {key: parameter.default for key, parameter in signature(builder).parameters.items()}
        rows.append({"name": name, "input": [1, *INPUT_SHAPES.get(name, ())], "params": params, "args": args})
    if as_json:
        print(json.dumps({"models": rows}, indent=2))
        return
    for row in rows:
        shape = "x".join(str(size) for size in row["input"])
        shown = " ".join(f"{key}={json.dumps(value)}" for key, value in row["args"].items())
        print(f"{row['name']:14}{shape:14}{row['params']:>12,} parameters   {shown}")


def passes(as_json: options.Json = False) -> None:
    """List the passes with their options, as `--passes` takes them; those of installed packages among them.

    Examples:

        nce-fx passes
    """
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


def known(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help="Only one kind, such as metrics.",
            show_default=False,
            autocompletion=names_of("kinds"),
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List what can be named: models, data, quantizers, metrics, losses, formats, passes, quantities, searches.

    Examples:

        nce-fx list

        nce-fx list weight_quantizers
    """
    import json

    from nce_fx.errors import InputError
    from nce_fx.nearest import nearest

    found = known_names()
    if kind is not None and kind not in found:
        raise InputError(f"no kind {kind!r}: there are {', '.join(sorted(found))}{nearest(kind, found)}")
    shown = found if kind is None else {kind: found[kind]}
    if as_json:
        print(json.dumps(shown, indent=2))
        return
    for name, rows in sorted(shown.items()):
        print(name)
        for each, says in rows.items():
            print(f"  {each:26}{says}")
