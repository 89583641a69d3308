"""A data set of trained 2-bit networks whose widths were moved: python -m benchmarks.moved

    python -m benchmarks.moved                     trains what is missing, a row of networks.csv at a time
    python -m benchmarks.moved --seeds 3           of three seeds; what was stopped goes on
    python -m benchmarks.moved --workers 4         in four processes; or --scheduler ADDRESS, of dask's

`python -m benchmarks.moved_page` sets what objectives foretell beside what came.
Every network is trained alike: in float at its own widths from weights that the seed draws, then quantized and trained
at 2 bits, distilled from that float network, by a recipe so short that many fit in a night. Its loss and accuracy are
those on 10,000 images of the training split that no network learns from, and on the test split. Kinds of widths:

    uniform    as they are
    random     the logarithm of every width moved at random, filled up to uniform's cost and no further
    plan       the planner's, within the same budgets, by noise alone up to capacity alone, in three trust regions
    one        one group alone at 0.5, 0.75, 1.5 or 2 times its width: these cost less, or more

networks.json keeps what objectives know of each network: the noise that the planner measures in every group, and what
each group's width costs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.part import some_images, tested_on_last
from torch.fx import GraphModule

import nce_fx
from benchmarks import pages
from benchmarks.evidence.__main__ import WORK
from benchmarks.evidence.bench import Bench
from benchmarks.evidence.study import Study, load_study
from nce_fx.data import Data, load_data
from nce_fx.executor import executor, results
from nce_fx.passes.planning.budget import Reserve, plan_and_build
from nce_fx.passes.planning.choices import Rules
from nce_fx.passes.planning.importance import elasticities
from nce_fx.passes.planning.posynomial import constraints
from nce_fx.passes.planning.settings import Settings
from nce_fx.plan import WidthPlan
from nce_fx.rewrite import plan_analyzed
from nce_fx.training import train

RESULTS = pages.RESULTS / "networks.csv"
SPEC = {"weight": "lsq", "activation": "lsq", "shortcuts": "int8"}
HELD_OUT = 10_000
UNIFORM_SEEDS = 6
"""At least, of the widths as they are: how much seeds alone make."""
DRAWS = 40
DEVIATIONS = (0.2, 0.3, 0.4)
"""Of the logarithms of random widths, in turn."""
RATIOS = (0.5, 2.0, 0.75, 1.5)
CAPACITIES = (0.0, 0.3, 0.6, 0.9)
REGIONS = ((0.25, 2.0), (0.5, 1.5), (0.75, 1.33))
COLUMNS = (
    "network", "data", "kind", "moved", "widths", "macs", "params", "bit_ops", "weight_bytes", "activation_bytes",
    "seed", "images", "float_epochs", "epochs", "spec", "float_accuracy", "held_out_loss", "held_out_accuracy",
    "test_loss", "test_accuracy", "seconds", "version",
)  # fmt: skip
Key = tuple[str, str, str, str, int, int, int, int]
"""Network, data, kind, what was moved, seed; images, epochs in float, epochs at 2 bits."""


@dataclass(frozen=True)
class Network:
    """Widths that are trained: ``Network("one", "conv1 at 0.5x", {"conv1": 4, ...})``."""

    kind: str
    moved: str
    widths: Mapping[str, int]


def networks(bench: Bench) -> list[Network]:
    """Return the networks of a seed, in an order in which all kinds begin early; none of them twice."""
    kinds = [list(each) for each in (randoms(bench), plans(bench), singles(bench))]
    found, most = [Network("uniform", "", bench.channels.widths)], max(map(len, kinds))
    # Every kind is at the same share of its networks at any time.
    places = sorted((k / len(each), n, k) for n, each in enumerate(kinds) for k in range(len(each)))
    assert len(places) >= most
    for _, kind, place in places:
        network = kinds[kind][place]
        if all(dict(other.widths) != dict(network.widths) for other in found):
            found.append(network)
    return found


def randoms(bench: Bench) -> Iterator[Network]:
    """Yield random widths of uniform's cost."""
    settings = Settings.of(bench.cost, bench.budget, Rules(0.25, 4.0))
    generator = np.random.default_rng(0)
    for draw in range(DRAWS):
        deviation = DEVIATIONS[draw % len(DEVIATIONS)]
        widths = settings.widths(settings.near(settings.original, deviation, generator))
        yield Network("random", f"draw {draw}, deviation {deviation}", {**bench.channels.widths, **widths})


