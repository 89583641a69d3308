"""A run's options as a TOML file: what `--config` reads and `--print-config` writes.

Keys are the options' names with underscores, ``max_macs``, and the names of arguments, ``model``. Every value is
checked by the option that it is for, and what is wrong is said with its line.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from nce_fx.nearest import nearest, nearest_path
from nce_fx.plain_text import one_clear_line

_NOT_OURS = frozenset({"help", "config", "print_config", "context"})


def defaults_of(path: Path, context: typer.Context) -> dict[str, Any]:
    """Return the fields of a file by the names that the command's parameters have inside.

    Raises:
        typer.BadParameter: the file cannot be read, or a field of it is not right; the message says which line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}{nearest_path(path)}"
        ) from error
    try:
        fields = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"{path} is not TOML: {error}") from error
    parameters = _parameters(context)
    defaults = {}
    for key, value in fields.items():
        place = f"{path}, line {_line(text, key)}"
        parameter = parameters.get(key.replace("-", "_"))
        if parameter is None:
            raise _wrong(f"{place}: {context.info_name} has no option {key}{nearest(key, parameters)}")
        try:
            given = _as_given(value)
            parameter.process_value(context, given)
        except typer.BadParameter as error:
            raise _wrong(f"{place}: {key}: {error.message}") from error
        except (TypeError, ValueError) as error:
            raise _wrong(f"{place}: {key}: {_shown(value)} is of another kind than this option takes") from error
        defaults[str(parameter.name)] = given
    return defaults


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # A number of more digits than Python writes.
        return "a number of very many digits"


def _wrong(message: str) -> typer.BadParameter:
    return typer.BadParameter(one_clear_line(message))


def config_text(context: typer.Context, given: Mapping[str, Any]) -> str:
    """Return the options of a run as TOML; what has no value is left out."""
    lines = [f"# nce-fx {context.info_name} --config FILE.toml"]
    names = {str(parameter.name): key for key, parameter in _parameters(context).items()}
    for name, value in given.items():
        if value is not None and name in names:
            lines.append(f"{names[name]} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _parameters(context: typer.Context) -> dict[str, Any]:
    """The parameters of a command by how a file names them: the first long option, or the argument."""
    found = {}
    for parameter in context.command.params:
        if parameter.name not in _NOT_OURS:
            long = [option for option in parameter.opts if option.startswith("--")]
            key = long[0].removeprefix("--") if long else str(parameter.name)
            found[key.replace("-", "_")] = parameter
    return found


def _as_given(value: Any) -> Any:
    """A value as the command line would give it; tables are for options that take JSON."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list):
        return [_as_given(each) for each in value]
    return value if isinstance(value, bool) else str(value)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    # A JSON string is a TOML string, but for the delete character.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _line(text: str, key: str) -> int:
    quoted = re.escape(key)
    pattern = re.compile(rf"""^\s*(\[\s*)?["']?{quoted}["']?\s*[.=\]]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)
