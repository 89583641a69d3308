"""Ablations: a few rows of a study again, one choice of it changed. They go to ablations.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nce_fx.trial import REGIONS


@dataclass(frozen=True)
class Variant:
    """A row with fields of its study replaced, see ``Study.with_changes``."""

    row: str
    label: str
    changes: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the ``row`` column says."""
        return f"{self.row} [{self.label}]"


def _search(field: str, values: Sequence[Any]) -> list[Variant]:
    return [Variant("nce-search", f"{field}={value}", {"search": {field: value}}) for value in values]


def _both(label: str, changes: Mapping[str, Any], rows: Sequence[str] = ("uniform", "nce-plan")) -> list[Variant]:
    return [Variant(row, label, changes) for row in rows]


ABLATIONS: Mapping[str, Sequence[Variant]] = {
    "threshold": _search("threshold", (0.25, 0.35, 0.5)),
    "lambda": [
        Variant("nce-search", f"lambda={value:g}", {"search": {"lambda_flop": value, "lambda_param": value}})
        for value in (0.5, 2.0, 8.0)
    ],
    "candidates": [
        Variant("nce-search", f"ratios {ratios[0]:g} to 1 in {len(ratios)}", {"search": {"ratios": ratios}})
        for ratios in ([0.7, 0.85, 1.0], [0.4, 0.55, 0.7, 0.85, 1.0], [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    ],
    "start": [*_both("start=float", {"start": "float"}), *_both("start=scratch", {"start": "scratch"})],
    "ends": [
        *_both("first_last_bits=2", {"spec": {"first_last_bits": 2}}),
        *_both("first_last_bits=8", {"spec": {"first_last_bits": 8}}),
        *_both("first_last_bits=float", {"spec": {"first_last_bits": None}}),
    ],
    "shortcuts": [
        *_both("shortcuts=quantized", {"spec": {"shortcuts": "quantized"}}),
        *_both("shortcuts=float", {"spec": {"shortcuts": "float"}}),
    ],
    "budget": [
        variant
        for ratio in (0.5, 0.25)
        for variant in _both(f"budget={ratio:g}x", {"budget": ratio}, ("multiplier", "random", "shuffled", "nce-plan"))
    ],
    "region": [
        Variant("nce-plan", f"budget=0.5x, {low:g}x to {high:g}x", {"budget": 0.5, "region": [low, high]})
        for low, high in REGIONS
    ],
    "capacity": [Variant("nce-plan", f"capacity={share:g}", {"capacity": share}) for share in (0.2, 0.4, 0.6, 0.8)],
    "capacity at half": [
        Variant("nce-plan", f"budget=0.5x, capacity={share:g}", {"budget": 0.5, "capacity": share})
        for share in (0.4, 0.8)
    ],
    "streams at half": [Variant("nce-plan", "budget=0.5x, streams=0", {"budget": 0.5, "streams": 0.0})],
    "published budget": [
        Variant("nce-plan", "MACs and parameters alone", {"limits": ["macs", "params"]}),
        Variant("nce-search", "MACs and parameters alone", {"limits": ["macs", "params"]}),
    ],
    "metric": [Variant("nce-plan", f"metric={name}", {"metric": name}) for name in ("fisher", "loss", "sqnr")],
}
"""Name -> variants."""
