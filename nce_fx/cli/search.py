"""`nce-fx search`: find the widths by training, from a model to a plan."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nce_fx.cli import options
from nce_fx.cli.command import command
from nce_fx.cli.completing import names_of


@dataclass(frozen=True, kw_only=True)
class Search(options.QuantizerOptions, options.BudgetOptions, options.ModelOptions):
    """Find the widths of MODEL by training its quantized network; write plan.json for `nce-fx apply`.

    The same command again goes on where the search was stopped.

    Examples:

        nce-fx search resnet20 --data cifar10:DIR --epochs 200 --out found

        nce-fx search nets.py:build --weights net.pt --data imagefolder:images@64 --method adapt --max-macs 0.5x
    """

    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How widths are found, see `nce-fx list search_methods`.",
            autocompletion=names_of("search_methods"),
        ),
    ] = "gradient"
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Epochs of the search; as many as the method's recipe by default."),
    ] = None
    expand: Annotated[
        bool, typer.Option("--expand/--no-expand", help="Add wider candidates while it searches; without: TAS.")
    ] = True
    loss: options.Loss = None
    in_float: Annotated[
        bool, typer.Option("--float/--quantized", help="Search on the float network; the plan is quantized later.")
    ] = False
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|published",
            help="Fields of the method's recipe, see `nce-fx list search_methods`: '{\"max_ratio\": 1.5}'; or "
            '"published": the published quantizers, SAWB and PACT, shortcuts quantized.',
        ),
    ] = None
    workers: Annotated[int, typer.Option(metavar="N", help="Processes, for a method that trains many networks.")] = 1
    scheduler: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of a dask scheduler, instead of them.")] = (
        None
    )
    out: options.Out = Path("nce-fx-search")
    as_json: options.Json = False
    force: options.Force = False


search = command(Search, "nce_fx.cli.searching:run")
