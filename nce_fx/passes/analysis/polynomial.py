"""Products of axis lengths, compiled to arrays: a cost at any widths is a few gathers and one multiplication.

An axis is affine in the widths of parts (``AxisWidth``); a term is an integer times a product of axes. ``Terms`` holds
many of them and evaluates them together, exactly in integers for one vector of part widths, in float64 (exact up to
2**53) for many at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import lcm

import numpy as np
import numpy.typing as npt

from nce_fx.passes.analysis.channels.graph import AxisWidth

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """``coefficient`` times the product of the lengths of ``axes``."""

    coefficient: int
    axes: tuple[AxisWidth, ...]
    only_at: tuple[tuple[int, int], ...] = ()
    """Pairs (part, width): the term is 0 where one of these parts has another width."""

    @staticmethod
    def of(axes: Iterable[AxisWidth], coefficient: int = 1, only_at: tuple[tuple[int, int], ...] = ()) -> "Term":
        """Build a term whose constant axes are folded into the coefficient."""
        variable = []
        for axis in axes:
            if axis.terms:
                variable.append(axis)
            else:
                coefficient *= axis.fixed
        return Term(coefficient, tuple(variable), only_at)


@dataclass(frozen=True)
class Terms:
    """Many terms over the same part widths, as arrays."""

    terms: tuple[Term, ...]
    parts: int

    @cached_property
    def axes(self) -> tuple[AxisWidth, ...]:
        """The distinct variable axes; index 0 is the constant 1 that shorter products are padded with."""
        return (AxisWidth(1), *dict.fromkeys(axis for term in self.terms for axis in term.axes))

    @cached_property
    def _affine(self) -> tuple[Integers, Integers, Integers]:
        """Numerators over parts (axes x parts), fixed lengths and denominators of every axis."""
        slope = np.zeros((len(self.axes), self.parts), np.int64)
        denominator = np.ones(len(self.axes), np.int64)
        for row, axis in enumerate(self.axes):
            denominator[row] = lcm(*(factor.denominator for _, factor in axis.terms))
            for part, factor in axis.terms:
                slope[row, part] += int(factor * int(denominator[row]))
        fixed = np.array([axis.fixed for axis in self.axes], np.int64)
        return slope, fixed, denominator

    @cached_property
    def _slope_float(self) -> Floats:
        return np.ascontiguousarray(self._affine[0].T, dtype=np.float64)

    @cached_property
    def _factors(self) -> Integers:
        """Axis indices of every term (terms x longest product), padded with the constant axis 0."""
        index = {axis: position for position, axis in enumerate(self.axes)}
        longest = max((len(term.axes) for term in self.terms), default=0)
        rows = [[index[axis] for axis in term.axes] + [0] * (longest - len(term.axes)) for term in self.terms]
        return np.array(rows, np.int64).reshape(len(self.terms), longest)

    @cached_property
    def _coefficients(self) -> Integers:
        return np.array([term.coefficient for term in self.terms], np.int64)

    @cached_property
    def _conditions(self) -> tuple[tuple[int, Integers, Integers], ...]:
        """Which terms count at some widths only: their index, the parts, and the widths of these."""
        pairs = [(i, np.array(term.only_at, np.int64).T) for i, term in enumerate(self.terms) if term.only_at]
        return tuple((i, parts, widths) for i, (parts, widths) in pairs)

    def at(self, part_widths: Sequence[int] | Integers) -> Integers:
        """Return the value of every term at one vector of part widths, in exact integers."""
        slope, fixed, denominator = self._affine
        given = np.asarray(part_widths, np.int64)
        lengths = fixed + slope @ given // denominator
        values: Integers = self._coefficients * lengths[self._factors].prod(axis=1)
        for term, parts, widths in self._conditions:
            values[term] *= (given[parts] == widths).all()
        return values

    def at_many(self, part_widths: Floats) -> Floats:
        """Return the values (batch x terms) at a batch of part widths (batch x parts), in float64."""
        _, fixed, denominator = self._affine
        lengths = fixed + np.floor(part_widths @ self._slope_float / denominator)
        values: Floats = np.ones((len(part_widths), 1)) * self._coefficients
        for column in self._factors.T:
            values *= lengths[:, column]
        for term, parts, widths in self._conditions:
            values[:, term] *= (part_widths[:, parts] == widths).all(axis=1)
        return values
