"""Write docs/planning.md from the committed results: python -m benchmarks.planning_page

Every figure of the page comes from a file in benchmarks/results; the page says which command makes it.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from benchmarks.sensitivity import ASKED, good_enough
from benchmarks.sensitivity_cost import PASS, SHARE
from benchmarks.widening import ALL, fit

from benchmarks import pages
from benchmarks.evidence.records import OWN_WIDTHS, RESIZED, Run, read
from benchmarks.evidence.report import CERTAIN
from benchmarks.evidence.rows import ROWS
from benchmarks.evidence.statistics import summarise
from nce_fx.passes.planning.planner import NOISE_EXPONENT
from nce_fx.tasks.losses import TEMPERATURE

FOLDER = pages.RESULTS
RIVALS = ("multiplier", "uniform-longer", "random", "shuffled", "mixed")
SEEDS = 10
"""Asked of a claim."""
LEAST_ERROR = 0.001
"""Added to errors, since none at all has no logarithm."""
PAGE = pages.DOCS / "planning.md"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def loaded(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def foretold() -> str:
    """What the planner expects of its plans, and what came of them."""
    runs, lines = earlier(), loaded("foretold")
    body: list[list[Any]] = []
    for network, data in dict.fromkeys((line["network"], line["data"]) for line in lines):
        noise = statistics.mean(line["noise"] for line in lines if (line["network"], line["data"]) == (network, data))
        own = [[r for r in runs if (r.network, r.data, r.row) == (network, data, x)] for x in ("nce-plan", "uniform")]
        found = summarise(*own)
        measured = (f"{found.difference:+.2f}", f"{found.p:.3f}", found.pairs)
        body.append([f"{network}, {data}", f"{noise:.3f}", *measured])
    body.sort(key=lambda line: line[1])
    return table(("network, data", "predicted noise", "plan to uniform, points", "p", "seeds"), body)


def law_of_noise() -> tuple[str, str]:
    """How well predicted noise explains the error of retrained networks, at every exponent; and the best in words."""
    errors = {(r.network, r.data, r.row, r.seed): 1 - r.accuracy for r in earlier()}
    lines = loaded("foretold")
    networks = list(dict.fromkeys(line["network"] for line in lines))
    body, explained = [], {}
    for exponent in lines[0]["rows"]["nce-plan"]:
        cells = []
        for wanted in (*([network] for network in networks), networks):
            mine = [line for line in lines if line["network"] in wanted]
            points = [
                (math.log(noise[exponent]), math.log((errors[at] + LEAST_ERROR) / (errors[uniform] + LEAST_ERROR)))
                for line in mine
                for row, noise in line["rows"].items()
                for at in [(line["network"], line["data"], row, line["seed"])]
                for uniform in [(*at[:2], "uniform", line["seed"])]
                if at in errors and uniform in errors
            ]
            x, y = np.array(points).T
            slope = x @ y / (x @ x)
            explained[exponent] = 1 - float(np.sum((y - slope * x) ** 2) / np.sum(y**2))
            cells.append(f"{explained[exponent]:.3f}")
        body.append([f"p = {exponent}", *cells, f"{slope:.2f}", len(x)])
    best, ours = max(explained, key=explained.__getitem__), f"{NOISE_EXPONENT:g}"
    words = f"explains {explained[ours]:.3f} of the table above; the best of it, {best}, {explained[best]:.3f}"
    return table(("exponent", *networks, "all together", "slope, all together", "trained networks"), body), words


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
    former = [r for r in found["rows"] if r["metric"] == "gauss_newton" and r.get("temperature") != TEMPERATURE]
    if former:
        names = ", ".join(row["network"] for row in former)
        parts.append(f"The `gauss_newton` row of {names} is of its former temperature, 2: not measured again.")
    good = ", ".join(f"`{name}`" for name in good_enough(found["rows"])) or "none"
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


def own_law() -> str:
    """The planner's own law, loss in proportion to ratio ** -p, fitted where every group has the same ratio."""
    rows = [row for row in loaded("widening")["rows"] if row["group"] in ("", ALL)]
    logs = np.log([row["ratio"] for row in rows])
    body = []
    for measure in ("train_kl", "test_kl", "test_loss"):
        losses = np.log([row[measure] for row in rows])
        slope = float(np.polyfit(logs, losses, 1)[0])
        body.append([measure, *(f"{row[measure]:.4f}" for row in rows), f"{-slope:.2f}"])
    return table(("loss", *(f"{row['ratio']:g}x" for row in rows), "exponent p"), body)


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


def earlier() -> list[Run]:
    """The runs whose plans were resized after training and rounded at once, held to MACs and parameters alone."""
    return [run for run in read(FOLDER / "evidence.csv", Run) if run.trained == RESIZED]


