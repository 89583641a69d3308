"""How to train at 2 bits: one factor at a time, at equal epochs, on real images.

    python -m benchmarks.training                                  trains what is missing, a row of the CSV at a time
    python -m benchmarks.training --networks resnet18 --seeds 5    a part of it; several may run beside each other
    python -m benchmarks.training --workers 4                      in four processes; or --scheduler ADDRESS, of dask's
    python -m benchmarks.training --held-out 10000                 to choose by: tested on the last training images
    python -m benchmarks.training --table                          trains nothing: the table of what is there

For every network and seed a float network is trained; from its weights, and distilled from it, each method trains the
same network with uniform widths at 2 bits for as many epochs, first and last layer at 8. A method is what it changes of
the quantizers (`nce_fx.QuantSpec`) and of the recipe (`nce_fx.training.Recipe`). brevitas' nearest to LSQ and a plain
straight-through estimator stand beside, with the best of three learning rates. Fashion-MNIST by default, cropped and
mirrored, and tested on all of its test images.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from benchmarks.brevitas_accuracy import with_brevitas
from benchmarks.networks import small_vit
from benchmarks.part import some_images, tested_on_last
from torch import Tensor, nn
from torch.fx import GraphModule

import nce_fx
from benchmarks import pages
from benchmarks.evidence.statistics import deviation, mean, paired_p
from nce_fx.data import Data, load_data
from nce_fx.executor import executor, results
from nce_fx.models import MODELS
from nce_fx.passes.transform.quantize import PUBLISHED
from nce_fx.quantizers import ActivationQuantizer, WeightQuantizer
from nce_fx.training import Recipe, train
from nce_fx.training.recipe import PUBLISHED_TRAINING

RESULTS = pages.RESULTS / "training.csv"
PAGE = pages.DOCS / "training.md"
COLUMNS = (
    "network", "data", "method", "seed", "images", "float_epochs", "epochs", "accuracy", "moved", "step_ms", "version",
)  # fmt: skip
Key = tuple[str, str, str, int]
EPOCHS = 8, 8
"""In float and at 2 bits, where nobody says."""


@dataclass(frozen=True)
class Method:
    """What is changed of the published quantizers: ``Method({"weight": "seq"}, {"reestimate": 50})``."""

    spec: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[GraphModule, Sequence[Any]], GraphModule] | None = None
    """What becomes of the quantized graph, given batches to calibrate on."""
    more_float: int = 0
    """Epochs that the float stage has more, and the stage at 2 bits fewer: 4 makes 12 + 4 of 8 + 8."""


class StraightThrough(nn.Module):
    """Any quantizer's levels, with the gradient of the identity everywhere, and nothing learned of the range."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize."""
        return x + (self.quantizer(x) - x).detach()


def straight_through(gm: GraphModule, batches: Sequence[Any]) -> GraphModule:
    """Take every quantizer's own gradient away."""
    for path, module in list(gm.named_modules()):
        if isinstance(module, WeightQuantizer | ActivationQuantizer):
            gm.set_submodule(path, StraightThrough(module))
    return gm


def _brevitas(gm: GraphModule, batches: Sequence[Any]) -> GraphModule:
    return with_brevitas(gm, "lsq", batches, of_batch=True)


