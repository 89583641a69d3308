"""What there is: `nce-fx models`, the built-in networks; `nce-fx passes`; `nce-fx list`, everything that has a name."""

from typing import Annotated, Any

import typer

from nce_fx.cli import options


def models(as_json: options.Json = False) -> None:
    """List the built-in models."""
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


def known(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="Only one kind, such as metrics.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List what can be named: models, data, quantizers, metrics, losses, formats, passes, quantities, searches."""
    import json

    from nce_fx.data import FROM_PACKAGES, SOURCES
    from nce_fx.errors import InputError
    from nce_fx.export.formats import FORMATS
    from nce_fx.models import MODELS
    from nce_fx.passes.analysis.sensitivity import METRICS
    from nce_fx.passes.by_name import PASSES
    from nce_fx.quantities import QUANTITIES
    from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
    from nce_fx.search import METHODS as SEARCH_METHODS
    from nce_fx.tasks import LOSSES
    from nce_fx.tasks import METRICS as TASK_METRICS

    own = (LOSSES, TASK_METRICS, MODELS, WEIGHT_QUANTIZERS, ACTIVATION_QUANTIZERS, METRICS, FORMATS, PASSES, QUANTITIES)
    found = {registry.kind: registry.help() for registry in own}
    found["search_methods"] = {name: method.help for name, method in SEARCH_METHODS.items()}
    found["data"] = {**SOURCES, **FROM_PACKAGES.help()}
    if kind is not None and kind not in found:
        raise InputError(f"no kind {kind!r}: there are {', '.join(sorted(found))}")
    shown = found if kind is None else {kind: found[kind]}
    if as_json:
        print(json.dumps(shown, indent=2))
        return
    for name, rows in sorted(shown.items()):
        print(name)
        for each, says in rows.items():
            print(f"  {each:26}{says}")
