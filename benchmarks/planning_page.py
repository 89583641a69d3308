"""Write docs/planning.md from the committed results: python -m benchmarks.planning_page

Every figure of the page comes from a file in benchmarks/results; the page says which command makes it.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

from benchmarks.controls import ARMS
from benchmarks.sensitivity import ASKED
from benchmarks.widening import ALL, fit

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "planning.md"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def loaded(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def metrics() -> str:
    """How every metric ranks layers and groups, and what it takes."""
    found = loaded("sensitivity")
    parts = []
    for network, accuracy in found["accuracy"].items():
        rows = [row for row in found["rows"] if row["network"] == network]
        kinds = ("layers", "weights", "activations", "groups")
        body = [
            [
                f"`{row['metric']}`",
                *(f"{row['against_loss'][kind]:.3f}" for kind in kinds),
                f"{row['against_kl']['layers']:.3f}",
                f"{row['forwards']:g}",
            ]
            for row in rows
        ]
        head = ("metric", *kinds, "layers, against KL", "forward passes")
        parts.append(f"{network}, {100 * accuracy:.2f} % in float:\n\n{table(head, body)}")
    good = ", ".join(f"`{name}`" for name in found["good_enough"]) or "none"
    parts.append(f"At {ASKED} or more over the layers of every network, cheapest first: {good}.")
    return "\n\n".join(parts)


def metric_costs() -> str:
    """The ratio to plain passes."""
    body = [
        [f"{row['network']}, {row['layers']} layers, `{row['metric']}`", row["against"], row["operations"], row["time"]]
        for row in loaded("sensitivity_cost")["rows"]
    ]
    return table(("metric", "against", "operations", "processor time"), body)


def before_retraining() -> str:
    """A group widened, quantized, not retrained."""
    rows = loaded("widening_noise")["rows"]
    ratios = rows[0]["ratios"][1:]

    def falls(values: list[float]) -> list[str]:
        return [f"{value / values[0]:.2f}" for value in values[1:]]

    body = [[f"`{r['group']}`", *falls(r["kl_group"]), r["exponent"], *falls(r["kl_network"])] for r in rows]
    head = ("group", *(f"group {x:g}x" for x in ratios), "exponent p", *(f"network {x:g}x" for x in ratios))
    middle = statistics.median(row["exponent"] for row in rows)
    return f"{table(head, body)}\n\nMedian exponent: {middle:.2f}, over {len(rows)} groups."


def after_retraining() -> str:
    """The exponent that fits losses after retraining."""
    rows = loaded("widening")["rows"]
    single, together = (
        [r for r in rows if keep(r["group"])] for keep in (lambda g: g != ALL, lambda g: g in ("", ALL))
    )
    measures = ("train_kl", "test_kl", "test_loss")
    body = []
    for name, part in (("one group at a time", single), ("all groups together", together)):
        for measure in measures:
            found = fit(part, measure)
            body.append([f"{name}, {measure}", len(part), f"{found['exponent']:.1f}", f"{found['explained']:.2f}"])
    seeds = len({row["seed"] for row in rows})
    return f"{table(('fit', 'networks', 'exponent p', 'explained'), body)}\n\nSeeds: {seeds}."


def gaps() -> str:
    """The worst gap and time over sensitivities, per network and budget."""
    rows = [row for row in loaded("planning")["rows"] if row["round_to"] == 1]
    body = [
        [
            row["network"],
            row["groups"],
            f"{row['ratio']}x of {row['budget'].replace(' ', ', ')}",
            f"{100 * row['worst_gap']:.3f} %",
            row["worst_seconds"],
        ]
        for row in rows
    ]
    return table(("network", "groups", "budget", "worst gap", "worst seconds"), body)


def controls() -> str:
    """The plan against its controls, over the seeds that have all of them."""
    rows = list(csv.DictReader((FOLDER / "controls.csv").read_text().splitlines()))
    parts = []
    for network in dict.fromkeys(row["network"] for row in rows):
        own = {(row["arm"], int(row["seed"])): row for row in rows if row["network"] == network}
        seeds = [s for s in sorted({seed for _, seed in own}) if all((arm, s) in own for arm in ("float", *ARMS))]
        if len(seeds) < 2:
            continue

        def of(arm: str, field: str, own: Any = own, seeds: list[int] = seeds) -> list[float]:
            return [float(own[arm, seed][field]) for seed in seeds]

        plan = of("plan", "accuracy")
        body = [_control(arm, of, plan) for arm in ("float", *ARMS)]
        head = ("network", "accuracy", "deviation", "plan is better by", "p", "most MACs", "most parameters")
        parts.append(f"{network}, {len(seeds)} seeds:\n\n{table(head, body)}")
    return "\n\n".join(parts)


def _control(arm: str, of: Callable[[str, str], list[float]], plan: list[float]) -> list[Any]:
    accuracy = of(arm, "accuracy")
    mean, deviation = 100 * statistics.mean(accuracy), 100 * statistics.stdev(accuracy)
    better, chance = "", ""
    if arm not in ("float", "plan"):
        better = f"{100 * statistics.mean(plan) - mean:+.2f}"
        chance = f"{float(ttest_rel(plan, accuracy).pvalue):.3f}"
    costs = [f"{int(max(of(arm, name))):,}" for name in ("macs", "params")]
    return [arm, f"{mean:.2f} %", f"{deviation:.2f}", better, chance, *costs]


def peer() -> str:
    """Ours / theirs."""
    body = [[row["network"], *row["macs"], *row["weights"]] for row in loaded("qonnx_cost")["rows"]]
    return table(("network", "MACs", "by qonnx", "weights", "by qonnx"), body)


def page() -> str:
    """The whole page."""
    return f"""# Where to spend channels: what was measured