def plans(bench: Bench) -> Iterator[Network]:
    """Yield the planner's widths."""
    for least, most in REGIONS:
        for capacity in CAPACITIES:

            def plan(reserve: Reserve, limits: tuple[float, float, float] = (least, most, capacity)) -> WidthPlan:
                named: dict[str, Any] = dict(zip(("min_width", "max_width", "capacity"), limits, strict=True))
                return plan_analyzed(bench.analyses, bench.budget, reserve, **named)

            found, _ = plan_and_build(plan, lambda p: quantized(bench, p.widths), bench.budget, bench.cost)
            yield Network("plan", f"capacity {capacity}, {least} to {most}", found.widths)


def singles(bench: Bench) -> Iterator[Network]:
    """Yield the widths as they are but for one group."""
    for ratio in RATIOS:
        for group in bench.channels:
            if group.pinned is None:
                width = max(1, round(ratio * group.width / group.step)) * group.step
                yield Network("one", f"{group.id} at {ratio}x", {**bench.channels.widths, group.id: width})


def quantized(bench: Bench, widths: Mapping[str, int]) -> GraphModule:
    """Return the untrained network of these widths at 2 bits."""
    return nce_fx.quantize(nce_fx.resize(bench.untrained, widths), bench.spec)


def read(path: Path = RESULTS) -> dict[Key, dict[str, str]]:
    """Return the rows by what they are about."""
    numbers = ("seed", "images", "float_epochs", "epochs")
    return {
        (r["network"], r["data"], r["kind"], r["moved"], *(int(r[name]) for name in numbers)): r
        for r in pages.rows(path)
    }


def recipe_of(study: Study) -> tuple[int, int, int]:
    """Return images, epochs in float, epochs at 2 bits."""
    return study.images or 0, study.float_training(0).epochs, study.retraining(0).epochs


def bench_of(study: Study, seed: int) -> Bench:
    """Return the bench of a seed, whose data has the images that are held out as its test split."""
    return _bench(study.model_dump_json(), seed)


@lru_cache(maxsize=1)
def _bench(fields: str, seed: int) -> Bench:
    study = Study.model_validate_json(fields)
    data = some_images(tested_on_last(load_data(study.data), HELD_OUT), study.images)
    return Bench(study, data, seed, WORK / f"moved-{study.digest()}" / str(seed))


def trained(study: Study, seed: int, network: Network) -> dict[str, Any]:
    """Return a row: a network trained in float at its own widths, then at 2 bits."""
    torch.set_num_threads(1)
    bench = bench_of(study, seed)
    # What the training itself would measure is measured below.
    data = tested_on_last(bench.data, 64)
    begin = time.process_time()
    teacher = train(bench.network(network.widths), data, study.float_training(seed)).model
    student = nce_fx.quantize(teacher, bench.spec, bench.batches)
    result = train(student, data, study.retraining(seed), teacher=teacher)
    seconds = time.process_time() - begin
    cost = bench.cost_of(result.model).cost
    held_out, test = judged(result.model, bench.data), judged(result.model, load_data(study.data))
    return {
        "network": study.network,
        "data": study.data,
        "kind": network.kind,
        "moved": network.moved,
        "widths": json.dumps(dict(network.widths)),
        **{name: cost[name] for name in ("macs", "params", "bit_ops", "weight_bytes", "activation_bytes")},
        "seed": seed,
        **dict(zip(("images", "float_epochs", "epochs"), recipe_of(study), strict=True)),
        "spec": json.dumps(study.spec),
        "float_accuracy": round(judged(teacher, bench.data)[1], 6),
        "held_out_loss": round(held_out[0], 6),
        "held_out_accuracy": round(held_out[1], 6),
        "test_loss": round(test[0], 6),
        "test_accuracy": round(test[1], 6),
        "seconds": round(seconds, 2),
        "version": nce_fx.__version__,
    }


