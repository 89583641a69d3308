"""docs/results.md and its pictures, from the tables alone: no figure in it is typed by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence.ablations import ABLATIONS
from benchmarks.evidence.pictures import accuracy_picture, widths_picture
from benchmarks.evidence.records import Run, Widths, read
from benchmarks.evidence.rows import FLOAT, ROWS
from benchmarks.evidence.statistics import Summary, summarise
from benchmarks.evidence.study import RECIPES, Study, load_study
from nce_fx.report.tables import thousands

REFERENCE = "uniform"
OURS = ("nce-plan", "nce-search")
CONTROLS = ("multiplier", "random", "shuffled", "no-expand", "float-search")
GAIN, CERTAIN, NEAR, SHARE = 1.0, 0.05, 0.3, 0.01
"""What is claimed: NCE gains so many points at such a p; the plan is so near the search at such a share of its cost."""

HEAD = """# Results

Written by `python -m benchmarks.evidence` from `benchmarks/results/evidence.csv`, `ablations.csv` and `widths.csv`;
every line of those says which command makes it again and on what device. Differences are of the same seed, to uniform
2-bit: same network, data, recipe, epochs, start and teacher; p is of a two-sided paired t-test. No row may cost more
MACs or more parameters than uniform; the program stops where one does. Seconds are processor seconds of one core on a
CPU, elapsed seconds on a GPU; *search* is what finding the widths took once the float network was trained. ResNet-18's
ablations and the float searches of the letters ran on the CPU of another machine, with PyTorch 2.11: what takes 30
seconds elsewhere took 15 there.

| row | what it is |
|---|---|
| float | the network in float: the teacher, and an upper bound |
| uniform | 2 bits, widths as given |
| nce-plan | sensitivity and solver, no search (`nce-fx rewrite`) |
| nce-search | widths learned on the quantized network, expanding (`nce-fx search`) |
| multiplier | one factor for all groups, the greatest that the budget allows; at 1.0x it is 1: uniform's own run |
| random | random ratios from 1/2 to 2, scaled and filled up until the budget is spent |
| shuffled | nce-plan with the sensitivities permuted among the groups |
| no-expand | the search without expansion |
| float-search | the search on the float network, quantized afterwards |
"""
RIVALS = (
    """Differences are to the variant's own uniform (or multiplier) network where it has one, else to uniform above."""
)


TRIED = """
Tried on these networks: narrower and wider ones (on ResNet-8 at width 4, an earlier study in the history at 08a55c3,
plan, uniform, random and shuffled plans did not differ); the metric that predicts best (see
[planning.md](planning.md)); keeping the channels that carry most where narrowing had kept them by weights that say
nothing before a BatchNorm; starting from scratch, where nothing trained is lost (the ablation *start*, two seeds).
Also, in runs that are not in the tables: the root of the sensitivities instead of them, over ten seeds no better on
MobileNetV2 and over eight worse on ResNet-20; all sensitivities equal, over five no better than uniform; and
sensitivities fitted to the accuracies of 30 networks of the table of MobileNetV2, whose plans were worse than uniform
in eight of ten seeds: far moves cost more than near ones promise.

What we think holds the plan back here: there is little to gain. Where widths suit the images already, the planner
itself foretells it, seconds after the float network is trained ([planning.md](planning.md), *When is a plan worth
it?*), and what it foretells is about what comes. Besides, a plan starts from a damaged network: what it narrows loses
trained channels, while uniform starts from the whole float network, and is distilled from it; groups of two channels
move in steps of a half; and the data is small: a few test images make a point, and the same network trained from
another seed differs by more than that.

The rendered letters took several tries. With covers, more clutter and less contrast, ResNet-20 at its full width
reached 90.5 % and lost 0.3 points at 2 bits, and narrow networks did not converge within the epochs that one CPU core
affords. Less light and little noise: 71.0 and 69.5 % (width 8); a hundred made-up signs without clutter: 99.7 and
99.5 %; with clutter, covers and pose: 1 %. What is measured now is a quarter of the width, without covers and with
three strokes of clutter; without any it is 99.1 and 97.7 %.
"""


