"""The README's table of what a plan is worth at half of all costs: from the tables of the evidence, like their page."""

from __future__ import annotations

from pathlib import Path

from benchmarks.evidence.records import Run, read
from benchmarks.evidence.report import PAID, REFERENCE
from benchmarks.evidence.statistics import Summary, summarise

NETWORK = "ResNet-18, width 8, default quantizers"
NAMES = {
    "float": "float, as it is",
    REFERENCE: "2 bits, as it is",
    "multiplier [budget=0.5x]": "2 bits, one factor for all groups",
    "random [budget=0.5x]": "2 bits, a random plan",
    "nce-plan [budget=0.5x]": "2 bits, a plan of nce-fx",
}
"""Row -> how the README names it."""


def front_table(results: Path) -> list[str]:
    """Return the table as Markdown: mean accuracy, and costs as ratios of those of uniform."""
    runs = [*read(results / "evidence.csv", Run), *read(results / "ablations.csv", Run)]
    mine = {name: [run for run in runs if (run.network, run.row) == (NETWORK, name)] for name in NAMES}
    found = {name: summarise(own, mine["multiplier [budget=0.5x]"]) for name, own in mine.items() if own}
    lines = [f"| ResNet-18, Fashion-MNIST | accuracy | {' | '.join(PAID.values())} | seeds |", "|---|--:|" + "--:|" * 5]
    for name, row in found.items():
        spread = f" ± {row.deviation:.2f}" if row.seeds > 1 else ""
        costs = " | ".join(_ratio(row, found[REFERENCE], quantity) for quantity in PAID)
        lines.append(f"| {NAMES[name]} | {row.mean:.2f}{spread} % | {costs} | {row.seeds} |")
    return lines


def _ratio(row: Summary, base: Summary, quantity: str) -> str:
    ratio = getattr(row, quantity) / getattr(base, quantity)
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"
