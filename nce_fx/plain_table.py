"""Tables for people: a title, columns with numbers on the right, a row each; and lines that break between words."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from nce_fx.plain_text import visible

_WORDS = re.compile(r"\S+")
_PARTS = re.compile(r"[./_]*[^./_]+[./_]*|[./_]+")
"""Of a name such as ``layer1.0.conv2``."""


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
        table.add_row(*(Cell(cell if isinstance(cell, Text) else Text(visible(str(cell)))) for cell in row))
    return table


@dataclass(frozen=True)
class Cell:
    """What a table says of one thing; only a name that is wider than its column is broken, after a dot."""

    text: Text

    def __str__(self) -> str:
        return self.text.plain

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield from broken(self.text, options.max_width, inside=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        parts = (part for word in _WORDS.findall(self.text.plain) for part in _PARTS.findall(word))
        return Measurement(max(map(cell_len, parts), default=0), Measurement.get(console, options, self.text).maximum)


def broken(text: Text, width: int, *, inside: bool = False) -> Iterator[Text]:
    """Yield a text in lines of at most a width, such as 40: words that are wider stand alone, or break ``inside``."""
    for paragraph in text.split("\n"):
        plain, ends, start = paragraph.plain, [], 0
        for first, last in _unbroken(plain, width if inside else None):
            if cell_len(plain[start:last]) > width and plain[start:first].strip():
                start = first
                ends.append(start)
        for line in paragraph.divide(ends):
            line.rstrip()
            yield line


def _unbroken(plain: str, width: int | None) -> Iterator[tuple[int, int]]:
    """Yield where what stays on one line begins and ends."""
    for word in _WORDS.finditer(plain):
        if width is not None and cell_len(word[0]) > width:
            yield from (part.span() for part in _PARTS.finditer(plain, *word.span()))
        else:
            yield word.span()


def fitted(table: Table, console: Console, room: int) -> int | None:
    """Give the columns of a table their widths, so that names break at dots only.

    Args:
        table: it is changed.
        console: that shall print it.
        room: what it may take, such as 80.

    Returns:
        How wide it is then; ``None`` where it needs more room.
    """
    endless = console.options.update(width=100_000)
    sizes = [Measurement.get(console, endless, Group(each.header, *each.cells)) for each in table.columns]
    least = Measurement.get(console, endless, table).minimum
    if least > room:
        return None
    wanted, spare = sum(size.span for size in sizes), room - least
    for column, size in zip(table.columns, sizes, strict=True):
        column.width = size.minimum + (size.span if wanted <= spare else size.span * spare // wanted)
    return least + min(wanted, spare)