def controls(trained: str) -> str:
    """The plan against its controls, on every network and data set whose runs, so trained, are in the evidence."""
    runs = [run for run in read(FOLDER / "evidence.csv", Run) if run.trained == trained]
    parts = []
    for network, data in dict.fromkeys((run.network, run.data) for run in runs):
        own = {row: [r for r in runs if (r.network, r.data, r.row) == (network, data, row)] for row in ROWS}
        plan = own["nce-plan"]
        rivals = {row: summarise(plan, own[row]) for row in RIVALS if own[row]}
        if len(plan) < 2 or not rivals:
            continue
        body = []
        for row, against in rivals.items():
            theirs = summarise(own[row], [])
            cells = [
                f"{theirs.mean:.2f} %",
                f"{against.difference:+.2f}",
                f"{against.p:.3f}" if against.pairs > 1 else "",
                against.pairs,
            ]
            body.append([row, *cells])
        beaten = [row for row, s in rivals.items() if s.pairs >= SEEDS and s.difference > 0 and s.p < CERTAIN]
        head = ("control", "its accuracy", "plan is better by", "p", "seeds of both")
        parts.append(
            f"{network}, {data}: plan {summarise(plan, []).mean:.2f} % over {len(plan)} seeds.\n\n"
            f"{table(head, body)}\n\n"
            f"Beaten at p < {CERTAIN:g} over {SEEDS} seeds: {', '.join(beaten) or 'none'}."
        )
    return "\n\n".join(parts) or "No network has two seeds yet."


def peer() -> str:
    """Ours / theirs."""
    body = [[row["network"], *row["macs"], *row["weights"]] for row in loaded("qonnx_cost")["rows"]]
    return table(("network", "MACs", "by qonnx", "weights", "by qonnx"), body)


def page() -> str:
    """The whole page."""
    law, exponent = law_of_noise()
    return f"""# Where to spend channels: what was measured

This page is written by `python -m benchmarks.planning_page` from the files in `benchmarks/results`.

## Do plans help? `python -m benchmarks.evidence`

The plan from sensitivity alone against its controls, at no more MACs, parameters, bit operations and weight bytes than
the original: `multiplier` (one factor for all groups; at a budget of 1.0x the original widths), `uniform-longer` (those
widths with the float training that a plan takes to find on top), `random` (a legal plan drawn at random that spends the
budget), `shuffled` (the planner on permuted sensitivities), `mixed` (the original widths, bits layer by layer). 2-bit
weights and activations; every network trained in float at its own widths first. How, and every row's cost, is in
[results.md](results.md), made from the same runs. Differences are of the same seed; p is of a two-sided paired t-test.

{controls(OWN_WIDTHS)}

### Earlier: resized after training, and rounded at once

These plans were held to MACs and parameters alone, and cost more than uniform in bit operations or weight bytes on most
networks: no evidence, but what follows below on predicted noise was found on them.

{controls(RESIZED)}

## When is a plan worth it? `python -m benchmarks.foretold`

A plan says what it expects before anything is retrained (`predicted noise` in the output of `nce-fx rewrite`): the
noise as a share of that at the original widths. Where the widths suit the images already, the planner finds little to
better, and little comes of it; a network whose widths were made for other images leaves it much. Accuracy as in
[results.md](results.md).

{foretold()}

## Which metric predicts? `python -m benchmarks.sensitivity`

Spearman's correlation with the rise of the loss when one tensor is rounded to 2 bits, over 1,200 training images;
metrics are measured on 256. A backward pass counts as two forward passes. `gauss_newton` is the default; its
temperature, {TEMPERATURE:g}, was chosen among 1.5, 2, 3 and 4 on a ResNet-20 of this very study. `fisher` is cheaper
where it is as good, but it needs labels, and fades where they are fitted exactly: on other trainings of the same
ResNet-20 it ranked layers much worse.

{metrics()}

## What metrics cost: `python -m benchmarks.sensitivity_cost`

Gradient metrics against one plain forward and backward pass over the same batches; one-at-a-time metrics against as
many full forward passes as tensors are rounded. Asked are at most {PASS:g} and {SHARE:g}. Processor time holds more
than operations do: copying the graph, the search for each activation's clip, rounding, and running node by node.
One-at-a-time metrics run the suffix from each tensor on, and nothing before it. In a chain of equally dear layers that
is a little more than half of all full passes, since the rounded layer itself runs again, too; less time than that they
take because the copy they work on has BatchNorm folded and its kernels channels last, where the graph gives the same.

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

The planner's own law is that noise is in proportion to ratio to the power -p. Where every group has the same ratio, p
is the slope of the loss over the ratio, both in logarithms:

{own_law()}

Over the networks of the evidence, retrained at 2 bits (`python -m benchmarks.foretold`): how much of the rise or fall
of the error against uniform's of the same seed is explained by the noise that the planner predicts for these widths,
both in logarithms, by a line through the origin. These are plans, random and shuffled widths, all groups moved at once.

{law}

What the planner computes with, and what stands behind it:

| constant | value | measured? |
| --- | --: | --- |
| sensitivity of each group | | on the user's own network and data, by the metric above |
| exponent p | {NOISE_EXPONENT:g} | {exponent} |
| least sensitivity, of the mean | 0.001 | assumed: no measurement is sharper |
| `min_width`, `max_width` | 0.25, 2 | assumed; options |
| `capacity`, the share of elasticity of cost in importance | 0 | an option; at 1 no width moves |

For one group at a time the least p that was tried fits best: what a single group's width does to the loss after
retraining is hardly more than the noise of a seed. So the law holds for networks as wholes; group by group it is not
shown.

## How near the best: `python -m benchmarks.planning`

The gap between plan and certified bound, and processor seconds on one thread; the worst over four sets of
sensitivities.

{gaps()}

## Against qonnx's inference cost: `python -m benchmarks.qonnx_cost`

{peer()}
"""


def write_page() -> None:
    """Write the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    write_page()
