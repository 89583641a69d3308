"""Does a plan from sensitivity alone help? python -m benchmarks.controls [--network NAME] [--seeds N] [--quick]

Four networks of 2-bit weights and activations, none with more MACs or parameters than the first, are retrained alike
from the same float network (distilled from it, the same recipe and seed), for every seed:

    uniform    the network's own widths: a uniform multiplier of 1
    plan       `plan_widths` with the default metric on that float network, as `nce-fx rewrite` plans
    shuffled   the same with the sensitivities permuted among the groups that may change
    random     a legal plan drawn at random: widths log-uniform, scaled into the budget, then filled up at random

Rows go to benchmarks/results/controls.csv as they come; a run that was stopped goes on from them. The table with paired
t-tests over seeds is made by `python -m benchmarks.planning_page`.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.fx import GraphModule

import nce_fx
from nce_fx.data import Data, load_data
from nce_fx.models import MODELS
from nce_fx.passes.analysis.channels import ChannelGraph
from nce_fx.passes.analysis.cost import CostReport
from nce_fx.passes.analysis.sensitivity import SensitivityReport
from nce_fx.passes.planning.choices import Rules, legal_choices
from nce_fx.rewrite import layer_bits
from nce_fx.training import Recipe, train

NETWORKS = {"resnet8": 4, "resnet20": 4}
"""Name -> width of the first stage: narrow, where 2 bits cost points on digits."""
SEEDS = 10
ARMS = ("uniform", "plan", "shuffled", "random")
FLOAT = Recipe(epochs=30, evaluate_every=0)
RETRAIN = Recipe(epochs=20, evaluate_every=0)
SPEC = nce_fx.QuantSpec()
BUDGET = nce_fx.Budget(macs=1.0, params=1.0)
RESULTS = Path(__file__).parent / "results" / "controls.csv"


@dataclass(frozen=True)
class Row:
    """One trained network."""

    network: str
    seed: int
    arm: str
    accuracy: float
    test_loss: float
    macs: int
    params: int
    noise: float
    """The plan's predicted noise over that of the original widths, by the unshuffled sensitivities."""
    seconds: float
    widths: str


def float_network(name: str, data: Data, seed: int, recipe: Recipe) -> GraphModule:
    torch.manual_seed(seed)
    model = MODELS[name](num_classes=data.classes, in_channels=data.input_shape[0], width=NETWORKS[name])
    gm = nce_fx.trace(model.train(), (torch.randn(2, *data.input_shape),))
    return train(gm, data, replace(recipe, seed=seed)).model.eval()


def shuffled(
    sensitivity: SensitivityReport, channels: ChannelGraph, generator: np.random.Generator
) -> dict[str, float]:
    """The sensitivities, each group that may change with that of another one or, by chance, its own."""
    free = [group.id for group in channels if group.pinned is None]
    order = generator.permutation(len(free))
    moved = {group: sensitivity.by_group[free[k]] for group, k in zip(free, order, strict=True)}
    return {**sensitivity.by_group, **moved}


def random_widths(channels: ChannelGraph, cost: CostReport, generator: np.random.Generator) -> dict[str, int]:
    """A legal plan: every width between half and twice its own, within the budget, no group could take one more."""
    choices = legal_choices(channels, Rules())
    limits = BUDGET.limits({"macs": cost.total.macs, "params": cost.total.params})

    def fits(picks: np.ndarray) -> bool:
        total = cost.at(choices.named(picks)).total
        return all(getattr(total, name) <= limit for name, limit in limits.items())

    wanted = np.exp2(generator.uniform(-1, 1, len(choices.groups)))
    scale = 2.0
    while True:
        picks = np.array([int(abs(r - scale * w).argmin()) for r, w in zip(choices.ratios, wanted, strict=True)])
        if fits(picks):
            break
        scale *= 0.98
    growing = True
    while growing:
        growing = False
        for group in generator.permutation(len(picks)):
            wider = picks.copy()
            wider[group] += 1
            if wider[group] < len(choices.widths[group]) and fits(wider):
                picks, growing = wider, True
    return choices.named(picks)