RATES = (0.005, 0.015, 0.05)
FLOAT, REFERENCE, QUANTIZERS = "float", "pact + sawb", "sawb + lsq, shortcuts of 8 bits"
DEFAULT = f"{QUANTIZERS}, half distilled and falling, clipped, rate 0.15"
SLOWER = f"{QUANTIZERS}, quarter distilled"
"""The default as a `Recipe` of one's own has it, at 0.05 and with no limit to gradients."""
_DEFAULT = {"weight": "sawb", "activation": "lsq", "shortcuts": "int8"}
_LEARNED = {"weight": "lsq", "activation": "lsq"}
_LEARNED_ALIKE = _LEARNED | {"shortcuts": "int8"}
"""With as many bits everywhere as the default has."""
_RIVAL = {"distill_alpha": 0.25, "clip_gradient": 1.0}
"""What rivals with learned scales need."""
_FASTER = _RIVAL | {"learning_rate": 0.15}
_FALLING = {"clip_gradient": 1.0, "learning_rate": 0.15, "distill_alpha": 0.5, "distill_falls": True}
"""What serves our default best."""
RIVALS = tuple(
    f"{rival}, shortcuts of 8 bits, {how}"
    for rival, how in (("brevitas", "rate"), ("brevitas", "half distilled and falling"), ("straight-through", "rate"))
)
"""How the names of rows begin that have the default's bits and are held against it, each at its best rate."""
ON_TOP: Mapping[str, Mapping[str, Any]] = {
    "batches of 32": {"batch_size": 32},
    "batches of 32, rate 0.025": {"batch_size": 32, "learning_rate": 0.025},
    "rate 0.1": {"learning_rate": 0.1},
    "rate 0.025": {"learning_rate": 0.025},
    "clip rate 10": {"clip_rate": 10.0},
    "half distilled": {"distill_alpha": 0.5},
    "quarter distilled": {"distill_alpha": 0.25},
    "not distilled": {"distill_alpha": 0.0},
    "half distilled, rate 0.1": {"distill_alpha": 0.5, "learning_rate": 0.1},
    "quarter distilled, rate 0.015": {"distill_alpha": 0.25, "learning_rate": 0.015},
    "quarter distilled, rate 0.15": {"distill_alpha": 0.25, "learning_rate": 0.15},
    "quarter distilled, clipped": _RIVAL,
    "quarter distilled, clipped, rate 0.15": _FASTER,
    "quarter distilled, clipped, rate 0.15, average": _FASTER | {"average": 0.99},
    "quarter distilled, clipped, rate 0.15, reestimate": _FASTER | {"reestimate": 50},
    "quarter distilled, clipped, rate 0.3": _FASTER | {"learning_rate": 0.3},
    "quarter distilled, clipped, rate 0.5": _FASTER | {"learning_rate": 0.5},
    "not distilled, clipped, rate 0.15": _FASTER | {"distill_alpha": 0.0},
    "quarter distilled and falling, clipped, rate 0.3": _FALLING | {"distill_alpha": 0.25, "learning_rate": 0.3},
    "half distilled and falling, clipped, rate 0.15": _FALLING,
    "half distilled and falling, clipped, rate 0.3": _FALLING | {"learning_rate": 0.3},
    "all distilled and falling, clipped, rate 0.15": _FALLING | {"distill_alpha": 1.0},
    "all distilled": {"distill_alpha": 1.0},
    "temperature 2": {"distill_temperature": 2.0},
    "average": {"average": 0.995},
    "reestimate": {"reestimate": 50},
    "no decay": {"weight_decay": 0.0},
    "features": {"distill_features": 10.0},
    "quarter in float": {"float_epochs": 2},
}
"""What is changed of the recipe of the default, one factor at a time."""
METHODS: Mapping[str, Method] = {
    REFERENCE: Method(),
    "lsq": Method({"weight": "lsq", "activation": "lsq"}),
    "seq": Method({"weight": "seq"}),
    "seq + lsq": Method({"weight": "seq", "activation": "lsq"}),
    "statsq": Method({"weight": "statsq"}),
    "seq + lsq+": Method({"weight": "seq", "activation": "lsq+"}),
    "sawb-channel": Method({"weight": "sawb-channel"}),
    "n2uq": Method({"activation": "n2uq"}),
    "ewgs": Method({"ewgs": 0.2}),
    "ewgs 0.5": Method({"ewgs": 0.5}),
    "reestimate": Method({}, {"reestimate": 50}),
    "rate 0.1": Method({}, {"learning_rate": 0.1}),
    "no decay": Method({}, {"weight_decay": 0.0}),
    "clip rate 0.1": Method({}, {"clip_rate": 0.1}),
    "clip decay": Method({}, {"clip_decay": 5e-4}),
    "progressive": Method({}, {"bits": [8, 4, 2]}),
    "freeze": Method({}, {"freeze": 0.01}),
    "average": Method({}, {"average": 0.995}),
    "features": Method({}, {"distill_features": 10.0}),
    "shortcuts of 8 bits": Method({"shortcuts": "int8"}),
    QUANTIZERS: Method(_DEFAULT),
    **{f"{QUANTIZERS}, {name}": Method(_DEFAULT, recipe) for name, recipe in ON_TOP.items()},
    f"{QUANTIZERS}, half of the float epochs at 2 bits": Method(_DEFAULT, more_float=-4),
    f"{QUANTIZERS}, half of the epochs at 2 bits in float": Method(_DEFAULT, more_float=4),
    "sawb-channel + lsq, shortcuts of 8 bits": Method(_DEFAULT | {"weight": "sawb-channel"}),
    "sawb-channel + lsq, shortcuts of 8 bits, quarter distilled": Method(
        _DEFAULT | {"weight": "sawb-channel"}, {"distill_alpha": 0.25}
    ),
    "lsq, shortcuts of 8 bits, quarter distilled": Method(_DEFAULT | {"weight": "lsq"}, {"distill_alpha": 0.25}),
    "lsq, shortcuts of 8 bits, quarter distilled, clipped, rate 0.15": Method(_LEARNED_ALIKE, _FASTER),
    "lsq, shortcuts of 8 bits": Method(_LEARNED_ALIKE),
    "n2uq, shortcuts of 8 bits": Method({"activation": "n2uq", "shortcuts": "int8"}),
    "weights of 8 bits": Method({"weight_bits": 8}),
    "activations of 8 bits": Method({"activation_bits": 8}),
    "best": Method({"weight": "seq", "ewgs": 0.2}, {"reestimate": 50}),
    **{
        f"straight-through, shortcuts of 8 bits, rate {rate}": Method(
            _DEFAULT, _RIVAL | {"learning_rate": rate}, straight_through
        )
        for rate in (*RATES, 0.15)
    },
    # These have fewer bits than the default has: its shortcuts have 8.
    **{f"brevitas, rate {rate}": Method(_LEARNED, _RIVAL | {"learning_rate": rate}, _brevitas) for rate in RATES},
    **{
        f"brevitas, shortcuts of 8 bits, rate {rate}": Method(
            _LEARNED_ALIKE, _RIVAL | {"learning_rate": rate}, _brevitas
        )
        for rate in (*RATES, 0.15)
    },
    "brevitas, shortcuts of 8 bits, half distilled and falling, rate 0.15": Method(_LEARNED_ALIKE, _FALLING, _brevitas),
}
"""By the names of the rows."""


