"""Mappings that nobody can change: what a frozen value holds stays as it was when the value was made.

A `FrozenDict` is a `dict` in all else, so it prints, compares, copies, pickles and turns into JSON as one.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn, Self, TypeVar

import numpy as np

K = TypeVar("K")
V = TypeVar("V")


class FrozenDict(dict[K, V]):
    """A dict without its ways of being changed; those that its values hold are frozen, too."""

    def __init__(self, *args: Any, **values: Any) -> None:
        made = dict(*args, **values)
        super().__init__({key: frozen(value) for key, value in made.items()})

    def _refuse(self, *args: Any, **values: Any) -> NoReturn:
        raise TypeError("this mapping belongs to a frozen value and cannot be changed: make a new value")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self))

    def __copy__(self) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


def frozen(value: Any) -> Any:
    """Return a value whose mappings, and those in them, cannot be changed; numbers of NumPy as Python's, as in JSON."""
    if isinstance(value, np.generic):
        return value.item()
    return FrozenDict(value) if isinstance(value, Mapping) and not isinstance(value, FrozenDict) else value


def freeze(owner: Any) -> None:
    """Freeze the mappings in the public fields of a frozen dataclass; for its ``__post_init__``."""
    for field in fields(owner):
        if field.name.startswith("_"):
            continue  # what a value has computed of itself so far
        object.__setattr__(owner, field.name, frozen(getattr(owner, field.name)))


class Frozen:
    """Base of a frozen dataclass with mappings: nobody can change them either."""

    def __post_init__(self) -> None:
        freeze(self)
