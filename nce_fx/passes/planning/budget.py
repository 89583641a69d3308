"""What a plan may cost: any subset of the quantities of a cost report, each a ratio of the original or a number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from nce_fx.errors import BudgetError
from nce_fx.passes.analysis.costmodel import QUANTITIES

LARGEST_RATIO = 16
"""Numbers up to this are ratios of the original, greater ones are absolute."""

Limit = float | int | str | None


@dataclass(frozen=True)
class Budget:
    """Upper limits; ``None`` leaves a quantity free.

    A number up to 16 is a ratio of the original model, a greater one is absolute; ``"1.5x"`` and ``"2e9"`` say which.
    """

    macs: Limit = None
    params: Limit = None
    bit_ops: Limit = None
    weight_bytes: Limit = None
    activation_bytes: Limit = None
    custom: Limit = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, Budget.parse(value, field.name))

    @staticmethod
    def parse(value: float | int | str, name: str = "the budget") -> float | int:
        """Return a ratio as a float up to 16, or an absolute limit as an int.

        Raises:
            BudgetError: not a positive number, with or without an ``x``.
        """
        ratio = False
        if isinstance(value, str):
            match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(x?)\s*", value.replace("_", "").lower())
            number, ratio = (float(match[1]), bool(match[2])) if match else (0.0, False)
        else:
            number = value
        if isinstance(number, bool) or not 0 < number < float("inf"):
            raise BudgetError(f"{name}={value!r} is no budget: give a ratio like 0.8x or a positive number")
        if ratio and number > LARGEST_RATIO:
            raise BudgetError(f"{name}={value!r}: ratios go up to {LARGEST_RATIO}x; give the number itself")
        return float(number) if number <= LARGEST_RATIO else int(number)

    def limits(self, original: Mapping[str, float]) -> dict[str, float]:
        """Return the absolute limit of every quantity that has one, given what the original model costs."""
        result: dict[str, float] = {}
        for name in QUANTITIES:
            value = getattr(self, name)
            if value is not None:
                result[name] = value * original[name] if isinstance(value, float) else value
        return result

    def as_mapping(self) -> dict[str, float | int]:
        """Return the limits that are set, as they were given: ratios as floats, absolute ones as ints."""
        values = {name: getattr(self, name) for name in QUANTITIES}
        return {name: value for name, value in values.items() if value is not None}
