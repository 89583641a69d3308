"""The user's own cost of a layer on their own hardware: a table that is measured once and interpolated.

A table has one row a measurement: ``op, c_in, c_out, h, w, bits, cost``, as CSV with that header or as a JSON list of
objects. ``op`` is an operation (``conv2d``, ``linear``, ``depthwise_conv2d``) or one with its kernel (``conv2d_3x3``),
which is preferred. ``h`` and ``w`` are the output's spatial size, tokens and 1 for sequences, 1 and 1 otherwise.

Between measurements the cost is interpolated linearly in the logarithms of sizes and cost, so that a cost proportional
to any product of powers of the sizes is met exactly. Outside them it is that of the nearest point of the table's range,
scaled by c_in x c_out x h x w (by c_out x h x w for depthwise layers).
"""

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nce_fx.errors import InputError
from nce_fx.frozen import Frozen
from nce_fx.nearest import nearest_path
from nce_fx.passes.analysis.polynomial import Floats
from nce_fx.plain_text import read_json

COLUMNS = ("op", "c_in", "c_out", "h", "w", "bits", "cost")


@dataclass(frozen=True)
class HardwareTable(Frozen):
    """Measured costs by (op, bits): points (c_in, c_out, h, w) and the cost at each."""

    measurements: Mapping[tuple[str, int], tuple[tuple[float, float, float, float, float], ...]] = field(repr=False)
    name: str = "table"

    @staticmethod
    def read(path: str | Path) -> "HardwareTable":
        """Read a table from a ``.csv`` or ``.json`` file.

        Raises:
            InputError: no such file, a missing column, or a value that is no positive number; with the row.
        """
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
            rows = read_json(text) if file.suffix == ".json" else list(csv.DictReader(text.splitlines()))
        except (OSError, ValueError) as error:
            raise InputError(f"hardware table {file} cannot be read: {error}{nearest_path(file)}") from error
        if not isinstance(rows, list) or not rows:
            raise InputError(f"hardware table {file} is empty: give rows of {', '.join(COLUMNS)}")
        found: dict[tuple[str, int], list[tuple[float, float, float, float, float]]] = {}
        for number, row in enumerate(rows, 1):
            try:
                c_in, c_out, h, w, cost = (float(row[name]) for name in ("c_in", "c_out", "h", "w", "cost"))
                key = (str(row["op"]).strip(), int(row["bits"]))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                needed = ", ".join(COLUMNS)
                raise InputError(f"hardware table {file}, row {number}: {error!r}; every row needs {needed}") from error
            if not min(c_in, c_out, h, w, cost) > 0 or not np.isfinite([c_in, c_out, h, w, cost]).all():
                raise InputError(f"hardware table {file}, row {number}: sizes and cost must be positive numbers")
            found.setdefault(key, []).append((c_in, c_out, h, w, cost))
        return HardwareTable({key: tuple(sorted(set(points))) for key, points in found.items()}, file.name)

    @cached_property
    def _surfaces(self) -> "dict[tuple[str, int], Surface]":
        return {key: Surface(np.log(np.array(points))) for key, points in self.measurements.items()}

    def _surface(self, op: str, kernel: str, bits: int) -> "Surface | None":
        return self._surfaces.get((op + kernel, bits)) or self._surfaces.get((op, bits))

    def corners(self, op: str, kernel: str, bits: int, ranges: Sequence[tuple[float, float]]) -> Floats:
        """Return the sizes (c_in, c_out, h, w) at which a price can be extreme within ranges: ends and measurements."""
        surface = self._surface(op, kernel, bits)
        ticks = []
        for axis, (low, high) in enumerate(ranges):
            measured = [] if surface is None else np.unique(np.exp(surface.points[:, axis])).tolist()
            ticks.append(sorted({low, high, *(tick for tick in measured if low < tick < high)}))
        return np.array(list(itertools.product(*ticks)), np.float64)

    def price(self, op: str, kernel: str, sizes: Floats, bits: int, path: str, *, free: bool = False) -> Floats:
        """Return the cost of a layer at many sizes (batch x (c_in, c_out, h, w)).

        What may be ``free`` (lookups, products of activations) costs nothing where it is not in the table.

        Raises:
            InputError: the table has no such operation at these bits; the message names the layer.
        """
        surface = self._surface(op, kernel, bits)
        if surface is None:
            if free:
                return np.zeros(len(sizes))
            known = ", ".join(f"{name} at {b} bits" for name, b in sorted(self.measurements))
            missing = f"no {op}{kernel} at {bits} bits, which {path} needs"
            raise InputError(f"hardware table {self.name} has {missing}; it has {known}")
        return surface(np.log(np.maximum(sizes, 1e-9)), "depthwise" in op)


@dataclass(frozen=True)
class Surface:
    """Log cost over log sizes, for one operation at one number of bits."""

    points: Floats
    """Measurements x (c_in, c_out, h, w, cost), all as logarithms."""

    @cached_property
    def _varying(self) -> list[int]:
        return [axis for axis in range(4) if np.ptp(self.points[:, axis]) > 0]

    @cached_property
    def _grid(self) -> Any:
        """What interpolates where the measurements are a whole grid; ``None`` where they are scattered."""
        axes, costs = self.points[:, self._varying], self.points[:, 4]
        ticks = [np.unique(column) for column in axes.T]
        if not np.prod([len(tick) for tick in ticks]) == len(np.unique(axes, axis=0)) == len(axes):
            return None
        grid = np.empty([len(tick) for tick in ticks])
        grid[tuple(np.searchsorted(tick, column) for tick, column in zip(ticks, axes.T, strict=True))] = costs
        return _interpolate().RegularGridInterpolator(ticks, grid)

    def __call__(self, sizes: Floats, depthwise: bool) -> Floats:
        """Return the costs at log sizes (batch x 4)."""
        low, high = self.points[:, :4].min(axis=0), self.points[:, :4].max(axis=0)
        inside = np.clip(sizes, low, high)
        beyond = (sizes - inside)[:, 1:] if depthwise else sizes - inside
        result: Floats = np.exp(self._inside(inside[:, self._varying]) + beyond.sum(axis=1))
        return result

    def _inside(self, sizes: Floats) -> Floats:
        axes, costs = self.points[:, self._varying], self.points[:, 4]
        if not self._varying:
            return np.full(len(sizes), costs.mean())
        if self._grid is not None:
            on_grid: Floats = self._grid(sizes)
            return on_grid
        # Scattered points: linear within their hull where they have one, else the nearest scaled by its sizes.
        closest = np.argmin(((axes[None] - sizes[:, None]) ** 2).sum(-1), axis=1)
        nearest: Floats = costs[closest] + (sizes - axes[closest]).sum(axis=1)
        if axes.shape[1] < 2 or np.linalg.matrix_rank(axes - axes[0]) < axes.shape[1]:
            return nearest
        scattered: Floats = _interpolate().LinearNDInterpolator(axes, costs)(sizes)
        return np.where(np.isnan(scattered), nearest, scattered)


def _interpolate() -> Any:
    """Import what only a table needs: it takes a third of a second."""
    import scipy.interpolate

    return scipy.interpolate
