"""`nce-fx apply`: replay a plan on a model, or run passes on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nce_fx.cli import options
from nce_fx.cli.command import command


@dataclass(frozen=True, kw_only=True)
class Apply(options.QuantizerOptions, options.ModelOptions):
    """Resize MODEL to a plan and quantize it, or run other passes on it.

    The same model, weights, data and seed give the same weights.

    Examples:

        nce-fx apply resnet20 result/plan.json --weights result/float.safetensors --out replayed

        nce-fx apply resnet20 result/plan.json --passes 'resize,quantize{weight_bits=4}' --verify-each
    """

    plan: Annotated[
        Path | None,
        typer.Argument(metavar="[PLAN.json]", help="A plan that `nce-fx rewrite` wrote.", show_default=False),
    ] = None
    passes: options.Passes = None
    verify_each: options.VerifyEach = False
    print_after: options.PrintAfter = None
    out: options.Out = Path("nce-fx-out")
    as_json: options.Json = False
    force: options.Force = False


apply = command(Apply, "nce_fx.cli.applying:run")
