"""A command whose options are the fields of a dataclass, so that what commands share is declared once and inherited.

@dataclass(frozen=True, kw_only=True)
class Apply(QuantizerOptions, ModelOptions):
    \"\"\"Replay a plan on MODEL.\"\"\"          # its help
    batch: int | None = option(None, "Samples in a batch.", "N")      # --batch N
    verify_each: VerifyEach = False          # an option that several have: Annotated, as typer reads it

apply = command(Apply, "nce_fx.cli.applying:run")

What every command takes beside them is in `Common`.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from importlib import import_module
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from nce_fx.cli.config_file import config_text, defaults_of
from nce_fx.cli.events import Verbosity, logging_to, with_verbosity
from nce_fx.plain_text import visible


def option(default: Any, help: str, metavar: str | None = None, *, name: str = "", **how: Any) -> Any:
    """Return a field that is an option, such as ``epochs: int = option(30, "Epochs of retraining.", "N")``.

    Args:
        default: its value where it is not given.
        help: what the user is told.
        metavar: what stands for its value in the help.
        name: ``--dry-run``, ``--trial/--no-trial`` or ``--quiet -q``, where that does not follow from the field's.
        how: what else `typer.Option` takes.
    """
    return field(default=default, metadata={"typer": typer.Option(*name.split(), help=help, metavar=metavar, **how)})


def argument(default: Any, help: str, metavar: str, **how: Any) -> Any:
    """Return a field that is given by its place; with ``MISSING`` as default it has to be. The rest as of `option`."""
    shown = typer.Argument(help=help, metavar=metavar, show_default=False, **how)
    return field(default=default, metadata={"typer": shown})


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """Make the fields of a recipe the defaults of the other options, before these are read."""
    if path is not None:
        context.default_map = {**(context.default_map or {}), **defaults_of(path, context)}
    return path


_common = partial(option, rich_help_panel="Every command")


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command takes."""

    quiet: bool = _common(False, "Results and errors only.", name="--quiet -q")
    verbose: bool = _common(False, "Also what is long, such as the whole graph.", name="--verbose -v")
    log: Path | None = _common(
        None, "Write steps, epochs, notes and the result to a file, a JSON object a line.", "FILE.jsonl"
    )
    config: Path | None = _common(
        None, "Options from a file; those given here come before it.", "FILE.toml", is_eager=True, callback=_read
    )
    print_config: bool = _common(False, "Print this run's options for --config, and stop.", name="--print-config")

    @property
    def loudness(self) -> Verbosity:
        """How much is said.

        Raises:
            typer.BadParameter: less and more at once.
        """
        if self.quiet and self.verbose:
            raise typer.BadParameter("--quiet and --verbose at once: give one of them")
        return "quiet" if self.quiet else "verbose" if self.verbose else "normal"


def command(options: type[Any], run: str) -> Callable[..., None]:
    """Return the function that typer makes a command of.

    Args:
        options: the dataclass; fields are options or arguments, its docstring is the command's help.
        run: ``package.module:function`` that takes one value of it; imported when it is called, so that help and usage
            errors do not wait for torch. It raises an `NceFxError` for anything that was not right, in one line, and
            leaves no half-written folder.
    """
    parameters = [*_parameters(options), *_parameters(Common)]
    parameters.append(Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context))
    module, _, name = run.partition(":")

    def call(context: typer.Context, **given: Any) -> None:
        common = Common(**{each.name: given.pop(each.name) for each in fields(Common)})
        if common.print_config:
            typer.echo(config_text(context, given), nl=False)
            return
        with with_verbosity(common.loudness), logging_to(common.log), _plain_warnings(common.loudness):
            getattr(import_module(module), name)(options(**given))

    call.__name__, call.__doc__ = options.__name__.lower(), options.__doc__
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameters(options: type[Any]) -> Iterator[Parameter]:
    hints = get_type_hints(options, include_extras=True)
    for each in fields(options):
        kind: Any = hints[each.name]
        kind = Annotated[kind, each.metadata["typer"]] if each.metadata else kind
        default = Parameter.empty if each.default is MISSING else each.default
        yield Parameter(each.name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


@contextmanager
def _plain_warnings(loudness: Verbosity) -> Iterator[None]:
    """Say warnings in a line each, without the line of code that they come from; under `--quiet` not at all."""
    usual = warnings.formatwarning
    with warnings.catch_warnings():
        if loudness == "quiet":
            warnings.simplefilter("ignore")
        warnings.formatwarning = lambda message, *where, **line: f"nce-fx: {visible(' '.join(str(message).split()))}\n"
        try:
            yield
        finally:
            warnings.formatwarning = usual
