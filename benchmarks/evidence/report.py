"""docs/results.md and its pictures, from the tables alone: no figure in it is typed by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.evidence.ablations import ABLATIONS
from benchmarks.evidence.pictures import accuracy_picture, widths_picture
from benchmarks.evidence.records import OWN_WIDTHS, RESIZED, Run, Widths, read
from benchmarks.evidence.rows import CHOICES, FLOAT, ROWS
from benchmarks.evidence.statistics import Summary, summarise
from benchmarks.evidence.study import RECIPES, Study, load_study
from nce_fx.report.tables import thousands

REFERENCE, LONGER = "uniform", "uniform-longer"
OURS = ("nce-plan", "nce-search", "nce-ends", "nce-surface", "plan-phases", "adapt", "slimmable")
CONTROLS = ("multiplier", "random", "shuffled", "mixed", "no-expand", "float-search")
CERTAIN, BACK = 0.05, 0.5
"""What is claimed: NCE is above uniform at such a p, and wins back such a share of what uniform loses to float."""
SOMETHING = 0.1
"""Points that uniform must lose to float for a share of them to mean something: a seed moves more."""
PAID = {"macs": "MACs", "params": "parameters", "bit_ops": "bit operations", "weight_bytes": "weight bytes"}
"""What no row may cost more of than uniform."""

HEAD = f"""# Results

Written by `python -m benchmarks.evidence` from `benchmarks/results/evidence.csv`, `ablations.csv` and `widths.csv`;
every line of those says which command makes it again and on what device. Every row is trained alike: in float at its
own widths, from weights that the same seed draws; then rounded, and trained at low precision, distilled from that float
network of its own; as many epochs of each stage. No row may cost more than uniform in MACs, parameters, bit operations
or weight bytes: the program refuses one that does. Differences are of the same seed, to uniform; p is of a two-sided
paired t-test. Costs are ratios to uniform's. Seconds are processor seconds of one core on a CPU, elapsed seconds on a
GPU; *search* is what finding the widths took, the float network that they were found on included.

| row | what it is |
|---|---|
| float | the network in float, at its own widths |
{chr(10).join(f"| {name} | {row.about} |" for name, row in CHOICES.items())}
"""
EARLIER = """# Earlier runs: resized after training, rounded at once

These are no evidence. What is claimed above does not count them. The trained float network was resized to the plan,
rounded straight after, and retrained; uniform began with the whole float network. And they were held to MACs and
parameters alone, as published: rows with a * cost more than uniform in bit operations or weight bytes in at least one
seed. ResNet-18's ablations and the float searches of the letters ran on the CPU of another machine, with PyTorch 2.11:
what takes 30 seconds elsewhere took 15 there. *search* does not hold the training of the float network here.
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
    (report.parent / "pictures").mkdir(parents=True, exist_ok=True)
    text = [HEAD]
    now = [run for run in runs if run.trained == OWN_WIDTHS]
    pairs = list(dict.fromkeys((run.network, run.data) for run in now))
    tables = {pair: summaries([run for run in now if (run.network, run.data) == pair]) for pair in pairs}
    of = {pair: _study_of(studies, [run for run in now if (run.network, run.data) == pair]) for pair in pairs}
    text.append(claims(tables, {pair: study.seeds for pair, study in of.items() if study is not None}))
    for pair in pairs:
        text += section(pair, of[pair], now, ablations, widths, report.parent, OWN_WIDTHS)
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
    before = [run for run in runs if run.trained == RESIZED]
    if before:
        text += [EARLIER, TRIED]
        for pair in dict.fromkeys((run.network, run.data) for run in before):
            text += section(pair, None, before, ablations, widths, report.parent, RESIZED)
    report.write_text("\n".join(text))


