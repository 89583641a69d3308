"""docs/second_corpus.md, written from what was measured: no figure and no reason in it is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.coverage_table import Result, _left, _rows, _safe, _share, _sums

from benchmarks import pages

DOCUMENT = pages.DOCS / "second_corpus.md"
GOALS = {"convs": 0.98, "linears": 0.94}
"""Least shares in unpinned groups."""

_HEAD = """# A second corpus

Libraries that nothing was tuned to: text, speech, detection, segmentation, diffusion, restoration, medicine, tables.
Written by `python -m benchmarks.coverage --table` from `benchmarks/results/second_corpus.json`, which `python -m
benchmarks.coverage --corpus second` measures, one model after the other: it goes on where it stopped. Nothing is
downloaded: models are built from small configurations with random weights. What is asked of each is as in
[Coverage](coverage.md); of these models of laws 0 (the graph is the model at other values and batches), 4 (shapes,
names, state, gradients), 7 (budgets of every quantity), 8 (the same plan again) and 10 (saved and loaded) too, these
and law 2 up to 5 million parameters. `--quick` asks laws 1, 5 and 6 alone, on one plan.
*Before* is the same model measured before what this corpus showed was mended
(`benchmarks/results/second_corpus_before.json`). What a library computes in float32 inside, whatever it is given, is
held to float32's bound; what makes more of a rounding than its bound allows, and cannot be calmed, to as much more.
A kernel that is written anew from others at every call (20 of SPAN's) holds nothing of its own and is not counted.
*Whole way*: how many models came through resize, quantize, two steps of training, save, load
and the files `int2`, `integer` and `qonnx` with nothing refused, of those that were taken on it (`--whole-way`).
"""


def write_table(results: Mapping[str, Result], before: Mapping[str, Result]) -> None:
    """Write the document from results by ``library/model``, now and before."""
    both = {key: before[key] for key in results if key in before}
    libraries: dict[str, dict[str, Result]] = {}
    for key, result in results.items():
        libraries.setdefault(key.partition("/")[0], {})[key] = result
    text = [_HEAD, *_totals(libraries, results, both)]
    broken = {key: result for key, result in results.items() if result["status"] != "ok"}
    text += ["", "## Where a law does not hold, or a model was not finished", ""]
    text += [f"- **{key}**: {r['status']}. {_safe(r.get('trouble', ''))}" for key, r in broken.items()] or ["Nowhere."]
    for library, own in libraries.items():
        text += ["", f"## {library}", "", *_rows(own)]
    text += ["", "## Where the whole way ends", "", *_ends(results)]
    text += ["", "## What is left, one by one", "", *_left(results)]
    DOCUMENT.write_text("\n".join(text) + "\n")


def _totals(
    libraries: Mapping[str, Mapping[str, Result]], results: Mapping[str, Result], before: Mapping[str, Result]
) -> list[str]:
    quick = sum(set(result.get("laws", ())) == {"5"} for result in results.values())
    every = [result for result in results.values() if {"0", "3", "4", "7", "8", "10"} <= set(result.get("laws", ()))]
    held = sum(result["status"] == "ok" for result in every)
    lines = [
        "| library | models | traced | all laws asked hold | convs widenable | linears widenable | whole way |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(_line(library, own) for library, own in libraries.items()),
        _line("**all**", results),
        "",
        f"Goals: {GOALS['convs']:.0%} of convs, {GOALS['linears']:.0%} of linears. {len(every)} were asked all laws",
        f"that are named above, which hold for {held}; {quick} were measured quickly, at earlier states of the code.",
    ]
    if before:
        same = {key: results[key] for key in before}
        lines += [
            "",
            "| the models that were measured before, too | models | traced | all laws asked hold | convs | linears | |",
            "|---|--:|--:|--:|--:|--:|--:|",
            _line("before", before),
            _line("now", same),
        ]
    return lines


def _line(name: str, own: Mapping[str, Result]) -> str:
    traced = sum("traced" in result for result in own.values())
    good = sum(result["status"] == "ok" for result in own.values())
    convs, linears = (_share(*_sums(own, kind)) for kind in ("convs", "linears"))
    taken = [result["pipeline"] for result in own.values() if "pipeline" in result]
    whole = f"{sum(_came_through(found) for found in taken)} of {len(taken)}" if taken else ""
    return f"| {name} | {len(own)} | {traced} | {good} | {convs} | {linears} | {whole} |"


def _came_through(found: Any) -> bool:
    return isinstance(found, dict) and len(found) == 3 and not any(found.values())


def _ends(results: Mapping[str, Result]) -> list[str]:
    lines = []
    for key, result in results.items():
        found = result.get("pipeline", {})
        if isinstance(found, str):
            lines.append(f"- **{key}**: {_safe(found)}")
        elif "pipeline" in result and len(found) < 3:
            lines.append(f"- {key}: not finished in time")
        else:
            lines += [f"- {key}: {_safe(said)}" for said in found.values() if said]
    return lines or ["Nowhere."]