This page is written by `python -m benchmarks.planning_page` from the files in `benchmarks/results`.

## Do plans help? `python -m benchmarks.controls`

2-bit weights and activations, first and last layer at 8 bits, shortcuts quantized; digits; retrained from the same
float network, and distilled from it, with one recipe. MACs are those of two images. The p-value is that of a paired
t-test over seeds, two-sided. Accuracies are those after the last epoch.

{controls()}

The uniform network is the original: a multiplier of 1. A plan may use fewer MACs and parameters than it, never more.
A difference whose p is above 0.05 is none: where no row is below it, plans from sensitivity alone do not help on
that network, whose stages were balanced by hand to begin with.

## Which metric predicts? `python -m benchmarks.sensitivity`

Spearman's correlation with the rise of the loss when one tensor is rounded to 2 bits, over 1,200 training images;
metrics are measured on 256. A backward pass counts as two forward passes. The `gauss_newton` rows were measured at its
former temperature of 2; at 1.5, its default since, the study has not been run to its end again.

{metrics()}

## What metrics cost: `python -m benchmarks.sensitivity_cost`

Gradient metrics against one plain forward and backward pass over the same batches; one-at-a-time metrics against as
many full forward passes as tensors are rounded. Processor time holds more than operations do: the search for each
activation's clip, and rounding itself, which on these small images take longer than the network does.

{metric_costs()}

## What widening buys

Before retraining (`python -m benchmarks.widening_noise`): ResNet-20, one group widened with the function kept, then
rounded to 2 bits. The divergence of the output (KL), as a ratio of that at the group's own width: of the group rounded
alone, and of the whole network. The model of noise would have it fall as ratio to the power -p with p above 0. It
does not: before retraining wider is not quieter. The likely cause: new channels are copies, which round alike, so
that their errors add up instead of averaging out. What widening buys shows only once they have been trained apart.

{before_retraining()}

After retraining (`python -m benchmarks.widening`): resnet8, one group at half, twice and three times its width. The
logarithm of the loss is fitted as a sum over groups of a coefficient times ratio to the power -p.

{after_retraining()}

The planner uses p = 1.

## How near the best: `python -m benchmarks.planning`

The gap between plan and certified bound, and processor seconds on one thread; the worst over four sets of
sensitivities.

{gaps()}

## Against qonnx's inference cost: `python -m benchmarks.qonnx_cost`

{peer()}
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
