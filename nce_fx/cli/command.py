"""A command whose options are the fields of a dataclass, so that what commands share is declared once and inherited.

@dataclass(frozen=True, kw_only=True)
class Apply(QuantizerOptions, ModelOptions):
    \"\"\"Replay a plan on MODEL.\"\"\"          # its help
    batch: int | None = option(None, "Samples in a batch.", "N")      # --batch N
    verify_each: VerifyEach = False          # an option that several have: Annotated, as typer reads it

apply = command(Apply, "nce_fx.cli.applying:run")

What every command takes beside them: --quiet, --verbose, --log, --config and --print-config.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, field, fields
from importlib import import_module
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from nce_fx.cli.config_file import config_text, defaults_of
from nce_fx.cli.events import Verbosity, logging_to, with_verbosity
from nce_fx.plain_text import visible


def option(
    default: Any,
    help: str,
    metavar: str | None = None,
    *,
    name: str | None = None,
    panel: str | None = None,
    completes: Callable[[str], Any] | None = None,
    show_default: bool = True,
) -> Any:
    """Return a field that is an option, such as ``epochs: int = option(30, "Epochs of retraining.", "N")``.

    Args:
        default: its value where it is not given.
        help: what the user is told.
        metavar: what stands for its value in the help.
        name: ``--dry-run``, or ``--trial/--no-trial``, where that does not follow from the field's.
        panel: under which heading it stands in the help.
        completes: what a shell completes its value with.
        show_default: whether the help says the default.
    """
    names = () if name is None else (name,)
    how: dict[str, Any] = {"metavar": metavar, "autocompletion": completes, "show_default": show_default}
    how["rich_help_panel"] = panel
    return field(default=default, metadata={"typer": typer.Option(*names, help=help, **how)})


def argument(
    default: Any, help: str, metavar: str | None = None, *, completes: Callable[[str], Any] | None = None
) -> Any:
    """Return a field that is given by its place; ``MISSING`` as default: it has to be. The rest as of `option`."""
    how = typer.Argument(help=help, metavar=metavar, autocompletion=completes, show_default=False)
    return field(default=default, metadata={"typer": how})


def command(options: type[Any], run: str) -> Callable[..., None]:
    """Return the function that typer makes a command of.

    Args:
        options: the dataclass; fields are options or arguments, its docstring is the command's help.
        run: ``package.module:function`` that takes one value of it; imported when it is called, so that help and usage
            errors do not wait for torch. It raises an `NceFxError` for anything that was not right, in one line, and
            leaves no half-written folder.
    """
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        Parameter(
            each.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if each.default is MISSING else each.default,
            annotation=Annotated[hints[each.name], each.metadata["typer"]] if each.metadata else hints[each.name],
        )
        for each in fields(options)
    ]
    module, _, name = run.partition(":")

    def call(**given: Any) -> None:
        getattr(import_module(module), name)(options(**given))

    call.__name__, call.__doc__ = options.__name__.lower(), options.__doc__
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


_PANEL = "Every command"


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """Make the fields of a recipe the defaults of the other options, before these are read."""
    if path is not None:
        context.default_map = {**(context.default_map or {}), **defaults_of(path, context)}
    return path


_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only.", rich_help_panel=_PANEL)]
_Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also what is long, such as the whole graph.", rich_help_panel=_PANEL)
]
_Log = Annotated[
    Path | None,
    typer.Option(
        "--log",
        metavar="FILE.jsonl",
        help="Write steps, epochs, notes and the result to a file, a JSON object a line.",
        rich_help_panel=_PANEL,
    ),
]
_Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        help="Options from a file; those given here come before it.",
        is_eager=True,
        callback=_read,
        rich_help_panel=_PANEL,
    ),
]
_PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="Print this run's options for --config, and stop.", rich_help_panel=_PANEL),
]
_COMMON = {"quiet": (_Quiet, False), "verbose": (_Verbose, False), "log": (_Log, None), "config": (_Config, None)}
_ALL = {**_COMMON, "print_config": (_PrintConfig, False), "context": (typer.Context, inspect.Parameter.empty)}


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


def with_common(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes these options too."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        common = {name: given.pop(name) for name in _ALL}
        if common["print_config"]:
            typer.echo(config_text(common["context"], given), nl=False)
            return
        if common["quiet"] and common["verbose"]:
            raise typer.BadParameter("--quiet and --verbose at once: give one of them")
        loudness: Verbosity = "quiet" if common["quiet"] else "verbose" if common["verbose"] else "normal"
        with with_verbosity(loudness), logging_to(common["log"]), _plain_warnings(loudness):
            command(**given)

    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _ALL.items()
    ]
    own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (*own, *added)} | {"return": None}
    return run