def section(
    pair: tuple[str, str],
    study: Study | None,
    runs: Sequence[Run],
    ablations: Sequence[Run],
    widths: Sequence[Widths],
    folder: Path,
    trained: str,
) -> list[str]:
    """Return what is known of one network on one data set, and write its pictures."""
    network, data = pair
    mine = [run for run in runs if (run.network, run.data) == pair]
    here = summaries(mine)
    changed = _ablated([r for r in ablations if r.trained == trained], [r for r in mine if r.row == REFERENCE], pair)
    text = [f"## {network} on {data}\n", settings(study, mine) + table(here, dearer(mine)) + missing(study, mine)]
    name = re.sub("[^a-z0-9]+", "-", f"{network}-{data}".lower())
    (folder / "pictures" / f"{name}-accuracy.svg").write_text(
        accuracy_picture(f"{network} on {data}: accuracy, %", [*here, *changed.get("budget", [])])
    )
    (folder / "pictures" / f"{name}-widths.svg").write_text(
        widths_picture(
            f"{network} on {data}: widths found, 1x is the original",
            _ratios([each for each in widths if each.trained == trained], pair),
        )
    )
    text.append(
        f"![accuracy against MACs and parameters](pictures/{name}-accuracy.svg)\n\n"
        f"![widths found](pictures/{name}-widths.svg)\n"
    )
    for ablation, found in changed.items():
        text.append(f"### Ablation: {ablation}\n\n{RIVALS}\n")
        text.append(table(found, beside=[row for row in here if row.row == REFERENCE]))
    return text


def summaries(runs: Sequence[Run]) -> list[Summary]:
    """Return the rows of one table, in the order of ``ROWS``."""
    by_row = {row: [run for run in runs if run.row == row] for row in ROWS}
    return [summarise(found, by_row[REFERENCE]) for found in by_row.values() if found]


def dearer(runs: Sequence[Run]) -> set[str]:
    """Return the rows that cost more than uniform of the same seed in anything that is paid."""
    uniform = {run.seed: run for run in runs if run.row == REFERENCE}
    return {
        run.row
        for run in runs
        if run.row != FLOAT and run.seed in uniform
        if any(getattr(run, name) > getattr(uniform[run.seed], name) for name in PAID)
    }


