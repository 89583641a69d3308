"""A command whose options are the fields of a dataclass, so that what commands share is declared once and inherited.

@dataclass(frozen=True, kw_only=True)
class Apply(QuantizerOptions, ModelOptions):
    \"\"\"Replay a plan on MODEL.\"\"\"          # its help
    verify_each: Annotated[bool, typer.Option(help="...")] = False

apply = command(Apply, "nce_fx.cli.applying:run")
"""

from collections.abc import Callable
from dataclasses import MISSING, fields
from importlib import import_module
from inspect import Parameter, Signature
from typing import Any, get_type_hints


def command(options: type[Any], run: str) -> Callable[..., None]:
    """Return the function that typer makes a command of.

    Args:
        options: the dataclass; fields are annotated as typer's parameters are, its docstring is the command's help.
        run: ``package.module:function`` that takes one value of it; imported when it is called, so that help and usage
            errors do not wait for torch. It raises an `NceFxError` for anything that was not right, in one line, and
            leaves no half-written folder.
    """
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(options)
    ]
    module, _, name = run.partition(":")

    def call(**given: Any) -> None:
        getattr(import_module(module), name)(options(**given))

    call.__name__, call.__doc__ = options.__name__.lower(), options.__doc__
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call
