"""`nce-fx inspect`: look at a network, as a page for the browser."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nce_fx.cli import options
from nce_fx.cli.command import command

Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE.html", help="Where the page goes: one file that needs no other."),
]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]


@dataclass(frozen=True, kw_only=True)
class Inspect(options.NetworkOptions):
    """Write a page that shows a network: graph, channel groups, costs, sensitivity, weights before and after.

    A result folder is shown with its plan, its training and its last table; a model with what the compiler knows of it.

    Examples:

        nce-fx inspect result --open

        nce-fx inspect resnet50 --html resnet50.html
    """

    target: Annotated[
        str,
        typer.Argument(
            metavar="DIR|MODEL",
            help="A folder that `nce-fx rewrite` wrote, or a model as `nce-fx rewrite` takes it.",
            show_default=False,
        ),
    ]
    html: Html = None
    open_page: Open = False
    bits: options.Bits = 2
    sensitivity: options.Metric = None
    model: options.ModelAgain = None
    as_json: options.Json = False


inspect = command(Inspect, "nce_fx.cli.inspecting:run")