def plans(
    gm: GraphModule, data: Data, seed: int
) -> tuple[dict[str, Mapping[str, int]], CostReport, Mapping[str, float]]:
    """Widths by arm, what they cost, and the sensitivities behind the plan."""
    channels = nce_fx.analyze_channels(gm)
    cost = nce_fx.analyze_cost(gm, channels)
    bits = layer_bits(gm, SPEC)
    sensitivity = nce_fx.analyze_sensitivity(gm, data.batches(8, 64, seed=seed), None, bits, channels=channels)
    generator = np.random.default_rng(seed)
    wrong = replace(sensitivity, by_group=shuffled(sensitivity, channels, generator))
    widths = {
        "uniform": channels.widths,
        "plan": nce_fx.plan_widths(channels, cost, sensitivity, BUDGET).widths,
        "shuffled": nce_fx.plan_widths(channels, cost, wrong, BUDGET).widths,
        "random": random_widths(channels, cost, generator),
    }
    return widths, cost, sensitivity.by_group


def rows(name: str, seed: int, missing: list[str], data: Data, epochs: int | None) -> Iterator[Row]:
    gm = float_network(name, data, seed, FLOAT if epochs is None else replace(FLOAT, epochs=epochs))
    recipe = replace(RETRAIN if epochs is None else replace(RETRAIN, epochs=epochs), seed=seed)
    by_arm, cost, noise = plans(gm, data, seed)
    images = torch.stack([image for image, _ in data.test])
    labels = torch.tensor([int(label) for _, label in data.test])
    original = by_arm["uniform"]
    for arm in missing:
        begin = time.process_time()
        model, widths = gm, original
        if arm != "float":
            widths = by_arm[arm]
            quantized = nce_fx.quantize(nce_fx.resize(gm, widths, seed=seed), SPEC, data.batches(8, 64, seed=seed))
            model = train(quantized, data, recipe, teacher=gm).model.eval()
        with torch.no_grad():
            scores = model(images)
        total = cost.at(widths).total
        predicted = sum(value * original[group] / widths[group] for group, value in noise.items())
        yield Row(
            network=f"{name}, width {NETWORKS[name]}",
            seed=seed,
            arm=arm,
            accuracy=round(float((scores.argmax(1) == labels).float().mean()), 6),
            test_loss=round(float(F.cross_entropy(scores, labels)), 6),
            macs=int(total.macs),
            params=int(total.params),
            noise=round(predicted / sum(noise.values()), 4),
            seconds=round(time.process_time() - begin, 2),
            widths=" ".join(str(width) for width in widths.values()),
        )


def read() -> list[dict[str, str]]:
    return list(csv.DictReader(RESULTS.read_text().splitlines())) if RESULTS.exists() else []


def main() -> None:
    """Train what is missing, keep every row at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="all by default")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("digits")
    names = [field.name for field in fields(Row)]
    done = set() if options.quick else {(row["network"], int(row["seed"]), row["arm"]) for row in read()}
    for seed in range(1 if options.quick else options.seeds):
        for name in options.network or NETWORKS:
            label = f"{name}, width {NETWORKS[name]}"
            missing = [arm for arm in ("float", *ARMS) if (label, seed, arm) not in done]
            for row in rows(name, seed, missing, data, 1 if options.quick else None) if missing else ():
                print(
                    f"{row.network} seed {row.seed} {row.arm:9s} {100 * row.accuracy:.2f} %  {row.widths}", flush=True
                )
                if options.quick:
                    continue
                fresh = not RESULTS.exists()
                with RESULTS.open("a", newline="") as file:
                    writer = csv.DictWriter(file, names, lineterminator="\n")
                    if fresh:
                        writer.writeheader()
                    writer.writerow(asdict(row))


if __name__ == "__main__":
    main()
