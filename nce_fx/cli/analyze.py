"""`nce-fx analyze`: what the compiler sees in a model, without changing anything."""

from __future__ import annotations

from typing import Annotated

import typer

from nce_fx.cli import options


def analyze(
    model: options.Model,
    input_shape: options.Input = None,
    weights: options.Weights = None,
    data: options.Data = None,
    bits: options.Bits = 2,
    sensitivity: options.Metric = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="Every channel group, and why the pinned ones are pinned.")
    ] = False,
    why: Annotated[
        str | None,
        typer.Option("--why", metavar="NAME", help="One layer: its group, and the chain of nodes that ties it."),
    ] = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    model_args: options.ModelArgs = None,
) -> None:
    """Show a model's layers with their cost and sensitivity, or its channel groups, or why one layer is as it is."""
    given = dict(locals())
    from nce_fx.cli.inspection import Inspection, run

    run(Inspection(**given))