def table(rows: Sequence[Summary], marked: Collection[str] = (), beside: Sequence[Summary] = ()) -> str:
    """Return a Markdown table; ``marked`` rows get a star, costs are ratios to uniform's in it or ``beside`` it."""
    lines = [
        "| row | seeds | accuracy, % | sd | to uniform | p | MACs | parameters | bit operations | weight bytes"
        " | activation bytes | search, s | training, s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    base = next((row for row in (*rows, *beside) if row.row == REFERENCE), None)
    for row in rows:
        against = "" if row.row in (REFERENCE, FLOAT) else _signed(row.difference)
        certain = "" if row.row in (REFERENCE, FLOAT) else _p(row.p)
        cost = " | ".join(
            thousands(getattr(row, name)) if base is None or row is base else f"{_ratio(row, base, name)}x"
            for name in (*PAID, "activation_bytes")
        )
        lines.append(
            f"| {row.row}{' *' * (row.row in marked)} | {row.seeds} | {row.mean:.2f} | {_number(row.deviation)}"
            f" | {against} | {certain} | {cost} | {row.search_seconds:.1f} | {row.train_seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _ratio(row: Summary, base: Summary, name: str) -> str:
    return f"{getattr(row, name) / getattr(base, name):.2f}"


def claims(tables: dict[tuple[str, str], list[Summary]], seeds: dict[tuple[str, str], int]) -> str:
    """Return what is claimed, and for every network and data set whether it holds over the seeds it asks for."""
    lines = [
        "## What is claimed, and what holds\n",
        f"The best NCE row is above uniform at p < {CERTAIN:g}, wins back at least {BACK:g} of what uniform loses to"
        " float, and is above every control and above uniform trained longer in the mean.\n",
        "| network, data | uniform to float | best NCE row | to uniform | p | won back | above uniform, certainly |"
        " wins back enough | uniform-longer, to uniform | best control, to uniform | above all |",
        "|---|--:|---|--:|--:|--:|---|---|--:|---|---|",
    ]
    for (network, data), rows in tables.items():
        by_row = {row.row: row for row in rows}
        # Of those with the most seeds: the best of rows with one seed has had luck.
        candidates = [by_row[row] for row in OURS if row in by_row]
        most = max((row.pairs for row in candidates), default=0)
        ours = max((row for row in candidates if row.pairs == most), key=lambda row: row.difference, default=None)
        if ours is None or REFERENCE not in by_row or FLOAT not in by_row:
            continue
        lost = by_row[FLOAT].difference
        back = ours.difference / lost if lost > SOMETHING else math.nan
        controls = [by_row[row] for row in CONTROLS if row in by_row]
        best = max(controls, key=lambda row: row.difference, default=None)
        longer = by_row.get(LONGER)
        # A verdict before all seeds are in would be one that was waited for.
        wanted = seeds.get((network, data), ours.pairs)
        wait = f"open: {ours.pairs} of {wanted} seeds" if ours.pairs < wanted else ""
        rivals = [*controls, *([longer] if longer else [])]
        # One factor for all groups is uniform's own run, whether or not its row is there.
        missing = [row for row in (LONGER, *CONTROLS) if row not in by_row]
        ahead = ours.difference > max([0.0, *(row.difference for row in rivals)])
        above = "so far" if ahead and missing else _yes(ahead)
        lines.append(
            f"| {network}, {data} | {_signed(-lost)} | {ours.row} | {_signed(ours.difference)} | {_p(ours.p)}"
            f" | {_number(back)} | {wait or _yes(ours.difference > 0 and ours.p < CERTAIN)}"
            f" | {wait or ('nothing is lost' if math.isnan(back) else _yes(back >= BACK))}"
            f" | {_signed(longer.difference) if longer else 'not run'}"
            f" | {f'{best.row}, {_signed(best.difference)}' if best else 'not run'}"
            f" | {wait or above + (f' (not run: {chr(44).join(missing)})' if missing else '')} |"
        )
    if len(lines) == 4:
        lines.append("| no run of today's procedure is in the tables | | | | | | | | | | |")
    return "\n".join(lines) + "\n"


def settings(study: Study | None, runs: Sequence[Run]) -> str:
    """Return how the runs of a table were made, in words."""
    devices = " and ".join(sorted({run.device for run in runs}))
    if study is None:
        return (
            f"Device: {devices}. Made with other settings than those of any file in `benchmarks/recipes/`; see the"
            " column `command`.\n\n"
        )
    spec, training, teacher = study.quantizing(), study.retraining(0), study.float_training(0)
    ends = "float" if spec.first_last_bits is None else f"{spec.first_last_bits} bits"
    begin = "the trained float network" if study.start == "float" else "the untrained network"
    falling = ", falling" if training.distill_falls else ""
    distillation = f"a = {training.distill_alpha:g}{falling}, T = {training.distill_temperature:g}"
    taught = f"distilled from its own float network ({distillation})"
    return (
        f"{study.about} Recipe: `benchmarks/recipes/{study.name}.json`. Device: {devices}.\n\n"
        f"- {spec.weight_bits}-bit weights ({spec.weight}) and {spec.activation_bits}-bit activations"
        f" ({spec.activation}); first and last layer: {ends}; shortcuts: {spec.shortcuts}.\n"
        f"- In float, at its own widths: {teacher.epochs} epochs, batch {teacher.batch_size}, learning rate"
        f" {teacher.learning_rate:g}.\n"
        f"- At low precision: {training.epochs} epochs, batch {training.batch_size}, learning rate"
        f" {training.learning_rate:g}, from {begin}, {taught if study.distill else 'without distillation'}.\n\n"
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
    return next((s for s in studies if runs and all(run.version.endswith(s.digest()) for run in runs)), None)


def _ablated(runs: Sequence[Run], plain: Sequence[Run], pair: tuple[str, str]) -> dict[str, list[Summary]]:
    """Return the summaries of one network and data set's ablations."""
    found: dict[str, list[Summary]] = {}
    mine = [run for run in runs if (run.network, run.data) == pair]
    for ablation, variants in ABLATIONS.items():
        for variant in variants:
            ours = [run for run in mine if run.row == variant.name]
            # Of "budget=0.5x, capacity=0.4" what has half of the budget too.
            labels = variant.label, variant.label.partition(", ")[0]
            rivals = {f"{rival} [{label}]" for rival in (REFERENCE, "multiplier") for label in labels}
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
