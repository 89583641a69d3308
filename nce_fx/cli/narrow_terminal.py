"""Where a terminal is too narrow for tables, or knows few characters."""

import codecs
import io
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from nce_fx.plain_text import visible

NARROW = 64
"""Columns of a terminal below which a table is shown as a list."""

_PLAIN = {"█": "#", "✓": "*", "→": "->", "…": "...", "\u00d7": "x", "▲": "^", "▼": "v", "—": "-"}


def as_list(table: Table) -> Iterator[RenderableType]:
    """Show a table row by row, a line a cell: nothing is cut, however narrow the terminal."""
    if table.title:
        yield Text(visible(str(table.title)), style="italic")
    columns = [(str(column.header), list(column.cells)) for column in table.columns]
    for cells in zip(*(cells for _, cells in columns), strict=True):
        named = [(name, _text(cell)) for (name, _), cell in zip(columns, cells, strict=True) if str(cell)]
        if named:
            yield Text.assemble((str(named[0][1]), "bold"), overflow="fold")
        for name, cell in named[1:]:
            yield Text.assemble(f"  {name}: ", cell, overflow="fold")
    if table.caption:
        yield Text(visible(str(table.caption)), style="italic")


def show_what_can_be_shown() -> None:
    """Have output say ``->`` for an arrow where its encoding has none: that is no reason to stop."""
    codecs.register_error("nce_fx_plain", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="nce_fx_plain")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(each, "?") for each in error.object[error.start : error.end]), error.end


def _text(cell: Any) -> Text:
    return cell if isinstance(cell, Text) else Text(visible(str(cell)))
