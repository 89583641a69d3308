"""`nce-fx analyze`: what the compiler sees in a model, without changing anything."""

from dataclasses import dataclass
from typing import Annotated

import typer

from nce_fx.cli import options
from nce_fx.cli.command import command


@dataclass(frozen=True, kw_only=True)
class Analyze(options.ModelOptions):
    """Show a model's layers with their cost and sensitivity, or its channel groups, or why one layer is as it is.

    Examples:

        nce-fx analyze resnet20

        nce-fx analyze nets.py:build --input 1x3x48x48 --groups

        nce-fx analyze resnet20 --why layer1.0.conv2
    """

    bits: options.Bits = 2
    sensitivity: options.Metric = None
    groups: Annotated[
        bool, typer.Option("--groups", help="Every channel group, and why the pinned ones are pinned.")
    ] = False
    why: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="One layer: its group, and the chain of nodes that ties it."),
    ] = None
    as_json: options.Json = False


analyze = command(Analyze, "nce_fx.cli.analyzing:run")
