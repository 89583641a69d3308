"""What phases would make of copies: python -m benchmarks.phases [--weights DIR] [--quick]

`nce_fx.resize` divides what reads a widened channel among its copies and parts them by noise. Phases part them by the
quantizer's step s instead: copy i of n gets w / n + s (i - (n - 1) / 2) / n. The moves sum to zero as noise does, so
the function is kept, and the sum of n quantized copies has levels n times as fine. Likewise the shift of a norm before
the copies, by the step of the activation that carries them: the function is then kept but near the corner of the ReLU.

ResNet-20 is trained on digits in float. Each group alone is widened, and what belongs to it is rounded to 2 bits: the
weights that make it, the activations that carry it, the weights that read it. How they are parted:

    copies       not at all: w / n
    noise        as `nce_fx.resize` does
    phases       the weights that read them, by phases
    both phases  and the shifts of norms

Errors of weights are those of what reads the group, of the sum over the copies; divergences are those of the output.
All are ratios to the group at its own width. Then all groups are doubled at once, quantized and trained, some seeds
each.
Rows go to benchmarks/results/phases.json, a table to docs/planning.md.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.sensitivity import NETWORKS, trained
from benchmarks.widening_noise import divergence, scores
from torch import Tensor, nn
from torch.fx import GraphModule

import nce_fx
from benchmarks import pages
from benchmarks.evidence.statistics import deviation, mean
from nce_fx.data import Data, load_data
from nce_fx.passes.analysis.channels.edits import Gather
from nce_fx.passes.transform.resize import gathers_of
from nce_fx.quantizers import WEIGHT_QUANTIZERS, ActivationQuantizer
from nce_fx.training import Recipe, train

RATIOS = (1.5, 2.0)
EPOCHS = (0, 1, 5, 20)
SEEDS = (0, 1, 2)
QUANTIZERS = ("sawb", "lsq")
PARTINGS = ("copies", "noise", "phases", "both phases")
RESULTS, PAGE = pages.RESULTS / "phases.json", pages.DOCS / "planning.md"
Widths = Mapping[str, int]


def places(gather: Gather) -> Tensor:
    """Return for each new entry of an axis where its copy stands between the others: (i - (n - 1) / 2) / n."""
    number = np.zeros(len(gather.index))
    for old in np.unique(gather.index):
        mine = np.flatnonzero(gather.index == old)
        number[mine] = (np.arange(len(mine)) - (len(mine) - 1) / 2) / len(mine)
    return torch.from_numpy(number).float()


def along(values: Tensor, axis: int, like: Tensor) -> Tensor:
    """Return values that lie along one axis of a tensor."""
    return values.view([-1 if each == axis else 1 for each in range(like.dim())])


def rounded(weight: Tensor, quantizer: str) -> tuple[Tensor, float]:
    """Return a weight on the levels of a quantizer of 2 bits that has just been started, and its step."""
    module = WEIGHT_QUANTIZERS[quantizer](2)
    module.start(weight)
    with torch.no_grad():
        value = module(weight)
    return value, float(module.step_size(weight))


@torch.no_grad()
def parted(gm: GraphModule, widths: Widths, parting: str, quantizer: str, seed: int = 0) -> GraphModule:
    """Return the network at other widths, its copies parted in one of the ways, but for the shifts of norms."""
    result = nce_fx.resize(gm, widths, seed=seed)
    if parting == "noise":
        return result
    gathers = gathers_of(gm, widths)
    old, new = dict(gm.named_parameters()), dict(result.named_parameters())
    for path in {path for (path, axis), gather in gathers.items() if axis >= 0 and gather.divisor is not None}:
        value, moves = old[path].detach(), []
        for axis in range(value.dim()):
            gather = gathers.get((path, axis))
            if gather is None:
                continue
            value = value.index_select(axis, torch.from_numpy(gather.index))
            if gather.divisor is not None:
                value = value / along(torch.from_numpy(gather.divisor).to(value), axis, value)
                moves.append(along(places(gather), axis, value))
        step = rounded(value, quantizer)[1] if parting != "copies" else 0.0
        new[path].copy_(value + step * sum(moves))
    return result


@torch.no_grad()
def shifted(gm: GraphModule, resized: GraphModule, widths: Widths, quantized: GraphModule) -> GraphModule:
    """Return the resized network with shifts of norms moved by phases of the step of what carries each group.

    Of several norms that write into one stream, the first is moved: what it adds goes through the others' sums.
    """
    result = copy.deepcopy(resized)
    for group in widths:
        for (path, axis), gather in gathers_of(gm, {group: widths[group]}).items():
            owner, _, name = path.rpartition(".")
            is_shift = axis == 0 and name == "bias" and isinstance(gm.get_submodule(owner), nn.BatchNorm2d)
            if is_shift and (moves := places(gather)).any():
                step = step_of(quantized, nce_fx.analyze_channels(gm)[group].consumers[0])
                result.get_parameter(path).add_(step * moves)
                break
    return result


def step_of(quantized: GraphModule, layer: str) -> float:
    """Return the step of the activation that a layer reads."""
    node = next(node for node in quantized.graph.nodes if node.name == layer.replace(".", "_"))
    module = quantized.get_submodule(str(node.args[0].target))
    assert isinstance(module, ActivationQuantizer)
    return float(module.scale())


def made(gm: GraphModule, widths: Widths, parting: str, spec: nce_fx.QuantSpec, batches: Any) -> GraphModule:
    """Return the network at other widths, parted in one of the ways, and quantized."""
    resized = parted(gm, widths, parting, spec.weight)
    quantized = nce_fx.quantize(resized, spec, batches)
    if parting == "both phases":
        quantized = nce_fx.quantize(shifted(gm, resized, widths, quantized), spec, batches)
    return quantized.eval()


@torch.no_grad()
def weight_error(gm: GraphModule, group: str, widths: Widths, parting: str, quantizer: str) -> float:
    """Return the squared error of the weights that read a group, their copies added up, over that at its own width."""
    resized = parted(gm, widths, parting, quantizer)
    squares = [0.0, 0.0]
    for (path, axis), gather in gathers_of(gm, widths).items():
        if gather.divisor is None:
            continue
        old, new = gm.get_parameter(path), rounded(resized.get_parameter(path).detach(), quantizer)[0]
        together = torch.zeros_like(old).index_add_(axis, torch.from_numpy(gather.index), new)
        for place, value in enumerate((together, rounded(old.detach(), quantizer)[0])):
            squares[place] += float((value - old).square().sum())
    return squares[0] / squares[1]


def only(channels: nce_fx.ChannelGraph, group: str) -> nce_fx.QuantSpec:
    """Return quantizers for what belongs to a group alone, of 2 bits."""
    overrides: dict[str, Any] = {path: {"weight_bits": 2} for path in channels[group].producers}
    overrides |= dict.fromkeys(channels[group].consumers, 2)
    rest: dict[str, Any] = {"weight_bits": None, "activation_bits": None, "first_last_bits": None}
    return nce_fx.QuantSpec(weight="sawb", activation="pact", shortcuts="quantized", overrides=overrides, **rest)


def group_rows(gm: GraphModule, data: Data, first: int | None) -> list[dict[str, Any]]:
    """Return a row a group: errors of weights and divergences by parting and ratio, at its own width 1."""
    channels = nce_fx.analyze_channels(gm)
    batches = data.batches(2, 128, seed=2)
    images = torch.cat([inputs for inputs, _ in batches])
    plain, rows = scores(gm, images), []
    for group in [each for each in channels if each.pinned is None][:first]:
        spec = only(channels, group.id)
        base = divergence(plain, nce_fx.quantize(gm, spec, batches).eval(), images)
        row: dict[str, Any] = {"group": group.id, "width": group.width, "divergence": base}
        double = {group.id: 2 * group.width}
        row["weights"] = {
            f"{parting}, {quantizer}": weight_error(gm, group.id, double, parting, quantizer)
            for parting in PARTINGS[:3]
            for quantizer in QUANTIZERS
        }
        row["network"] = {
            parting: [
                divergence(plain, made(gm, {group.id: int(ratio * group.width)}, parting, spec, batches), images) / base
                for ratio in RATIOS
            ]
            for parting in PARTINGS
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def trained_row(gm: GraphModule, data: Data, parting: str, epochs: int, seed: int) -> dict[str, Any]:
    """Return what comes of all groups doubled, parted in one of the ways, after so many epochs at 2 bits."""
    widths = {group.id: 2 * group.width for group in nce_fx.analyze_channels(gm) if group.pinned is None}
    spec = nce_fx.QuantSpec(weight="sawb", activation="pact", shortcuts="quantized")
    quantized = made(gm, widths, parting, spec, data.batches(2, 128, seed=seed))
    if epochs:
        recipe = Recipe(epochs=epochs, learning_rate=0.02, seed=seed, evaluate_every=0, warmup_epochs=0)
        accuracy = train(quantized, data, recipe, teacher=gm).accuracy
    else:
        accuracy = nce_fx.training.evaluate(quantized, data)
    return {"parting": parting, "epochs": epochs, "seed": seed, "accuracy": accuracy}


def group_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the medians over groups, and in how many of them width makes it quieter."""
    lines = [
        "| copies parted by | weights, SAWB | weights, LSQ | output 1.5x | output 2x | quieter at 2x |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for parting in PARTINGS:
        weights = [
            f"{median(r['weights'][f'{parting}, {q}'] for r in rows):.2f}" if parting in PARTINGS[:3] else ""
            for q in QUANTIZERS
        ]
        output = [median(row["network"][parting][place] for row in rows) for place in range(len(RATIOS))]
        falls = sum(row["network"][parting][-1] < 1 for row in rows)
        cells = [parting, *weights, *(f"{each:.2f}" for each in output), f"{falls} of {len(rows)}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def training_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return accuracies by parting and epochs: mean and deviation over seeds."""
    lines = [
        "| copies parted by | " + " | ".join(f"{epochs} epochs" for epochs in EPOCHS) + " | seeds |",
        "|---|" + "--:|" * (len(EPOCHS) + 1),
    ]
    for parting in PARTINGS:
        cells, seeds = [parting], 0
        for epochs in EPOCHS:
            found = [100 * r["accuracy"] for r in rows if (r["parting"], r["epochs"]) == (parting, epochs)]
            seeds = len(found)
            cells.append(f"{mean(found):.1f} ± {deviation(found):.1f} %" if len(found) > 1 else "")
        lines.append(f"| {' | '.join(cells)} | {seeds} |")
    return lines


def main() -> None:
    """Measure what is missing, keep it, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="the folder of benchmarks.sensitivity")
    parser.add_argument("--quick", action="store_true", help="one group and one epoch, nothing written")
    parser.add_argument("--table", action="store_true", help="measure nothing: the tables of what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.quick else {"groups": [], "trained": []}
    if not options.table:
        data = load_data("digits")
        gm, _ = trained("resnet20", data, NETWORKS["resnet20"][1], options.weights)
        measure(kept, gm, data, options.quick)
    tables = group_table(kept["groups"]), training_table(kept["trained"])
    if not options.quick:
        for name, lines in zip(("phases", "phases after training"), tables, strict=True):
            pages.put(PAGE, name, lines)
    print("\n".join([*tables[0], "", *tables[1]]))


def measure(kept: dict[str, Any], gm: GraphModule, data: Data, quick: bool) -> None:
    """Measure what is not kept yet, and write it down as it comes."""

    def write() -> None:
        if not quick:
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")

    if not kept["groups"]:
        kept["groups"] = group_rows(gm, data, 1 if quick else None)
        write()
    done = {(row["parting"], row["epochs"], row["seed"]) for row in kept["trained"]}
    for seed in SEEDS[: 1 if quick else None]:
        for epochs in EPOCHS[: 1 if quick else None]:
            for parting in PARTINGS:
                if (parting, epochs, seed) in done:
                    continue
                kept["trained"].append(trained_row(gm, data, parting, epochs, seed))
                print(json.dumps(kept["trained"][-1]), flush=True)
                write()


if __name__ == "__main__":
    main()
