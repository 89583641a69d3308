"""docs/coverage.md, written from what was measured: no figure and no reason in it is typed by hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from benchmarks import pages

Result = Mapping[str, Any]

DOCUMENT = pages.DOCS / "coverage.md"
SPEED = pages.RESULTS / "channels_speed.json"
GOALS = {"torchvision": (1.0, 0.97), "timm": (0.97, 0.9), "transformers": (0.97, 0.9)}
"""Least shares of convs and of linears in unpinned groups."""
_APART = re.compile(r"rcnn|ssd|fcos|retinanet|raft|frames of")
"""Models of torchvision that are counted apart: detection, optical flow, and long clips of what is counted already."""


def write_table(results: Mapping[str, Result]) -> None:
    """Write the document from results by ``corpus/model``."""
    apart = {key: result for key, result in results.items() if key.startswith("torchvision") and _APART.search(key)}
    counted = {key: result for key, result in results.items() if key not in apart}
    text = [_HEAD, *_totals(counted)]
    if SPEED.exists():
        text += _speed(json.loads(SPEED.read_text()))
    text += _laws_broken(counted)
    for corpus in GOALS:
        text += ["", f"## {corpus}", "", *_rows({k: r for k, r in counted.items() if k.startswith(corpus + "/")})]
    text += ["", "## Detection, optical flow, long clips", "", _APART_HEAD, "", *_rows(apart)]
    text += [
        "",
        *(
            f"- **{_name(key)}**: {_safe(r.get('trouble', r['status']))}"
            for key, r in apart.items()
            if r["status"] != "ok"
        ),
    ]
    text += ["", "## What is left, one by one", "", _LEFT_HEAD, *_left(results)]
    DOCUMENT.write_text("\n".join(text) + "\n")


_HEAD = """# Coverage

Which layers of public vision models can change their width, and whether the laws hold there. Written by
`python -m benchmarks.coverage --table` from `benchmarks/results/coverage.json`, which `python -m benchmarks.coverage`
measures (torchvision, timm and transformers installed; nothing is downloaded, every model starts from random weights).

