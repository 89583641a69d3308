"""The commands, and what becomes of an error: one line on stderr and exit 1, never a traceback for a user's mistake.

Exit codes: 0 done, 1 something was not right, 2 usage, 130 stopped with Ctrl-C.
"""

import codecs
import io
import os
import sys
from typing import Annotated, Any

import typer

from nce_fx.cli import commands
from nce_fx.cli.help import Command, Group
from nce_fx.plain_text import visible
from nce_fx.version import __version__

_PLAIN = {"█": "#", "✓": "*", "→": "->", "…": "...", "\u00d7": "x", "▲": "^", "▼": "v", "—": "-"}


class Commands(Group):
    """The group of commands; it puts the errors that users meet into one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            typer.Exit: with 1 where something was not right, 130 where it was stopped.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _complain("stopped")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            _complain(f"{error.filename or 'a file'}: {error.strerror or error}")
            raise typer.Exit(1) from error
        except Exception as error:
            # Not imported here: errors.py knows torch.fx nodes, and `--help` and usage errors must not wait for torch.
            errors = sys.modules.get("nce_fx.errors")
            if errors is None or not isinstance(error, errors.NceFxError):
                raise
            _complain(str(error))
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Commands,
    name="nce-fx",
    help="A compiler that makes neural networks survive 2 bits: it moves channels to the layers that suffer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in commands.EVERY:
    app.command(cls=Command)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nce-fx {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """A compiler that makes neural networks survive 2 bits: it moves channels to the layers that suffer."""


def main() -> None:
    """Run the command line."""
    # OpenMP reads it when torch is loaded. Threads that spin while they wait made the demo on two busy cores take six
    # times as long as threads that sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _show_what_can_be_shown()
    app()


def _complain(message: str) -> None:
    print(f"nce-fx: {visible(' '.join(message.split()))}", file=sys.stderr)


def _show_what_can_be_shown() -> None:
    """Have output say ``->`` for an arrow where its encoding has none: that is no reason to stop."""
    codecs.register_error("nce_fx_plain", _replace)
    # Python itself writes UTF-8 where the locale is C, which a terminal of that locale does not read.
    locale = os.environ.get("LC_ALL") or os.environ.get("LANG")
    encoding = "ascii" if locale in ("C", "POSIX") and "PYTHONIOENCODING" not in os.environ else None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors="nce_fx_plain")


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Spell what an encoding does not have, as a terminal's control codes are spelled."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    shown = (_PLAIN.get(each, each.encode("unicode_escape").decode()) for each in error.object[error.start : error.end])
    return "".join(shown), error.end