def judged(gm: GraphModule, data: Data) -> tuple[float, float]:
    """Return the loss and the accuracy of a network on the test split of the data."""
    loss = right = samples = 0.0
    gm.eval()
    with torch.no_grad():
        for images, labels in data.loader("test", 500, 0, 0, False):
            scores = gm(images)
            loss += float(F.cross_entropy(scores, labels, reduction="sum"))
            right += float((scores.argmax(1) == labels).sum())
            samples += len(labels)
    return loss / samples, right / samples


def knowledge(bench: Bench) -> dict[str, Any]:
    """Return what objectives know of a network: group -> width, noise, and the elasticity of each quantity's cost."""
    settings = Settings.of(bench.cost, bench.budget, Rules(0.25, 4.0))
    rows = constraints(bench.cost.model, settings.choices, settings.limits)
    by_quantity = {name: elasticities(rows, [name]).tolist() for name in rows.names}
    noise = bench.analyses.sensitivity.by_group
    return {
        group.id: {"width": group.width, "noise": noise[group.id]}
        | {name: round(values[place], 6) for name, values in by_quantity.items()}
        for place, group in enumerate(settings.choices.groups)
    }


def arguments_of(options: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked: which study, how each network is trained, where the rows go."""
    options.add_argument("--study", default="fashion-resnet18", help="a recipe of the evidence")
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--images", type=int, default=6000, help="of the training split")
    options.add_argument("--float-epochs", type=int, default=4)
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--workers", type=int, default=1, help="processes of this machine")
    options.add_argument("--scheduler", metavar="ADDRESS", help="of dask, such as tcp://head:8786, instead of them")
    return options.parse_args(arguments)


def study_of(given: argparse.Namespace) -> Study:
    """Return the study with the epochs and images that were asked for."""
    changes = {"images": given.images, "spec": SPEC}
    changes |= {"float_recipe": {"epochs": given.float_epochs}, "retrain": {"epochs": given.epochs}}
    return load_study(given.study).with_changes(changes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = arguments_of(options, arguments)
    torch.set_num_threads(1)
    study = study_of(given)
    bench = bench_of(study, 0)
    # The planner's come from the float network of the first seed: all seeds get the same widths.
    known = pages.load(given.out.with_suffix(".json"))
    if study.network not in known:
        pages.save(given.out.with_suffix(".json"), known | {study.network: knowledge(bench)})
    found = networks(bench)
    print(f"{len(found)} networks of {study.network}", file=sys.stderr)
    every = [(found[0], seed) for seed in range(max(given.seeds, UNIFORM_SEEDS))]
    every += [(network, seed) for seed in range(given.seeds) for network in found[1:]]
    train_missing(study, every, given)


def train_missing(study: Study, every: Sequence[tuple[Network, int]], given: argparse.Namespace) -> None:
    """Train the networks, each with its seed, that have no row; a row is written as soon as it is there."""
    done, recipe = read(given.out), recipe_of(study)
    jobs = {
        (network.kind, network.moved, seed): (study, seed, network)
        for network, seed in every
        if (study.network, study.data, network.kind, network.moved, seed, *recipe) not in done
    }
    with executor(given.workers, given.scheduler) as pool:
        for (kind, moved, seed), row in results(pool, trained, jobs):
            pages.append(given.out, COLUMNS, row)
            accuracy = f"{row['held_out_accuracy']:.2%}, test {row['test_accuracy']:.2%}"
            print(f"{kind} {moved} seed {seed}: {accuracy}, {row['seconds']} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