def mobilenet(classes: int, channels: int) -> nn.Module:
    """MobileNetV2, narrow, whose first convolution keeps the size: 28x28 images end as 2x2."""
    model = MODELS["mobilenet_v2"](num_classes=classes, in_channels=channels, multiplier=0.2)
    next(module for module in model.modules() if isinstance(module, nn.Conv2d)).stride = (1, 1)
    return model


def vit(classes: int, channels: int) -> nn.Module:
    """A small vision transformer: patches of 4x4, three blocks of four heads, 32 channels."""
    return small_vit(num_classes=classes, in_channels=channels, channels=32, heads=4, blocks=3)


NETWORKS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "resnet20": lambda classes, channels: MODELS["resnet20"](num_classes=classes, in_channels=channels, width=4),
    "resnet18": lambda classes, channels: MODELS["resnet18"](num_classes=classes, in_channels=channels, width=8),
    "mobilenet_v2": mobilenet,
    "vit": vit,
    "vit, adamw": vit,
}
"""By name: (classes, channels) -> a network with new weights."""
RECIPES: Mapping[str, Mapping[str, Any]] = {"vit, adamw": {"optimizer": "adamw", "learning_rate": 0.003}}
"""By the name of a network: what both of its stages change of the recipe."""


@lru_cache(maxsize=1)
def float_network(
    network: str, data_name: str, images: int | None, held_out: int | None, recipe: Recipe
) -> tuple[Data, GraphModule]:
    """Return the data and the float network of one seed, trained once for the methods that follow one another."""
    data = load_data(data_name)
    data = some_images(tested_on_last(data, held_out) if held_out else data, images)
    torch.manual_seed(recipe.seed)
    model = NETWORKS[network](data.classes, data.input_shape[0])
    return data, train(nce_fx.trace(model, (torch.zeros(2, *data.input_shape),)), data, recipe).model


def measure(teacher: GraphModule, data: Data, name: str, recipe: Recipe) -> dict[str, Any]:
    """Train by one method; return the columns that it decides."""
    method = METHODS[name]
    batches = data.batches(8, 64, recipe.seed)
    student = nce_fx.quantize(teacher, nce_fx.QuantSpec(**{**PUBLISHED, **method.spec}), batches)
    if method.change is not None:
        student = method.change(student, batches)
    asked = replace(recipe, **{"distill_alpha": PUBLISHED_TRAINING["distill_alpha"], **method.recipe})
    begin = time.process_time()
    result = train(student, data, asked, teacher=teacher)
    last = result.history[-1]
    step = (time.process_time() - begin) / last.steps
    moved = "" if last.moved is None else round(last.moved, 5)
    return {"accuracy": result.accuracy, "moved": moved, "step_ms": round(1000 * step, 2)}


