"""What the compiler knows of one operation: a row of the table in `nce_fx.ops.table`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

Kind = Literal["weighted", "product", "lookup", "recurrent", "norm", "pointwise", "reduction", "spatial", "movement"]
Memory = Literal["new", "view"]
Sign = Literal["any", "never_negative", "kept"]
NOTHING: Mapping[Any, str] = MappingProxyType({})


@dataclass(frozen=True)
class Absent:
    """Why something does not apply to an operation: ``Absent("holds no matrix")``."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation, in every way that it can be written.

    For example ``Op(name="relu", kind="pointwise", modules=(nn.ReLU,), signature="input", sign="never_negative",
    example=lambda: (randn(2, 8),))``. All that PyTorch calls ``relu`` or ``relu_`` is found by the name.
    """

    name: str
    """PyTorch's name for it: ``"conv2d"``."""
    kind: Kind
    signature: str
    """Names, order and defaults of its arguments: ``"input, weight, bias=None, groups=1"``; ``*`` for any others."""
    example: Callable[[], tuple[Any, ...]]
    """Makes the arguments of one call, on values of 8 channels."""
    channels: Callable[..., Any] | Absent
    """What it does to channels (`nce_fx.ops.rules`)."""
    catch: Literal["call", "module", "aten"] = "aten"
    """Whether the rule sees the call, with its arguments; the module, then its arguments; or the ATen ops
    ``(func, args, kwargs)`` that the operation comes apart into."""
    not_held: tuple[str, ...] = ()
    """Arguments that have defaults, and that its modules do not hold as attributes."""
    modules: tuple[type[nn.Module], ...] = ()
    """The modules that do the same and hold its other arguments as attributes."""
    spellings: Mapping[Any, str] = field(default_factory=lambda: NOTHING)
    """Other names and callables that it goes by -> the order of their arguments where that is another one, else ""."""
    memory: Memory = "new"
    """Whether its result lives in the memory of its first argument."""
    sign: Sign = "any"
    """Whether its result can be negative: never, or only where an argument can."""


def same(*others: Any) -> dict[Any, str]:
    """Return spellings whose arguments have the order of the signature."""
    return dict.fromkeys(others, "")
