"""What widening one channel group buys, before and after retraining: python -m benchmarks.widening [--quick]

A small residual network (widths 4, 8, 16) is trained on digits in float. Then, for every group and every ratio, the
group alone is resized (the function kept where it gets wider), and the network quantized to 2 bits:

    before   noise of the group in the resized network, over the noise at its own width (the Gauss-Newton metric)
    after    loss on the training and the test images after retraining with distillation, several seeds

The planner's model says: a group's share of the loss falls as ratio ** -p. The exponent that fits best over all groups
is found by least squares on the losses after retraining, with one coefficient a group, for p from 0.1 to 3; how well
each metric ranks the groups by their fitted coefficient is the test that matters for a plan. Results go to
benchmarks/results/widening.json as they come, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch.fx import GraphModule

import nce_fx
from benchmarks import pages
from nce_fx.data import Data, load_data
from nce_fx.models import MODELS
from nce_fx.passes.analysis.sensitivity import METRICS, noise_of
from nce_fx.passes.transform.quantize import PUBLISHED
from nce_fx.training import Recipe, train

RATIOS = (0.5, 2.0, 3.0)
SEEDS = (0, 1)
ALL = "all"
"""Every group at once: what the exponent of the whole is."""
FLOAT = Recipe(epochs=30, evaluate_every=0)
RETRAIN = Recipe(epochs=20, learning_rate=0.02, evaluate_every=0)
SPEC = nce_fx.QuantSpec(**PUBLISHED)
RESULTS = pages.RESULTS / "widening.json"


def float_network(data: Data) -> GraphModule:
    """The network whose groups are widened, trained."""
    torch.manual_seed(0)
    model = MODELS["resnet8"](num_classes=data.classes, in_channels=data.input_shape[0])
    gm = nce_fx.trace(model.train(), (torch.randn(2, *data.input_shape),))
    return train(gm, data, FLOAT).model


def retrained(gm: GraphModule, data: Data, widths: dict[str, int], seed: int) -> dict[str, float]:
    """Losses and accuracy of the network at these widths, quantized and retrained."""
    resized = nce_fx.resize(gm, widths, seed=seed)
    quantized = nce_fx.quantize(resized, SPEC, data.batches(4, 64, seed=seed))
    result = train(quantized, data, replace(RETRAIN, seed=seed), teacher=gm)
    model = result.model.eval()
    with torch.no_grad():
        found = {}
        splits: dict[str, Any] = {"train": data.train, "test": data.test}
        for name, split in splits.items():
            images = torch.stack([image for image, _ in split])
            labels = torch.tensor([int(label) for _, label in split])
            plain, output = gm.eval()(images), model(images)
            found[f"{name}_loss"] = float(F.cross_entropy(output, labels))
            target = F.log_softmax(plain, 1)
            found[f"{name}_kl"] = float(
                F.kl_div(F.log_softmax(output, 1), target, reduction="batchmean", log_target=True)
            )
            found[f"{name}_accuracy"] = float((output.argmax(1) == labels).float().mean())
    return found


def noise_before(gm: GraphModule, data: Data, group: str, width: int) -> float:
    """The group's noise in the network resized but not retrained."""
    resized = nce_fx.resize(gm, {group: width})
    batches = data.batches(2, 128, seed=0)
    noise = noise_of(resized, SPEC)
    return nce_fx.analyze_sensitivity(resized, batches, "gauss_newton", noise=noise).by_group[group]


def fit(rows: list[dict[str, Any]], measure: str) -> dict[str, Any]:
    """The exponent of least squared error: log loss is linear in the groups' ``ratio ** -p - 1``."""
    groups = sorted({row["group"] for row in rows if row["group"]})
    losses = np.log([row[measure] for row in rows])
    best: dict[str, Any] = {}
    for exponent in np.arange(0.1, 3.01, 0.1):
        columns = [
            [row["ratio"] ** -exponent - 1 if row["group"] == group else 0.0 for row in rows] for group in groups
        ]
        matrix = np.column_stack([np.ones(len(rows)), *columns])
        solution, *_ = np.linalg.lstsq(matrix, losses, rcond=None)
        error = float(((matrix @ solution - losses) ** 2).sum())
        if not best or error < best["error"]:
            coefficients = dict(zip(groups, solution[1:].tolist(), strict=True))
            best = {"exponent": float(exponent), "error": error, "coefficients": coefficients}
    total = float(((losses - losses.mean()) ** 2).sum())
    return best | {"explained": 1 - best.pop("error") / total}


def summary(gm: GraphModule, data: Data, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The fits, and how every metric ranks the groups against them."""
    single = [row for row in rows if row["group"] != ALL]
    together = [row for row in rows if row["group"] in ("", ALL)]
    found: dict[str, Any] = {measure: fit(single, measure) for measure in ("train_kl", "test_kl", "test_loss")}
    found["together"] = {measure: fit(together, measure) for measure in ("train_kl", "test_kl", "test_loss")}
    truth = found["train_kl"]["coefficients"]
    noise = noise_of(gm, SPEC)
    for metric in METRICS:
        by_group = nce_fx.analyze_sensitivity(gm, data.batches(4, 128, seed=0), metric, noise=noise).by_group
        ranks = spearmanr([by_group[group] for group in truth], list(truth.values())).statistic
        found[f"spearman_{metric}"] = float(ranks)
        found[f"by_group_{metric}"] = {group: by_group[group] for group in truth}
    return found


def main() -> None:
    """Run what is missing, then fit and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one ratio, one seed, one epoch, nothing written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    data = load_data("digits")
    gm = float_network(data)
    channels = nce_fx.analyze_channels(gm)
    free = {group.id: group.width for group in channels if group.pinned is None}
    rows: list[dict[str, Any]] = []
    if RESULTS.exists() and not quick:
        rows = json.loads(RESULTS.read_text())["rows"]
    done = {(row["group"], row["ratio"], row["seed"]) for row in rows}
    jobs = [("", 1.0), *((group, ratio) for ratio in RATIOS for group in (ALL, *free))]
    for seed in SEEDS[:1] if quick else SEEDS:
        for group, ratio in jobs[:4] if quick else jobs:
            if (group, ratio, seed) in done:
                continue
            own = {} if not group else free if group == ALL else {group: free[group]}
            widths = {name: int(width * ratio) for name, width in own.items()}
            before = noise_before(gm, data, group, widths[group]) if group in free and seed == 0 else None
            row = {"group": group, "ratio": ratio, "seed": seed, "noise_before": before}
            rows.append(row | retrained(gm, data, widths, seed))
            print(rows[-1], flush=True)
            if not quick:
                RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    found = summary(gm, data, rows)
    print(json.dumps(found, indent=1))
    if not quick:
        RESULTS.write_text(json.dumps({"rows": rows, "summary": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
