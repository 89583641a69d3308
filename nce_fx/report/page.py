"""The page of a network: one file for the browser, self-contained, from disk or from a mail.

The template writes what a reader needs as text: headings, tables, every layer's name. The script beside it, built from
``web/`` by ``npm run build``, draws the graph and the curves from the same `View`, as JSON.
"""

from dataclasses import asdict
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from nce_fx.report.view import View, number
from nce_fx.version import __version__

MARKS = {"wider": "▲", "narrower": "▼", "pinned": "■", "same": "="}
"""Beside the colours, so that nobody needs to tell colours apart."""


def page(view: View) -> str:
    """Return the page as HTML; whatever a user named is text in it."""
    return _template().render(
        view=view,
        data=asdict(view),
        marks=MARKS,
        version=__version__,
        style=_asset("page.css"),
        script=_asset("page.js"),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("nce_fx.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "breakable": _breakable}
    return environment.get_template("page.html.j2")


def _breakable(name: str) -> Markup:
    """Let a long name break after its dots; its text stays what it is."""
    return Markup(".<wbr>").join(name.split("."))  # which escapes the parts


@cache
def _asset(name: str) -> str:
    return files("nce_fx.report").joinpath("assets", name).read_text(encoding="utf-8")