def write_report(results: Path, report: Path) -> None:
    """Write the report and its pictures, which go to ``pictures/`` beside it."""
    runs, ablations = read(results / "evidence.csv", Run), read(results / "ablations.csv", Run)
    widths = read(results / "widths.csv", Widths)
    studies = [load_study(str(path)) for path in sorted(RECIPES.glob("*.json"))]
    pictures = report.parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    text = [HEAD]
    pairs = list(dict.fromkeys((run.network, run.data) for run in runs))
    tables = {pair: summaries([run for run in runs if (run.network, run.data) == pair]) for pair in pairs}
    of = {pair: _study_of(studies, [run for run in runs if (run.network, run.data) == pair]) for pair in pairs}
    text.append(claims(tables, {pair: study.seeds for pair, study in of.items() if study is not None}))
    text.append(shortfalls(tables))
    for pair in pairs:
        network, data = pair
        here = tables[pair]
        text.append(f"## {network} on {data}\n")
        mine = [run for run in runs if (run.network, run.data) == pair]
        changed = _ablated(ablations, [run for run in mine if run.row == REFERENCE], pair)
        text.append(settings(of[pair], mine) + table(here) + missing(of[pair], mine))
        name = re.sub("[^a-z0-9]+", "-", f"{network}-{data}".lower())
        (pictures / f"{name}-accuracy.svg").write_text(
            accuracy_picture(f"{network} on {data}: accuracy, %", [*here, *changed.get("budget", [])])
        )
        (pictures / f"{name}-widths.svg").write_text(
            widths_picture(f"{network} on {data}: widths found, 1x is the original", _ratios(widths, pair))
        )
        text.append(
            f"![accuracy against MACs and parameters](pictures/{name}-accuracy.svg)\n\n"
            f"![widths found](pictures/{name}-widths.svg)\n"
        )
        for ablation, found in changed.items():
            text.append(f"### Ablation: {ablation}\n\n{RIVALS}\n")
            text.append(table(found))
    there = {study.name for study in of.values() if study is not None}
    lines = [
        f"- `python -m benchmarks.evidence {study.name}`"
        + (f", with `--data {study.data}`" if study.data.endswith(":DIR") else "")
        + f": {study.network}. {study.about}"
        for study in studies
        if study.name not in there
    ]
    if lines:
        text.append("## Studies ready to run, of which no run is in the tables\n\n" + "\n".join(lines) + "\n")
    report.write_text("\n".join(text))


def summaries(runs: Sequence[Run]) -> list[Summary]:
    """Return the rows of one table, in the order of ``ROWS``."""
    by_row = {row: [run for run in runs if run.row == row] for row in ROWS}
    return [summarise(found, by_row[REFERENCE]) for found in by_row.values() if found]