A layer is *widenable* when its output channels are in an unpinned group. Layers that make an output of the model, whose
shape is the user's, do not count, and neither do layers that the graph does not use. Checked on every model:
widening keeps the outputs (law 1, three random plans, each unpinned group wider with probability 1/2 by 1 to 2
times), new channels live after one step (law 2, up to 50 million parameters), narrowing is removal (law 3, the same
models), every layer is in one group or says why not (law 5), and costs are exact (law 6). *Difference* is the largest
one of the outputs over the three plans, relative to the largest output, in float64 up to 150 million parameters and
float32 beyond; its bound is 1e-9 or 1e-4. *Seconds* are processor seconds of trace + analysis + one resize; *memory*
is what building, tracing and analyzing add at most, beside the parameters' own size, in MiB.
"""
_APART_HEAD = """Whole detectors pick boxes by their values, which no graph holds; their layers are measured as
*backbone and heads*, with the picking left out. What a whole one is refused with stands below the table. Video models
are measured on clips of 8 frames of 64 x 64; the MViTs again on those that they are built for, where a step of training
(law 2) does not fit into memory."""
_LEFT_HEAD = "Layers that are in no unpinned group, by model and reason; the first of each kind is named."


def _name(key: str) -> str:
    return key.partition("/")[2]


def _safe(text: str) -> str:
    """Fit a message into a table or a list: one line, no paths of this machine."""
    line = re.sub(r"\S*/(?:site-packages|lib/python[\d.]+)/", "", " ".join(text.split()))
    return line.replace("|", "\\|").replace("<", "&lt;")[:400]


def _sums(results: Mapping[str, Result], kind: str) -> tuple[int, int]:
    pairs = [result[kind] for result in results.values() if kind in result]
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


def _share(free: int, count: int) -> str:
    return f"{free:,} of {count:,} ({100 * free / count:.1f} %)" if count else "none"


def _totals(counted: Mapping[str, Result]) -> list[str]:
    lines = [
        "| corpus | models | traced | all laws hold | convs widenable | goal | linears widenable | goal |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for corpus, goals in GOALS.items():
        own = {key: result for key, result in counted.items() if key.startswith(corpus + "/")}
        traced = sum("traced" in result for result in own.values())
        good = sum(result["status"] == "ok" for result in own.values())
        shares = [_share(*_sums(own, kind)) for kind in ("convs", "linears")]
        lines.append(
            f"| {corpus} | {len(own)} | {traced} | {good} "
            f"| {shares[0]} | {goals[0]:.0%} | {shares[1]} | {goals[1]:.0%} |"
        )
    ways = Counter(str(result["traced"]).split(":")[0] for result in counted.values() if "traced" in result)
    spread = ", ".join(f"{way} {count}" for way, count in ways.most_common())
    states = Counter(str(result.get("revision", "an earlier state")) for result in counted.values())
    measured = ", ".join(f"{count} at {state}" for state, count in states.most_common())
    return [*lines, "", f"Ways of tracing: {spread}. Measured: {measured}."]


def _speed(speed: Mapping[str, Any]) -> list[str]:
    lines = [
        "",
        "## Where the time goes",
        "",
        f"`python -m benchmarks.channels_speed`, {speed['machine']}; medians.",
        "",
    ]
    lines += [
        "| model | trace | analysis | resize of every group | together | Torch-Pruning | ratio | bound |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in speed["against_torch_pruning"].items():
        times = " | ".join(f"{row[k]:.3f} s" for k in ("trace", "analyze", "resize", "seconds", "torch_pruning"))
        lines.append(f"| {name} | {times} | {row['ratio']:.2f} | {row['bound']} |")
    if "parts" in speed:
        lines += ["", "The same by part, in milliseconds:", ""]
        lines += [f"| part | {' | '.join(speed['parts'])} |", f"|---|{'--:|' * len(speed['parts'])}"]
        for part in next(iter(speed["parts"].values())):
            lines.append(f"| {part} | {' | '.join(str(row[part]) for row in speed['parts'].values())} |")
    growth = speed["growth"]
    sides = ", ".join(f"{side}: {seconds} s" for side, seconds in speed["image_side"].items())
    lines += ["", f"A chain of residual blocks of {growth['nodes'][0]:,} to {growth['nodes'][-1]:,} nodes takes"]
    lines[-1] += f" nodes^{growth['exponent']} (bound {growth['bound']}). ResNet-50 by the side of its images: {sides}."
    memory = [f"{name} {row['added']} of {row['bound']}" for name, row in speed["memory"].items()]
    if memory:
        lines += ["", f"Memory that all of it adds, MiB, and the bound: {', '.join(memory)}."]
    return lines


def _laws_broken(counted: Mapping[str, Result]) -> list[str]:
    broken = {key: result for key, result in counted.items() if result["status"] != "ok"}
    lines = ["", "## Where a law does not hold, or a model was not finished", ""]
    lines += [f"- **{key}**: {r['status']}. {_safe(r.get('trouble', ''))}" for key, r in broken.items()] or ["Nowhere."]
    blind = [f"{key} ({len(result['blind'])})" for key, result in counted.items() if result.get("blind")]
    if blind:
        lines += ["", f"Weights that the outputs do not feel, so that law 1 says nothing of them: {', '.join(blind)}."]
    return lines if broken or blind else []


def _rows(results: Mapping[str, Result]) -> list[str]:
    lines = [
        "| model | convs | linears | difference | seconds | memory | traced | laws |",
        "|---|--:|--:|--:|--:|--:|---|---|",
    ]
    for key, result in results.items():
        layers = ["/".join(map(str, result[kind])) if kind in result else "" for kind in ("convs", "linears")]
        worst = f"{max(result['errors']):.0e}" if result.get("errors") else ""
        seconds = ""
        if "seconds" in result:
            seconds = f"{sum(result['seconds']) + result.get('resize_seconds', 0.0):.1f}"
        memory = "{} / {}".format(*result["memory"]) if "memory" in result else ""
        way = _safe(str(result.get("traced", "")))[:40]
        lines.append(f"| {_name(key)} | {' | '.join([*layers, worst, seconds, memory, way, result['status']])} |")
    return lines


def _left(results: Mapping[str, Result]) -> list[str]:
    lines = []
    for key, result in results.items():
        reasons: dict[str, list[str]] = {}
        for name, _, reason in result.get("pinned", ()):
            short = re.sub(r", at .*", "", reason)
            reasons.setdefault(re.sub(r"\d+", "N", short), []).append(f"`{name}`: {_safe(reason)}")
        for found in reasons.values():
            more = f" ({len(found)} layers for this reason)" if len(found) > 1 else ""
            lines.append(f"- {key}, {found[0]}{more}")
    return lines
