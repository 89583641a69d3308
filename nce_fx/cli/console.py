"""The console that a command writes to: names as they are, and lines that break between words only.

What is wider than its line stands whole on a line of its own, for the terminal to break: no name is cut.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nce_fx.plain_table import Cell, broken, fitted
from nce_fx.plain_text import visible

NARROW = 64
"""Columns of a terminal below which what has columns of its own is shown as a list."""
_WIDE = 120
"""Columns of tables where the output is a file or a pipe."""
_NO_END = 100_000
"""Columns of a line that nothing has to fit into."""


class PlainConsole(Console):
    """A console that shows names as they are: none is markup or an emoji, and no terminal obeys one."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as it is shown."""
        return super().render_str(visible(text), **options)

    @property
    def is_bounded(self) -> bool:
        """Whether its lines have an end; those of a file or a pipe have none."""
        return self.width < _NO_END

    def lines(self, text: Text | str, *, style: str = "", indent: int = 0, hang: int = 0) -> None:
        """Print a text, broken where it must be; from its second line on ``hang`` further in."""
        shown = self.render_str(text) if isinstance(text, str) else text
        for at, line in enumerate(broken(shown, self.width - indent - hang)):
            inset = Text(" " * (indent + hang if at else indent))
            self.print(inset + line, style=style, overflow="ignore", no_wrap=True, crop=False)

    def table(self, table: Table) -> None:
        """Print a table; as a list where a terminal is too narrow for it."""
        width = fitted(table, self, self.width if self.is_bounded else _WIDE)
        if width is not None and not (self.is_bounded and self.width < NARROW):
            self.print(table, width=width)
            return
        for line, indent in _as_list(table):
            self.lines(line, indent=indent, hang=2 if indent else 0)

    def entries(self, rows: Iterable[tuple[str, str]], *, column: int, indent: int = 0) -> None:
        """Print names with what is said of each beside it, from a column on; below it in a narrow terminal."""
        for name, says in rows:
            line = Text(f"{visible(name):{column}}{visible(says)}")
            if not self.is_bounded or (len(name) < column and indent + line.cell_len <= self.width):
                self.lines(line, indent=indent)
            elif len(name) < column and self.width >= NARROW:
                first, *others = broken(self.render_str(says), self.width - indent - column)
                self.lines(Text(f"{visible(name):{column}}") + first, indent=indent)
                for other in others:
                    self.lines(other, indent=indent + column)
            else:
                self.lines(name, indent=indent, hang=2)
                self.lines(" ".join(says.split()), indent=indent + 4)


def console_of(file: Any) -> PlainConsole:
    """Return a console that writes to a stream: as wide as the terminal, or as COLUMNS says of a pipe."""
    known = file.isatty() or os.environ.get("COLUMNS", "").isdigit()
    width = None if known else _NO_END
    return PlainConsole(file=file, width=width, highlight=False, soft_wrap=False, markup=False, emoji=False)


def _as_list(table: Table) -> Iterator[tuple[Text, int]]:
    """Yield a table row by row, a line a cell, and how far in each is: nothing is cut, however narrow the terminal."""
    if table.title:
        yield Text(visible(str(table.title)), style="italic"), 0
    columns = [(str(column.header), list(column.cells)) for column in table.columns]
    for cells in zip(*(cells for _, cells in columns), strict=True):
        named = [(name, _text(cell)) for (name, _), cell in zip(columns, cells, strict=True) if str(cell)]
        if named:
            yield Text.assemble((str(named[0][1]), "bold")), 0
        for name, cell in named[1:]:
            yield Text.assemble(f"{name}: ", cell), 2
    if table.caption:
        yield Text(visible(str(table.caption)), style="italic"), 0


def _text(cell: Any) -> Text:
    return cell.text if isinstance(cell, Cell) else Text(visible(str(cell)))