def table(rows: Sequence[Summary]) -> str:
    """Return a Markdown table."""
    lines = [
        "| row | seeds | accuracy, % | sd | to uniform | p | MACs | parameters | search, s | training, s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        against = "" if row.row in (REFERENCE, FLOAT) else _signed(row.difference)
        certain = "" if row.row in (REFERENCE, FLOAT) else _p(row.p)
        lines.append(
            f"| {row.row} | {row.seeds} | {row.mean:.2f} | {_number(row.deviation)} | {against} | {certain}"
            f" | {thousands(row.macs)} | {thousands(row.params)} | {row.search_seconds:.1f} | {row.train_seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


def claims(tables: dict[tuple[str, str], list[Summary]], seeds: dict[tuple[str, str], int]) -> str:
    """Return what is claimed, and for every network and data set whether it holds over the seeds it asks for."""
    lines = [
        "## What is claimed, and what holds\n",
        f"NCE (search or plan) beats uniform 2-bit by at least {GAIN:g} point at p < {CERTAIN:g}, and every control in"
        f" the mean; the plan is within {NEAR:g} points of the search at {SHARE:g} of its cost.\n",
        "| network, data | best NCE row | to uniform | p | gain holds | best control | beats every control |"
        " plan minus search | cost, plan / search |",
        "|---|---|--:|--:|---|---|---|--:|--:|",
    ]
    for (network, data), rows in tables.items():
        by_row = {row.row: row for row in rows}
        ours = max((by_row[row] for row in OURS if row in by_row), key=lambda row: row.mean, default=None)
        if ours is None or REFERENCE not in by_row:
            continue
        control = max((by_row[row] for row in CONTROLS if row in by_row), key=lambda row: row.mean, default=None)
        wanted = seeds.get((network, data), ours.pairs)
        # A verdict before all seeds are in would be one that was waited for.
        gain = _yes(ours.difference >= GAIN and ours.p < CERTAIN)
        verdict = gain if ours.pairs >= wanted else f"open: {ours.pairs} of {wanted} seeds"
        there = [row for row in CONTROLS if row in by_row and by_row[row].seeds >= ours.pairs]
        beats = _yes(all(ours.mean > by_row[row].mean for row in there))
        beats = beats if len(there) == len(CONTROLS) else f"open: {len(there)} of {len(CONTROLS)} controls"
        both = [by_row[row] for row in OURS if row in by_row]
        apart = share = "not run"
        if len(both) == 2:
            plan, search = both
            apart, share = _signed(plan.mean - search.mean), f"{plan.search_seconds / search.search_seconds:.3f}"
        lines.append(
            f"| {network}, {data} | {ours.row} | {_signed(ours.difference)} | {_p(ours.p)} | {verdict}"
            f" | {control.row if control else 'not run'}"
            f" | {beats} | {apart} | {share} |"
        )
    return "\n".join(lines) + "\n"


def shortfalls(tables: dict[tuple[str, str], list[Summary]]) -> str:
    """Return by how much each claim is missed, what was tried, and what may hold it back; or nothing."""
    lines = []
    for (network, data), rows in tables.items():
        by_row = {row.row: row for row in rows}
        ours = max((by_row[row] for row in OURS if row in by_row), key=lambda row: row.mean, default=None)
        if ours is not None and REFERENCE in by_row and not (ours.difference >= GAIN and ours.p < CERTAIN):
            gap = f", where float is {by_row[FLOAT].mean - by_row[REFERENCE].mean:.2f} above" if FLOAT in by_row else ""
            missing = GAIN - ours.difference
            short = f"{missing:.2f} short of {GAIN:g}" if missing > 0 else f"at p {ours.p:.3f}, not below {CERTAIN:g}"
            lines.append(
                f"- {network}, {data}: {ours.row} is {_signed(ours.difference)} points to uniform, {ours.pairs} seeds,"
                f" {short}{gap}."
            )
        if all(row in by_row for row in OURS):
            plan, search = (by_row[row] for row in OURS)
            share = plan.search_seconds / search.search_seconds
            if share > SHARE:
                lines.append(
                    f"- {network}, {data}: finding the plan costs {share:.3f} of the search, not {SHARE:g}:"
                    f" {plan.search_seconds:.1f} of {search.search_seconds:.1f} seconds."
                )
    return "## Where it falls short\n\n" + "\n".join(lines) + "\n" + TRIED if lines else ""


def settings(study: Study | None, runs: Sequence[Run]) -> str:
    """Return how the runs of a table were made, in words."""
    devices = " and ".join(sorted({run.device for run in runs}))
    if study is None:
        return (
            f"Device: {devices}. Made with other settings than those of any file in `benchmarks/recipes/`; see the"
            " column `command`.\n\n"
        )
    spec, training, teacher, searching = (
        study.quantizing(),
        study.retraining(0),
        study.float_training(0),
        study.searching(0),
    )
    ends = "float" if spec.first_last_bits is None else f"{spec.first_last_bits} bits"
    begin = "the trained float network, resized" if study.start == "float" else "the untrained network, resized"
    taught = f"distilled from it (a = {training.distill_alpha:g}, T = {training.distill_temperature:g})"
    return (
        f"{study.about} Recipe: `benchmarks/recipes/{study.name}.json`. Device: {devices}.\n\n"
        f"- {spec.weight_bits}-bit weights ({spec.weight}) and {spec.activation_bits}-bit activations"
        f" ({spec.activation}); first and last layer: {ends}; shortcuts: {spec.shortcuts}.\n"
        f"- Float: {teacher.epochs} epochs, batch {teacher.batch_size}, learning rate {teacher.learning_rate:g}.\n"
        f"- Every 2-bit row: {training.epochs} epochs, batch {training.batch_size}, learning rate"
        f" {training.learning_rate:g}, from {begin}, {taught if study.distill else 'without distillation'}.\n"
        f"- Search: {searching.epochs} epochs, batch {searching.batch_size}, T = {searching.threshold:g},"
        f" lambda = {searching.lambda_flop:g} and {searching.lambda_param:g}.\n\n"
    )


def missing(study: Study | None, runs: Sequence[Run]) -> str:
    """Return what has not been run, and the command that goes on."""
    if study is None:
        return ""
    there = {(run.row, run.seed) for run in runs}
    lacking = {row: sum((row, seed) not in there for seed in range(study.seeds)) for row in ROWS}
    parts = [f"{row} {count}" for row, count in lacking.items() if count]
    if not parts:
        return ""
    return (
        f"\nNot run yet, of {study.seeds} seeds: {', '.join(parts)}."
        f" `python -m benchmarks.evidence {study.name}` goes on.\n"
    )


def _study_of(studies: Sequence[Study], runs: Sequence[Run]) -> Study | None:
    """Return the study that made these runs, by its digest."""
    return next((s for s in studies if all(run.version.endswith(s.digest()) for run in runs)), None)


def _ablated(runs: Sequence[Run], plain: Sequence[Run], pair: tuple[str, str]) -> dict[str, list[Summary]]:
    """Return the summaries of one network and data set's ablations."""
    found: dict[str, list[Summary]] = {}
    mine = [run for run in runs if (run.network, run.data) == pair]
    for ablation, variants in ABLATIONS.items():
        for variant in variants:
            ours = [run for run in mine if run.row == variant.name]
            rivals = [variant.name.replace(variant.row, rival, 1) for rival in (REFERENCE, "multiplier")]
            against = [run for run in mine if run.row in rivals] or plain
            if ours:
                found.setdefault(ablation, []).append(summarise(ours, against))
    return found


def _ratios(widths: Sequence[Widths], pair: tuple[str, str]) -> dict[str, dict[str, list[float]]]:
    """Row -> group -> ratio of every seed; groups that never change are left out."""
    mine = [each for each in widths if (each.network, each.data) == pair and "[" not in each.row]
    moved = [name for name in _groups(mine) if any(len(set(each.pairs()[name])) > 1 for each in mine)]
    rows: dict[str, dict[str, list[float]]] = {}
    for row in ROWS:
        found = [each.pairs() for each in mine if each.row == row]
        if found and row not in (FLOAT, REFERENCE, "multiplier"):
            rows[row] = {name: [pairs[name][1] / pairs[name][0] for pairs in found] for name in moved}
    return rows if moved else {}


def _groups(widths: Sequence[Widths]) -> list[str]:
    return list(widths[0].pairs()) if widths else []


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.2f}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
