"""How well each metric predicts the truth, and what it costs: python -m benchmarks.sensitivity [--quick]

ResNet-20 (digits, 8x8) and MobileNetV2 (digits, resized to 32x32) are trained in float. The truth is the rise of the
loss, and the divergence of the output, when one tensor is rounded to 2 bits, over all training images (``loss`` and
``kl``; ``--samples`` says how many). Every metric is then measured on 256 of them, and ranked against the truth:
Spearman's correlation over layers (weights and activation together), over weights alone, over activations alone, and
over channel groups. Costs are in forward passes over the same images (a backward counts as two) and in processor
seconds. Results go to benchmarks/results/sensitivity.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch.fx import GraphModule

import nce_fx
from benchmarks import pages
from nce_fx.data import Data, load_data
from nce_fx.data.images import Images
from nce_fx.models import MODELS
from nce_fx.passes.analysis.sensitivity import METRICS, SensitivityReport
from nce_fx.tasks.losses import TEMPERATURE
from nce_fx.training import Recipe, train

NETWORKS = {
    "resnet20": (8, Recipe(epochs=20, evaluate_every=0)),
    "mobilenet_v2": (32, Recipe(epochs=12, evaluate_every=0)),
}
"""Name -> side of the images, recipe."""
MEASURED_ON = 256
ASKED = 0.9
"""The default is the cheapest metric that correlates at least this much with the loss, layer by layer."""
RESULTS = pages.RESULTS / "sensitivity.json"


def resized(data: Data, side: int) -> Data:
    """The same images at another size."""
    parts = []
    splits: tuple[Any, ...] = data.train, data.test
    for images in splits:
        pixels = torch.stack([image for image, _ in images])
        labels = torch.tensor([int(label) for _, label in images])
        parts.append(Images(F.interpolate(pixels, size=(side, side), mode="bilinear"), labels, [0.0], [1.0]))
    return replace(data, train=parts[0], test=parts[1], input_shape=(1, side, side))


def trained(name: str, data: Data, recipe: Recipe, weights: Path | None) -> tuple[GraphModule, float]:
    """A float network and its test accuracy; kept in a folder where one is given."""
    torch.manual_seed(0)
    model = MODELS[name](num_classes=data.classes, in_channels=1)
    gm = nce_fx.trace(model.train(), (torch.randn(2, *data.input_shape),))
    kept = weights / f"{name}.pt" if weights else None
    if kept is not None and kept.exists():
        state, accuracy = torch.load(kept)
        gm.load_state_dict(state)
        return gm.eval(), accuracy
    result = train(gm, data, recipe)
    if kept is not None:
        torch.save((result.model.state_dict(), result.accuracy), kept)
    assert result.accuracy is not None
    return result.model.eval(), result.accuracy


def correlations(metric: SensitivityReport, truth: SensitivityReport) -> dict[str, float]:
    """Spearman's correlation over layers, weights, activations and groups."""

    def over(values: list[float], against: list[float]) -> float:
        constant = len(set(values)) < 2 or len(set(against)) < 2
        return 0.0 if constant else round(float(spearmanr(values, against).statistic), 3)

    mine, theirs = (list(report.by_node.values()) for report in (metric, truth))
    groups = list(truth.by_group)
    return {
        "layers": over([n.total for n in mine], [n.total for n in theirs]),
        "weights": over([n.weight for n in mine], [n.weight for n in theirs]),
        "activations": over([n.activation for n in mine], [n.activation for n in theirs]),
        "groups": over([metric.by_group[g] for g in groups], [truth.by_group[g] for g in groups]),
    }


def study(name: str, gm: GraphModule, data: Data, samples: int, measured_on: int) -> Iterator[dict[str, Any]]:
    """One row a metric."""
    channels = nce_fx.analyze_channels(gm)
    batches = data.batches(-(-samples // 128), 128, seed=1)
    few = data.batches(-(-measured_on // 128), 128, seed=2)
    truths = {name: nce_fx.analyze_sensitivity(gm, batches, name, channels=channels) for name in ("loss", "kl")}
    for metric in METRICS:
        begin = time.process_time()
        report = nce_fx.analyze_sensitivity(gm, few, metric, channels=channels)
        seconds = time.process_time() - begin
        row: dict[str, Any] = {"network": name, "metric": metric, "forwards": round(report.forwards, 1)}
        row |= {"seconds": round(seconds, 2), "samples": measured_on, "truth_samples": samples}
        row |= {"temperature": TEMPERATURE} if metric == "gauss_newton" else {}
        yield row | {f"against_{truth}": correlations(report, found) for truth, found in truths.items()}


def main() -> None:
    """Train, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="all by default; others keep their rows")
    parser.add_argument("--quick", action="store_true", help="ResNet-20 after one epoch, few images, nothing written")
    parser.add_argument("--samples", type=int, default=1200, help="training images that the truth is measured on")
    parser.add_argument("--weights", type=Path, help="a folder to keep the trained networks in")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.quick else {"accuracy": {}, "rows": []}
    for name in options.network or list(NETWORKS)[: 1 if options.quick else None]:
        side, recipe = NETWORKS[name]
        data = resized(load_data("digits"), side) if side != 8 else load_data("digits")
        wanted = replace(recipe, epochs=1) if options.quick else recipe
        gm, accuracy = trained(name, data, wanted, options.weights)
        samples, measured = (128, 128) if options.quick else (options.samples, MEASURED_ON)
        rows = []
        for row in study(name, gm, data, samples, measured):
            rows.append(row)
            against = " ".join(f"{k} {v:+.2f}" for k, v in row["against_loss"].items())
            divergence = f"{row['against_kl']['layers']:+.2f}"
            print(
                f"{name:13s} {row['metric']:16s} loss: {against}   kl: layers {divergence}"
                f"   {row['forwards']:6.1f} forwards {row['seconds']:7.2f} s",
                flush=True,
            )
        others = [row for row in kept["rows"] if row["network"] != name]
        order = list(NETWORKS)
        kept["rows"] = sorted([*others, *rows], key=lambda row: order.index(row["network"]))
        kept["accuracy"][name] = accuracy
        if not options.quick:
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"at least {ASKED} on every network, cheapest first: {', '.join(good_enough(kept['rows'])) or 'none'}")


def good_enough(rows: list[dict[str, Any]]) -> list[str]:
    """The metrics that rank the layers of every network well enough, cheapest first."""
    of = {metric: [row for row in rows if row["metric"] == metric] for metric in METRICS}
    good = [metric for metric in METRICS if all(row["against_loss"]["layers"] >= ASKED for row in of[metric])]
    return sorted(good, key=lambda metric: float(max(row["forwards"] for row in of[metric])))


if __name__ == "__main__":
    main()
