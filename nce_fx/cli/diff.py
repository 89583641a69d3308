"""`nce-fx diff`: two networks of one model side by side."""

from dataclasses import dataclass
from typing import Annotated

import typer

from nce_fx.cli import options
from nce_fx.cli.command import command
from nce_fx.cli.inspect import Html, Open

_Side = Annotated[
    str,
    typer.Argument(
        metavar="DIR|MODEL", help="A folder that `nce-fx rewrite` wrote, or the model itself.", show_default=False
    ),
]


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Show how two rewrites of one model differ, or a model and its rewrite: channels, bits, costs, accuracy.

    Examples:

        nce-fx diff tight loose

        nce-fx diff resnet8 result --html diff.html
    """

    a: _Side
    b: _Side
    html: Html = None
    open_page: Open = False
    model: options.ModelAgain = None
    as_json: options.Json = False


diff = command(Diff, "nce_fx.cli.diffing:run")
