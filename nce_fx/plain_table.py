"""Tables for people: a title, columns with numbers on the right, a row each."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def table_of(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]] = (), **settings: Any) -> Table:
    """Return a table: ``table_of("Channels", ("group", ">before", ">after"), [("conv1", 64, 80)])``.

    Args:
        title: above it.
        columns: their heads; one that begins with ``>`` is right.
        rows: words, texts with a style, or numbers.
        settings: more of rich's own, such as ``caption``.
    """
    table = Table(title=title, title_justify="left", caption_justify="left", **settings)
    for head in columns:
        table.add_column(head.removeprefix(">"), justify="right" if head.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, str | Text) else str(cell) for cell in row))
    return table
