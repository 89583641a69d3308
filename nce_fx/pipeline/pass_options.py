"""The options of a pass, its dataclass fields, as plain data and back: checked by their types, in words.

    plain(ResizeChannels({"conv1": 8}))              {"plan": {"conv1": 8}, "seed": 0, "keep": None}
    made(ResizeChannels, {"plan": 8}, "resize")      PassError: pass resize, option plan: ...

Histories keep options so, and text is read and printed by them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, TypeVar

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from nce_fx.errors import PassError
from nce_fx.validated import first_problem

T = TypeVar("T")


def to_plain(value: Any, *, changed: bool = False) -> dict[str, Any]:
    """Return the fields of a frozen dataclass as JSON values; with ``changed`` those only that are not as by default.

    Raises:
        PassError: a field is not plain data: numbers, words, lists and mappings of them, dataclasses of such.
    """
    kind: Any = type(value)
    try:
        found: dict[str, Any] = _adapter(kind).dump_python(value, mode="json", warnings="error")
        again = _adapter(kind).dump_python(_adapter(kind).validate_python(found), mode="json")
        json.dumps(found, allow_nan=False)
    except (PydanticUserError, NameError, ValueError, TypeError) as error:
        raise PassError(f"the options of {kind.__name__} are not plain data: {_first_line(error)}") from error
    if again != found:
        odd = next(name for name in found if again.get(name) != found[name])
        raise PassError(f"the options of {kind.__name__} are not plain data: {odd} does not come back as it was")
    return {name: found[name] for name in _changed(value)} if changed else found


def _changed(value: Any) -> list[str]:
    """Return the fields of a dataclass that are not as by default."""
    return [
        entry.name
        for entry in fields(value)
        if (entry.default is MISSING or getattr(value, entry.name) != entry.default)
        and (entry.default_factory is MISSING or getattr(value, entry.name) != entry.default_factory())
    ]


def from_plain(kind: Callable[..., T], options: Mapping[str, Any], name: str) -> T:
    """Return the dataclass with these fields.

    Raises:
        PassError: an option that it does not have, one that is missing, or one of another type.
    """
    try:
        adapter = _adapter(kind)
    except (PydanticUserError, NameError) as error:
        raise PassError(f"pass {name}: its options are not plain data: {_first_line(error)}") from error
    known = list(getattr(kind, "__dataclass_fields__", {}))
    unknown = [option for option in options if option not in known]
    if unknown:
        raise PassError(f"pass {name} has no option {unknown[0]!r}: it has {', '.join(known) or 'none'}")
    try:
        result: T = adapter.validate_python(dict(options))
        return result
    except ValidationError as error:
        raise PassError(f"pass {name}, option {first_problem(error, '')}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return first_problem(error, "")
    return str(error).splitlines()[0] if str(error) else type(error).__name__
