"""What the sensitivity metrics cost: python -m benchmarks.sensitivity_cost [--network NAME] [--rounds N] [--quick]

The gradient metrics against a plain forward and backward pass over the same batches, and the one-at-a-time metrics
against as many full forward passes as there are tensors to round, on networks of three depths. Two figures each: the
operations that torch counts (multiply-accumulates of convolutions and matrix products), and processor time on one
thread, as the median over the rounds of the ratio to a plain pass that ran just before.

Results go to benchmarks/results/sensitivity_cost.json, network by network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import nce_fx
from benchmarks import pages
from nce_fx.data.loaders import CALIBRATION_BATCHES
from nce_fx.models import MODELS
from nce_fx.passes.analysis.sensitivity import METRICS, real_noise
from nce_fx.passes.analysis.sensitivity.probe import Probe
from tests.counting import operations

NETWORKS = {"resnet20": (64, 8), "resnet56": (64, 8), "mobilenet_v2": (16, 32)}
"""Name -> images in a batch, their side."""
BATCHES = CALIBRATION_BATCHES
ONE_BY_ONE = ("kl", "loss")
PASS, SHARE = 3.0, 0.5
"""What is asked: of a plain forward and backward pass; of as many full forwards as tensors are rounded."""
RESULTS = pages.RESULTS / "sensitivity_cost.json"


def seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def costs(name: str, rounds: int) -> Iterator[dict[str, Any]]:
    """One row a metric."""
    count, side = NETWORKS[name]
    torch.manual_seed(0)
    gm = nce_fx.trace(MODELS[name](num_classes=10, in_channels=1).eval(), (torch.randn(1, 1, side, side),))
    channels = nce_fx.analyze_channels(gm)
    batches = [(torch.randn(count, 1, side, side), torch.randint(0, 10, (count,))) for _ in range(BATCHES)]
    probe = Probe.of(gm, real_noise(2))
    rounded = len({layer.path for layer in probe.layers}) + len(probe.activations)

    def step() -> None:
        for inputs, target in batches:
            gm.zero_grad()
            torch.autograd.backward(F.cross_entropy(gm(inputs), target))

    @torch.no_grad()
    def forward() -> list[Tensor]:
        return [gm(inputs) for inputs, _ in batches]

    for metric in METRICS:
        plain, base, times = (forward, "forward", rounded) if metric in ONE_BY_ONE else (step, "forward + backward", 1)

        def measured(metric: str = metric) -> object:
            return nce_fx.analyze_sensitivity(gm, batches, metric, channels=channels)

        measured(), plain()
        # A forward pass is short beside what it is compared with: several make one measurement.
        repeated = 5 if plain is forward else 1
        shares = []
        for _ in range(rounds):
            base_seconds = statistics.median(seconds(plain) for _ in range(repeated))
            shares.append(seconds(measured) / base_seconds / times)
        yield {
            "network": name,
            "layers": len({layer.path for layer in probe.layers}),
            "rounded": rounded,
            "metric": metric,
            "against": base if times == 1 else f"{times} x {base}",
            "operations": round(operations(measured) / operations(plain) / times, 3),
            "time": round(statistics.median(shares), 3),
            "rounds": rounds,
        }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="all by default; others keep their rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="ResNet-20, one round, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for name in options.network or list(NETWORKS)[: 1 if options.quick else None]:
        rows = []
        for row in costs(name, 1 if options.quick else options.rounds):
            rows.append(row)
            print(
                f"{name:13s} {row['metric']:16s} {row['operations']:6.3f} in operations, {row['time']:6.3f} in time"
                f" of {row['against']}",
                flush=True,
            )
        kept = [*(row for row in kept if row["network"] != name), *rows]
        kept.sort(key=lambda row: list(NETWORKS).index(row["network"]))
        if not options.quick:
            RESULTS.write_text(json.dumps({"torch": torch.__version__, "rows": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
