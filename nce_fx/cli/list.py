"""`nce-fx list`: everything that can be named, with what installed packages bring."""

from typing import Annotated

import typer

from nce_fx.cli import options


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

    registries = (
        LOSSES,
        TASK_METRICS,
        MODELS,
        WEIGHT_QUANTIZERS,
        ACTIVATION_QUANTIZERS,
        METRICS,
        FORMATS,
        PASSES,
        QUANTITIES,
    )
    found = {registry.kind: registry.help() for registry in registries}
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
