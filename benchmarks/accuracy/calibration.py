"""What calibrating ranges in the sensitivity pass saves, and costs: python -m benchmarks.calibration

The sensitivity pass runs at the old widths; the ranges that quantizers find in it are carried over to the rewritten
network. resnet8 on digits, trained in float, rewritten at its own cost: processor time of that pass against a
sensitivity pass and a calibration pass apart; and the accuracy at 2 bits with ranges of the rewritten network and with
ranges carried over, after some epochs of training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from benchmarks.brevitas_accuracy import float_network
from torch.fx import GraphModule

import nce_fx
from benchmarks import pages
from nce_fx.data import Data, load_data
from nce_fx.passes.analysis.sensitivity import analyze_sensitivity
from nce_fx.passes.transform.quantize import PUBLISHED, Observers, calibrate
from nce_fx.quantizers import ActivationQuantizer
from nce_fx.quantizers.pact import Pact
from nce_fx.rewrite import analyze, build, plan_analyzed
from nce_fx.training import Recipe, train

RESULTS = pages.RESULTS / "calibration.json"
PAGE = pages.DOCS / "training.md"
EPOCHS = (1, 5)
SPEC = nce_fx.QuantSpec(**PUBLISHED)


def main() -> None:
    """Measure every seed, and write the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=5)
    given = options.parse_args()
    torch.set_num_threads(1)
    data = load_data("digits")
    rows = [measure(data, seed) for seed in range(given.seeds)]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    write_page()


def write_page() -> None:
    """Put the table of what was measured into the page."""
    pages.put(PAGE, "calibration table", [table(json.loads(RESULTS.read_text()))])


def measure(data: Data, seed: int) -> dict[str, Any]:
    """Return the seconds and the accuracies of one seed."""
    original = float_network("resnet8", data, 20, seed).eval()
    batches = data.batches(8, 64, seed)
    analyses = analyze(original, (batches[0][0][:2],), batches=batches, spec=SPEC)
    gm, uniform = analyses.graph_module, analyses.uniform
    assert uniform is not None
    plan = plan_analyzed(analyses, nce_fx.Budget(macs=1.0, params=1.0))
    carried = build(gm, plan, spec=SPEC, batches=batches, uniform=uniform)

    def fused() -> None:
        observers = Observers(uniform)
        analyze_sensitivity(gm, batches, channels=analyses.channels, watch=observers.see)
        observers.settle(batches)

    seconds = {
        "sensitivity": timed(lambda: analyze_sensitivity(gm, batches, channels=analyses.channels)),
        "calibration": timed(lambda: calibrate(carried, batches)),
        "fused": timed(fused),
    }
    own, clips = calibrate(carried, batches), clips_of(carried)
    changes = [clips[path] / clip for path, clip in clips_of(own).items()]
    row: dict[str, Any] = {"seed": seed, "seconds": seconds, "clips": [min(changes), max(changes)]}
    for name, network in (("own", own), ("carried", carried)):
        recipes = [Recipe(epochs=epochs, seed=seed, clip_gradient=1.0) for epochs in EPOCHS]
        row[name] = [train(network, data, recipe, teacher=original).accuracy for recipe in recipes]
    print(row, flush=True)
    return row


def timed(work: Any) -> float:
    """Processor seconds of the second run."""
    work()
    begin = time.process_time()
    work()
    return time.process_time() - begin


@torch.no_grad()
def clips_of(gm: GraphModule) -> dict[str, float]:
    """Return where each activation quantizer that learns clips."""
    found = {path: module for path, module in gm.named_modules() if isinstance(module, ActivationQuantizer)}
    return {path: float(m.clip) for path, m in found.items() if isinstance(m, Pact) and list(m.parameters())}


def table(rows: list[dict[str, Any]]) -> str:
    """Return means over the seeds as a Markdown table."""
    shares = [row["seconds"]["fused"] / (row["seconds"]["sensitivity"] + row["seconds"]["calibration"]) for row in rows]
    ends = f"{min(row['clips'][0] for row in rows):.2f} to {max(row['clips'][1] for row in rows):.2f}"
    lines = ["| | ranges of the rewritten network | carried over |", "|---|--:|--:|"]
    for index, epochs in enumerate(EPOCHS):
        cells = []
        for name in ("own", "carried"):
            values = [100 * row[name][index] for row in rows]
            cells.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} %")
        lines.append(f"| accuracy after {epochs} epoch{'s' if epochs > 1 else ''} | {' | '.join(cells)} |")
    lines.append(f"| clips, relative | 1 | {ends} |")
    lines.append(f"| time of sensitivity and calibration | 1 | {statistics.median(shares):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