def read(path: Path = RESULTS) -> dict[Key, dict[str, str]]:
    """Return the rows of the CSV by what they are about."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {(row["network"], row["data"], row["method"], int(row["seed"])): row for row in csv.DictReader(file)}


def by_seed(
    rows: Mapping[Key, Mapping[str, str]], network: str, data: str, method: str
) -> dict[int, Mapping[str, str]]:
    """Return the rows of one network, data and method by their seeds."""
    return {seed: row for (*about, seed), row in rows.items() if about == [network, data, method]}


def percent(values: Sequence[float]) -> str:
    """Return a mean with what seeds differ by, such as ``84.17 ± 0.22 %``."""
    spread = f" ± {deviation(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread} %"


def table(rows: Mapping[Key, Mapping[str, str]]) -> list[str]:
    """Return the study as Markdown: means, deviations, and what is gained over the default on the same seeds."""
    lines = [
        "| network | method | accuracy | against the published | p | weights moved in the last epoch | step | seeds |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for network, data in sorted({key[:2] for key in rows}):
        base = by_seed(rows, network, data, REFERENCE)
        for name in (FLOAT, *METHODS):
            own = by_seed(rows, network, data, name)
            if not own:
                continue
            found = [100 * float(row["accuracy"]) for row in own.values()]
            pairs = [(100 * float(own[s]["accuracy"]), 100 * float(base[s]["accuracy"])) for s in own if s in base]
            gain = f"{mean([a - b for a, b in pairs]):+.2f}" if pairs and name != REFERENCE else ""
            p = f"{paired_p(pairs):.3f}" if len(pairs) > 1 and name != REFERENCE else ""
            moved = [100 * float(row["moved"]) for row in own.values() if row["moved"]]
            steps = [float(own[s]["step_ms"]) / float(base[s]["step_ms"]) for s in own if s in base]
            slower = [ratio for ratio in steps if not math.isnan(ratio)]
            cells = [f"{network}, {data}", name, percent(found), gain, p]
            cells += [f"{mean(moved):.2f} %" if moved else "", f"{mean(slower):.2f}" if slower else "", str(len(own))]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def left_table(rows: Mapping[Key, Mapping[str, str]]) -> list[str]:
    """Return in Markdown what the default leaves of what 2 bits cost as published: a line a network, and their mean."""
    lines = [
        "| network | float | published, to float | default, to float | left | default, to published | p | seeds |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    shares = []
    for (network, data), default in product(sorted({key[:2] for key in rows}), (DEFAULT, SLOWER)):
        found = {
            name: {seed: 100 * float(row["accuracy"]) for seed, row in by_seed(rows, network, data, name).items()}
            for name in (FLOAT, REFERENCE, default)
        }
        seeds = sorted(set.intersection(*(set(own) for own in found.values())))
        if not seeds:
            continue
        plain, before, now = (mean([own[seed] for seed in seeds]) for own in found.values())
        p = paired_p([(found[default][s], found[REFERENCE][s]) for s in seeds]) if len(seeds) > 1 else math.nan
        left = (now - plain) / (before - plain)
        if default == DEFAULT:
            shares.append(left)
        about = f"{network}, {data}" + (", at 0.05" if default == SLOWER and network not in RECIPES else "")
        cells = [about, f"{plain:.2f} %", f"{before - plain:+.2f}", f"{now - plain:+.2f}"]
        cells += [f"{left:.2f}", f"{now - before:+.2f}", "" if math.isnan(p) else f"{p:.3f}", str(len(seeds))]
        lines.append(f"| {' | '.join(cells)} |")
    # What is above float has nothing left; more than that is not for the mean.
    counted = [max(share, 0.0) for share in shares]
    if not shares:
        return lines
    mean_left = f"{mean(counted):.2f}"
    return [*lines, f"| mean of the {len(shares)} with the default, none below 0 |  |  |  | {mean_left} |  |  |  |"]


def rivals_table(rows: Mapping[Key, Mapping[str, str]]) -> list[str]:
    """Return in Markdown how the default stands to the best row of each rival with the same bits, on the same seeds."""
    lines = ["| network | rival, at its best | rival | default | default is better by | p | seeds |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|"]
    for (network, data), rival in product(sorted({key[:2] for key in rows}), RIVALS):
        own = by_seed(rows, network, data, DEFAULT)
        found = {name: by_seed(rows, network, data, name) for name in METHODS if name.startswith(rival)}
        paired = {
            name: [(100 * float(own[s]["accuracy"]), 100 * float(each[s]["accuracy"])) for s in own if s in each]
            for name, each in found.items()
        }
        # By its own seeds, so that a rate that was tried with one is held against those of others with the same.
        best = max((name for name, pairs in paired.items() if pairs), key=lambda name: paired[name][0][1], default=None)
        if best is None:
            continue
        ours, theirs = ([pair[side] for pair in paired[best]] for side in (0, 1))
        cells = [f"{network}, {data}", best.replace(", shortcuts of 8 bits", "")]
        cells += map(percent, (theirs, ours))
        p = f"{paired_p(paired[best]):.3f}" if len(ours) > 1 else ""
        lines.append(f"| {' | '.join([*cells, f'{mean(ours) - mean(theirs):+.2f}', p, str(len(ours))])} |")
    return lines


def write_page(results: Path = RESULTS) -> None:
    """Put the tables of what was measured into the page, and print them."""
    rows = read(results)
    tables = {"default": left_table, "rivals": rivals_table, "study": table}
    for name, made in tables.items():
        lines = made(rows)
        pages.put(PAGE, f"training {name}", lines)
        print("\n".join(lines))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, then print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", default="fashion-mnist")
    options.add_argument("--networks", nargs="+", choices=NETWORKS, default=tuple(NETWORKS))
    options.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS))
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--images", type=int, help="of the training split; all by default")
    options.add_argument("--held-out", type=int, metavar="COUNT", help="test on so many of the last training images")
    options.add_argument("--float-epochs", type=int, default=EPOCHS[0])
    options.add_argument("--epochs", type=int, default=EPOCHS[1])
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--workers", type=int, default=1, help="processes of this machine")
    options.add_argument("--scheduler", metavar="ADDRESS", help="of dask, such as tcp://head:8786, instead of them")
    options.add_argument("--table", action="store_true", help="train nothing: the table of what is there")
    given = options.parse_args(arguments)
    torch.set_num_threads(1)
    if not given.table:
        study(given)
    if given.out == RESULTS:
        write_page()
    else:
        print("\n".join(table(read(given.out))))


def name_of(given: argparse.Namespace) -> str:
    """Return how rows name the data and what is not usual, such as ``fashion-mnist, held out, 24 + 24 epochs``."""
    length = f", {given.float_epochs} + {given.epochs} epochs" if (given.float_epochs, given.epochs) != EPOCHS else ""
    return load_data(given.data).name + (", held out" if given.held_out else "") + length


def study(given: argparse.Namespace) -> None:
    """Train what is missing; a row is written as soon as it is there."""
    name, done = name_of(given), read(given.out)
    jobs = {
        (network, name, method, seed): (network, method, seed, given)
        for seed in range(given.seeds)
        for network in given.networks
        for method in (FLOAT, *given.methods)
        if (network, name, method, seed) not in done
    }
    with executor(given.workers, given.scheduler) as pool:
        for (network, _, method, seed), row in results(pool, measured, jobs):
            pages.append(given.out, COLUMNS, row)
            print(f"{network} {method} seed {seed}: {row['accuracy']:.2%}", file=sys.stderr)


def measured(network: str, method: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return a row. Wherever it is made, its float network is the same: what is trained follows from the seed."""
    torch.set_num_threads(1)
    more = 0 if method == FLOAT else METHODS[method].more_float
    epochs = given.epochs - more
    plain = Recipe(epochs=given.float_epochs + more, seed=seed, evaluate_every=0, **RECIPES.get(network, {}))
    data, teacher = float_network(network, given.data, given.images, given.held_out, plain)
    row = {"network": network, "data": name_of(given), "method": method, "seed": seed, "epochs": epochs}
    row |= {"images": given.images or "", "float_epochs": plain.epochs, "version": nce_fx.__version__}
    if method == FLOAT:
        return row | {"accuracy": nce_fx.training.evaluate(teacher, data), "moved": "", "step_ms": "nan"}
    return row | measure(teacher, data, method, replace(plain, epochs=epochs))


if __name__ == "__main__":
    main()
