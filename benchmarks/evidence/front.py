"""The README's tables of what a plan is worth: from the tables of the evidence, like their page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.evidence.records import OWN_WIDTHS, Run, read
from benchmarks.evidence.report import PAID, REFERENCE
from benchmarks.evidence.statistics import Summary, summarise


@dataclass(frozen=True)
class Front:
    """A table of the README: one network, and some of its rows."""

    network: str
    title: str
    names: Mapping[str, str]
    """Row -> how the README names it."""
    against: str
    """The row that the others are held against, seed by seed."""


FRONTS = {
    "budget table": Front(
        "ResNet-18, width 8, default quantizers",
        "ResNet-18, Fashion-MNIST",
        {
            "float": "float, as it is",
            REFERENCE: "2 bits, as it is",
            "multiplier [budget=0.5x]": "2 bits, one factor for all groups",
            "random [budget=0.5x]": "2 bits, a random plan",
            "nce-plan [budget=0.5x]": "2 bits, a plan of nce-fx",
        },
        "multiplier [budget=0.5x]",
    ),
    "equal cost table": Front(
        "MobileNetV2 with ImageNet's strides, 1/4",
        "MobileNetV2 with ImageNet's strides, digits",
        {
            REFERENCE: "2 bits, as it is",
            "uniform-longer": "2 bits, as it is, as much longer in float as a plan takes",
            "mixed": "1 to 4 bits a layer, as it is",
            "nce-plan": "2 bits, a plan of nce-fx",
            "nce-ends": "2 bits, a plan with `--end-bits plan`",
        },
        REFERENCE,
    ),
}
"""By the name of their place."""


def front_table(results: Path, front: Front) -> list[str]:
    """Return a table as Markdown: mean accuracy, and costs as ratios of those of uniform.

    A line under it says how the last row, the plan, stands to the one that it is held against.
    """
    runs = [*read(results / "evidence.csv", Run), *read(results / "ablations.csv", Run)]
    mine = [run for run in runs if (run.network, run.trained) == (front.network, OWN_WIDTHS)]
    by_row = {name: [run for run in mine if run.row == name] for name in front.names}
    found = {name: summarise(own, by_row[front.against]) for name, own in by_row.items() if own}
    lines = [f"| {front.title} | accuracy | {' | '.join(PAID.values())} | seeds |", "|---|--:|" + "--:|" * 5]
    for name, row in found.items():
        spread = f" ± {row.deviation:.2f}" if row.seeds > 1 else ""
        costs = " | ".join(_ratio(row, found[REFERENCE], quantity) for quantity in PAID)
        lines.append(f"| {front.names[name]} | {row.mean:.2f}{spread} % | {costs} | {row.seeds} |")
    plan = [*found.values()][-1]
    side = "above" if plan.difference > 0 else "below"
    told = f'The plan is {abs(plan.difference):.2f} points {side} "{front.names[front.against]}" (p = {plan.p:.3f}).'
    return [*lines, "", told]


def _ratio(row: Summary, base: Summary, quantity: str) -> str:
    ratio = getattr(row, quantity) / getattr(base, quantity)
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"
