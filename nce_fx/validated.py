"""Frozen dataclasses whose fields are checked (by pydantic) wherever a value comes from: a program, a file, an option.

A field of another type or out of its range is one line that names it: ``recipe: learning_rate is '0.1': input should be
a valid number``. Nothing is converted but a whole number where a real one is meant, and a list where a tuple is.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Annotated, Any, Self, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, StrictFloat, StrictInt, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from nce_fx.errors import InputError, NceFxError
from nce_fx.nearest import nearest

T = TypeVar("T")

# Strict field by field: a strict dataclass would not be made from a mapping where it is part of another.
Positive = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[StrictFloat, Field(ge=0, le=1)]
BelowOne = Annotated[StrictFloat, Field(ge=0, lt=1)]
AtLeastOne = Annotated[StrictFloat, Field(ge=1, allow_inf_nan=False)]
Count = Annotated[StrictInt, Field(ge=1)]
Whole = Annotated[StrictInt, Field(ge=0)]


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def validated(what: str, error: type[NceFxError] = InputError) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen dataclass that checks its fields.

    Args:
        what: what messages call it, such as "recipe".
        error: what is raised where a field is not right.
    """

    def decorate(cls: type[T]) -> type[T]:
        made: Any = checked_dataclass(cls, frozen=True, config=ConfigDict(extra="forbid"))
        plain = made.__init__

        @wraps(plain)
        def checked(self: Any, *args: Any, **values: Any) -> None:
            try:
                plain(self, *args, **values)
            except ValidationError as problems:
                raise error(
                    f"{what}: {_in_words(problems, [each.name for each in dataclasses.fields(made)])}"
                ) from None

        made.__init__ = checked
        return made  # type: ignore[no-any-return]

    return decorate


class AsMapping:
    """A validated class whose values are written as JSON, such as a recipe in a checkpoint."""

    @classmethod
    def from_dict(cls, values: Mapping[Any, Any]) -> Self:
        """Return the value that ``to_dict`` wrote.

        Raises:
            InputError: a field that there is not, or a value out of range.
        """
        return cls(**{str(name): value for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        own: Any = self
        made = dataclasses.asdict(own)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in made.items()}


def first_problem(error: ValidationError, top: str = "its top") -> str:
    """Return where the first problem is, and which: ``widths.conv1: input should be greater than 0``."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or top}: {first['msg']}"


def _in_words(problems: ValidationError, fields: Iterable[str]) -> str:
    """The first problem in one line, with the field or value that was meant."""
    first = problems.errors(include_url=False)[0]
    name, *inside = [str(part) for part in first["loc"]] or ["its value"]
    if first["type"] == "unexpected_keyword_argument":
        return f"no such field: {name}{nearest(name, fields)}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{name} is missing"
    wanted = first["msg"].replace("valid tuple", "list").replace("valid dictionary", "mapping")
    place = f" at {'.'.join(inside)}" if inside else ""
    choices = re.findall(r"'([^']*)'", first["msg"]) if first["type"] == "literal_error" else ()
    hint = nearest(str(first["input"]), choices)
    return f"{name} is {first['input']!r}{place}: {wanted[0].lower()}{wanted[1:]}{hint}"
