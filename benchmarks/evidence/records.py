"""The tables of results: one CSV line a run, the file whole at any time, each run in it once."""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

OWN_WIDTHS = "own widths"
"""Every network is trained in float at its own widths, from the same seed, then rounded and trained at 2 bits."""
RESIZED = "resized"
"""As it was before: the trained float network was resized, rounded at once, and trained at 2 bits."""


@dataclass(frozen=True)
class Run:
    """One trained network: a line of evidence.csv or ablations.csv."""

    network: str
    data: str
    row: str
    seed: int
    accuracy: float
    """On the test split, in [0, 1]."""
    macs: int
    params: int
    """The quantizers' own included, so a float network has a few less."""
    bit_ops: int
    """Of one example: MACs times the bits of weights and of activations."""
    weight_bytes: int
    activation_bytes: int
    """Of one example, at the peak."""
    search_seconds: float
    """What finding the widths took, the float network that they come from included (in runs whose ``trained`` is
    ``resized`` it is not): processor seconds on a CPU, elapsed on a GPU."""
    train_seconds: float
    """Of training this network, likewise; in float at its own widths included."""
    device: str
    command: str
    """What makes this line."""
    version: str
    """Of nce-fx, with the commit, and the digest of the study."""
    trained: str = OWN_WIDTHS
    """`OWN_WIDTHS` or `RESIZED`."""


@dataclass(frozen=True)
class Widths:
    """The widths of the network of one run: a line of widths.csv."""

    network: str
    data: str
    row: str
    seed: int
    widths: str
    """``group=before>after`` with spaces between, every group."""
    trained: str = OWN_WIDTHS
    """As in `Run`."""

    def pairs(self) -> dict[str, tuple[int, int]]:
        """Return group -> widths before and after."""
        parts = (part.rpartition("=") for part in self.widths.split())
        return {group: (int(value.split(">")[0]), int(value.split(">")[1])) for group, _, value in parts}


T = TypeVar("T", Run, Widths)


Key = tuple[str, str, str, int, str]


def key(record: Run | Widths) -> Key:
    """Return what there is one line of."""
    return record.network, record.data, record.row, record.seed, record.trained


def read(path: Path, kind: type[T]) -> list[T]:
    """Return the lines of a table, none where there is no file.

    Raises:
        ValueError: the file has other columns.
    """
    if not path.exists():
        return []
    names = [field.name for field in fields(kind)]
    converters: dict[str, Any] = {"int": int, "float": float, "str": str}
    types = {field.name: converters[str(field.type)] for field in fields(kind)}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != names:
            raise ValueError(f"{path} has the columns {reader.fieldnames}, not {names}")
        return [kind(**{name: types[name](line[name]) for name in names}) for line in reader]


def add(path: Path, record: T) -> None:
    """Put a record into a table, in the place of one with the same key; other processes may do so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        others: list[T] = [other for other in read(path, type(record)) if key(other) != key(record)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([field.name for field in fields(record)])
        # In file order, so that a new line is one line of difference.
        writer.writerows(astuple(each) for each in others)
        writer.writerow(astuple(record))
        fresh = path.with_suffix(".new")
        with fresh.open("w") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with (path.parent / f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
