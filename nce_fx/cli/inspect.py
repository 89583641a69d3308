"""`nce-fx inspect`: look at a network, as a page for the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nce_fx.cli import options

Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE.html", help="Where the page goes: one file that needs no other."),
]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]


def inspect(
    target: Annotated[
        str,
        typer.Argument(
            metavar="DIR|MODEL",
            help="A folder that `nce-fx rewrite` wrote, or a model as `nce-fx rewrite` takes it.",
            show_default=False,
        ),
    ],
    html: Html = None,
    open_page: Open = False,
    input_shape: options.Input = None,
    weights: options.Weights = None,
    data: options.Data = None,
    bits: options.Bits = 2,
    sensitivity: options.Metric = None,
    seed: options.Seed = 0,
    model: options.ModelAgain = None,
    model_args: options.ModelArgs = None,
    as_json: options.Json = False,
) -> None:
    """Write a page that shows a network: graph, channel groups, costs, sensitivity, weights before and after.

    A result folder is shown with its plan, its training and its last table; a model with what the compiler knows of it.

    Examples:

        nce-fx inspect result --open

        nce-fx inspect resnet50 --html resnet50.html
    """
    given = dict(locals())
    from nce_fx.cli.pages import Inspected, inspect_folder, inspect_model, is_result

    job = Inspected(**given)
    (inspect_folder if is_result(target) else inspect_model)(job)
