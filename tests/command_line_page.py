"""The reference of the command line, docs/command_line.md, made from the commands themselves.

To make it anew: `python -m tests.command_line_page`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer.main

from nce_fx.cli import app
from nce_fx.cli.python_names import python_name

PAGE = Path(__file__).parent.parent / "docs" / "command_line.md"
HEAD = """# The command line

Made from the commands themselves by `python -m tests.command_line_page`; `nce-fx COMMAND --help` says the same.

MODEL is a built-in name (`nce-fx models`), `package.module:callable` or `path/to/file.py:callable`. A budget is a ratio
of the original (`0.8x`), a number, or `none`. Results go to stdout, everything else to stderr. Exit codes: 0 done,
1 something was not right (one line says what, where, and what to do), 2 usage, 130 stopped with Ctrl-C.

What an option is in Python is [at the end](#in-python); where it has another name there, `--help` says it too. On a
terminal every long step shows how long it still takes, or how long it has taken where nobody knows; elsewhere, what it
took.
"""


def page() -> str:
    """Return the text of the page: a section a command, a table a group of options."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    sections = [_section(name, command) for name, command in commands.items()]
    common = next(iter(commands.values())).params
    every = _table("Every command", [each for each in common if each.rich_help_panel == "Every command"])
    return "\n".join([HEAD, *sections, "## Options of every command\n", *every, "", *_in_python(commands)])


def _in_python(commands: dict[str, Any]) -> list[str]:
    """The table of the options with what takes each in Python, and in which commands."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, command in commands.items():
        for each in command.params:
            if each.param_type_name == "option":
                spelled = ", ".join(f"`{spelling}`" for spelling in (*each.opts, *each.secondary_opts))
                theirs = python_name(name, next(long for long in each.opts if long.startswith("--")))
                found.setdefault((spelled, theirs), []).append(name)
    rows = [
        f"| {spelled} | {f'`nce_fx.{theirs}`' if theirs else '-'} | {', '.join(names)} |"
        for (spelled, theirs), names in sorted(found.items())
    ]
    return ["## In Python\n", "| Option | in Python | of |", "|---|---|---|", *rows]


def _section(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    shown = "".join(f" {each.metavar}" for each in arguments)
    says, _, examples = command.help.partition("Examples:")
    calls = [f"nce-fx {name}{shown}", "", *filter(None, map(str.strip, examples.splitlines()))]
    lines = [f"## nce-fx {name}\n", _text(says), "", "```text", *calls, "```", ""]
    lines += [f"- `{each.metavar}`: {_text(each.help)}" for each in arguments]
    panels: dict[str | None, list[Any]] = {}
    for each in command.params:
        if each not in arguments and each.rich_help_panel != "Every command" and not each.hidden:
            panels.setdefault(each.rich_help_panel, []).append(each)
    for panel, options in panels.items():
        lines += ["", *_table(panel or "Options", options)]
    return "\n".join(lines) + "\n"


def _table(panel: str, options: list[Any]) -> list[str]:
    rows = [f"| {panel} | default | |", "|---|---|---|"]
    for each in options:
        names = ", ".join(f"`{name}`" for name in (*each.opts, *each.secondary_opts))
        value = "" if each.is_flag else f" `{each.metavar or _kind(each)}`".replace("|", "\\|")
        default = "" if each.is_flag or each.default is None else f"`{each.default}`"
        rows.append(f"| {names}{value} | {default} | {_text(each.help)} |")
    return rows


def _kind(option: Any) -> str:
    annotation = option.type_descriptor.annotation
    return str(getattr(annotation, "__name__", annotation)).upper()


def _text(help_text: str) -> str:
    return " ".join(help_text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
