"""What `--help` shows: what is said of an option beside it, or below it on a narrow terminal; no word is broken."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from nce_fx.cli.console import PlainConsole, console_of
from nce_fx.cli.python_names import another_name

_COLUMN = 34
"""Where what is said of an option begins."""
_MOST = 100
"""Columns; longer lines are hard to read."""


class Command(TyperCommand):
    """A command with such a help."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what its usage says after its name, such as ``[OPTIONS] MODEL``."""
        return ["[OPTIONS]", *(name for name, _ in _arguments(self))]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print its help."""
        console = _console()
        _begin(self, ctx, console)
        _, _, examples = (self.help or "").partition("Examples:")
        if examples:
            _head("Examples", console)
            for example in filter(None, map(str.strip, examples.splitlines())):
                console.lines(example, indent=2, hang=4)
        _section("Arguments", _arguments(self), console)
        _options(self, ctx, console)


class Group(TyperGroup):
    """A group of commands with such a help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print its help."""
        console = _console()
        _begin(self, ctx, console)
        commands = {name: " ".join((each.help or "").split("\n\n")[0].split()) for name, each in self.commands.items()}
        _section("Commands", list(commands.items()), console, column=12)
        _options(self, ctx, console)
        console.print()
        console.lines(f"What a command takes: `{ctx.command_path} COMMAND --help`.")


def _console() -> PlainConsole:
    console = console_of(sys.stdout)
    console.width = min(console.width, _MOST)
    return console


def _begin(command: Any, ctx: Any, console: PlainConsole) -> None:
    console.lines(" ".join(("Usage:", ctx.command_path, *command.collect_usage_pieces(ctx))), hang=4)
    for paragraph in (command.help or "").partition("Examples:")[0].strip().split("\n\n"):
        console.print()
        console.lines(" ".join(paragraph.split()))


def _arguments(command: Any) -> list[tuple[str, str]]:
    return [(each.metavar, each.help or "") for each in command.params if each.param_type_name == "argument"]


def _options(command: Any, ctx: Any, console: PlainConsole) -> None:
    """Print the options in the groups that they were declared in."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for each in command.get_params(ctx):
        if each.param_type_name == "option" and not each.hidden:
            name, says = each.get_help_record(ctx)
            spelled = re.sub(r"<(\w+)>", lambda kind: kind[1].upper(), name)
            other = another_name(ctx.info_name, (*each.opts, *each.secondary_opts)) if ctx.parent else ""
            says = " ".join((*says.split(), f"[in Python: {other}]" if other else "")).rstrip()
            panels.setdefault(each.rich_help_panel or "Options", []).append((spelled, says))
    for panel, rows in panels.items():
        _section(panel, rows, console)


def _section(name: str, rows: Sequence[tuple[str, str]], console: PlainConsole, column: int = _COLUMN) -> None:
    if rows:
        _head(name, console)
        console.entries(rows, column=column, indent=2)


def _head(name: str, console: PlainConsole) -> None:
    console.print()
    console.lines(f"{name}:", style="bold")
