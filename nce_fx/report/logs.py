"""What a result folder's logs say, as lines to draw: training runs epoch by epoch, and the plans of a sweep."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nce_fx.frozen import Frozen

LOG, SWEEP = "log.csv", "sweep.csv"


@dataclass(frozen=True)
class TrainingCurve(Frozen):
    """One training run: a column per number that was logged, such as ``{"epoch": (1, 2), "loss": (1.9, 1.2)}``."""

    name: str
    columns: Mapping[str, Sequence[float | None]]


def training_runs(folder: Path, names: Mapping[str, str]) -> tuple[TrainingCurve, ...]:
    """Return the runs that have a log in folders of ``folder``; ``names`` maps folders to what tables call them."""
    logs = sorted(folder.glob(f"*/{LOG}"))
    order = list(names)
    logs.sort(key=lambda path: order.index(path.parent.name) if path.parent.name in names else len(order))
    runs = (TrainingCurve(names.get(path.parent.name, path.parent.name), read_columns(path)) for path in logs)
    return tuple(run for run in runs if run.columns)


def sweep_points(folder: Path) -> Mapping[str, Sequence[float | None]]:
    """Return the plans along a range of budgets that `nce-fx rewrite --sweep` wrote, a column per number."""
    path = folder / SWEEP
    return read_columns(path) if path.exists() else {}


def read_columns(path: Path) -> dict[str, tuple[float | None, ...]]:
    """Return the columns of a CSV file that hold numbers; what is no number in them, or missing, is ``None``."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    columns = {name: tuple(_number(row.get(name)) for row in rows) for name in names}
    return {name: values for name, values in columns.items() if any(value is not None for value in values)}


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None
