"""Accuracy at 2 bits, held against brevitas: one graph, one recipe, and only the quantizers are exchanged.

    python -m benchmarks.brevitas_accuracy               trains what is missing, a row of the CSV at a time
    python -m benchmarks.brevitas_accuracy --table       prints the table of what is there, and puts it into the page

Digits, the split of ``nce_fx.data``. For every network and seed a float network is trained; from its weights, and
distilled from it, each quantized network is trained for as many epochs. First and last layer have 8 bits, shortcuts are
quantized, ranges are calibrated on the same batches. For brevitas every quantizer module of our graph is replaced by
brevitas' own nearest one, so places, bits and order of batches are the same:

    lsq            weights and activations: a learned scale (``PARAMETER_FROM_STATS``), the same integers as LSQ
    pact + sawb    weights: the symmetric scale of least squared error, taken anew in every forward pass;
                   activations: a learned scale
    dorefa         weights: the scale of the largest weight, all four levels; activations: the fixed range [0, 1]

brevitas' learned scales are in the log domain, as in its own ImageNet models, and gradients are clipped to a norm of 1
in all runs: without both, brevitas' learned scales end at chance or at NaN under this recipe. Of the variants tried for
each quantizer brevitas has the one that did best on the first seed of resnet8.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import nce_fx
from benchmarks import pages
from nce_fx.data import Data, load_data
from nce_fx.models import MODELS
from nce_fx.passes.transform.quantize import PUBLISHED
from nce_fx.quantizers import ActivationQuantizer, WeightQuantizer
from nce_fx.training import Recipe, train

RESULTS = pages.RESULTS / "brevitas_accuracy.csv"
PAGE = pages.DOCS / "training.md"
COLUMNS = ("network", "quantizers", "by", "seed", "epochs", "accuracy", "seconds")
NETWORKS = ("resnet8", "resnet20")
SPECS = {
    "lsq": nce_fx.QuantSpec("lsq", "lsq", shortcuts="quantized"),
    "pact + sawb": nce_fx.QuantSpec(**PUBLISHED),
    "dorefa": nce_fx.QuantSpec("dorefa", "dorefa", shortcuts="quantized"),
}
BY = ("nce-fx", "brevitas")
Key = tuple[str, str, str, int]


class BrevitasWeight(nn.Module):
    """brevitas' quantizer of one weight, as a module from weight to weight."""

    def __init__(self, weight: nn.Parameter, bits: int, name: str) -> None:
        super().__init__()
        from brevitas import nn as qnn
        from brevitas.quant.scaled_int import Int8WeightPerTensorFloat, Int8WeightPerTensorFloatMSE

        kind: Any = Int8WeightPerTensorFloatMSE if name == "pact + sawb" else Int8WeightPerTensorFloat
        options: dict[str, Any] = {}
        if name == "lsq":
            options = {"weight_scaling_impl_type": "parameter_from_stats", "weight_restrict_scaling_type": "log_fp"}
        if name != "pact + sawb":
            options["weight_narrow_range"] = False
        # The layer is there for its weight alone: statistics are those of the flattened weight.
        layer = qnn.QuantLinear(1, 1, False, weight_quant=kind, weight_bit_width=bits, **options)
        layer.weight = weight
        layer.weight_quant.init_tensor_quant()
        self.quantize = layer.weight_quant.tensor_quant

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize."""
        quantized: Tensor = self.quantize(weight)[0]
        return quantized


def brevitas_activation(quantizer: ActivationQuantizer, name: str) -> nn.Module:
    """Return brevitas' quantizer of one activation, for the same range (signed or unsigned)."""
    from brevitas import nn as qnn
    from brevitas.quant import scaled_int

    kind = scaled_int.Int8ActPerTensorFloat if quantizer.signed else scaled_int.Uint8ActPerTensorFloat
    fixed = {"scaling_impl_type": "const", "scaling_init": 1.0}
    options: dict[str, Any] = fixed if name == "dorefa" else {"restrict_scaling_type": "log_fp"}
    made: nn.Module = qnn.QuantIdentity(act_quant=kind, bit_width=quantizer.bits, **options)
    return made


def with_brevitas(gm: GraphModule, name: str, batches: Sequence[Any], of_batch: bool = False) -> GraphModule:
    """Put brevitas' quantizers in the place of ours, in place, and calibrate them.

    With ``of_batch`` BatchNorm calibrates by the statistics of the batch: by those of the float network the ranges of
    deep networks at 2 bits grow from layer to layer, and nothing is learned any more.
    """
    from brevitas.graph.calibrate import calibration_mode

    for path, module in list(gm.named_modules()):
        if isinstance(module, WeightQuantizer):
            weight = gm.get_parameter(path.removesuffix("_quant"))
            gm.set_submodule(path, BrevitasWeight(weight, module.bits, name))
        elif isinstance(module, ActivationQuantizer):
            gm.set_submodule(path, brevitas_activation(module, name))
    gm.train(of_batch)
    with torch.no_grad(), calibration_mode(gm):
        for inputs, _ in batches:
            gm(inputs)
    return gm.train()


def float_network(network: str, data: Data, epochs: int, seed: int) -> GraphModule:
    """Train the float network of one seed."""
    torch.manual_seed(seed)
    model = MODELS[network](num_classes=data.classes, in_channels=data.input_shape[0])
    gm = nce_fx.trace(model, (torch.zeros(1, *data.input_shape),))
    return train(gm, data, Recipe(epochs=epochs, seed=seed)).model


def measure(teacher: GraphModule, data: Data, name: str, by: str, epochs: int, seed: int) -> float:
    """Train one quantized network and return its accuracy on the test split."""
    batches = data.batches(8, 64, seed)
    student = nce_fx.quantize(teacher, SPECS[name], batches)
    if by == "brevitas":
        student = with_brevitas(student, name, batches)
    recipe = Recipe(epochs=epochs, seed=seed, clip_gradient=1.0)
    accuracy = train(student, data, recipe, teacher=teacher).accuracy
    assert accuracy is not None
    return accuracy


def read(path: Path) -> dict[Key, dict[str, str]]:
    """Return the rows of the CSV by what they are about."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {(row["network"], row["quantizers"], row["by"], int(row["seed"])): row for row in csv.DictReader(file)}


def append(path: Path, row: Sequence[Any]) -> None:
    """Write one row."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerow(row)


def table(rows: Mapping[Key, Mapping[str, str]]) -> str:
    """Return the comparison as a Markdown table: means and standard deviations over the seeds both have."""
    lines = [
        "| network | quantizers | nce-fx | brevitas' nearest | difference | seeds | epochs |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for network in NETWORKS:
        for name in SPECS:
            seeds = [seed for *_, seed in sorted(rows) if (network, name, BY[0], seed) in rows]
            seeds = sorted({seed for seed in seeds if (network, name, BY[1], seed) in rows})
            if len(seeds) < 2:
                continue
            found = {by: [100 * float(rows[network, name, by, s]["accuracy"]) for s in seeds] for by in BY}
            each = [f"{statistics.mean(v):.2f} ± {statistics.stdev(v):.2f} %" for v in found.values()]
            gaps = [ours - theirs for ours, theirs in zip(found[BY[0]], found[BY[1]], strict=True)]
            gap = f"{statistics.mean(gaps):+.2f}"
            epochs = rows[network, name, BY[0], seeds[0]]["epochs"]
            lines.append(f"| {network} | {name} | {each[0]} | {each[1]} | {gap} | {len(seeds)} | {epochs} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, then print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--networks", nargs="+", default=NETWORKS)
    options.add_argument("--quantizers", nargs="+", choices=SPECS, default=tuple(SPECS))
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--table", action="store_true", help="train nothing: the table of what is there")
    given = options.parse_args()
    torch.set_num_threads(1)
    if not given.table:
        data = load_data("digits")
        for seed in range(given.seeds):
            for network in given.networks:
                done = read(given.out)
                left = [(name, by) for name in given.quantizers for by in BY if (network, name, by, seed) not in done]
                if not left:
                    continue
                teacher = float_network(network, data, given.epochs, seed)
                for name, by in left:
                    begin = time.process_time()
                    accuracy = measure(teacher, data, name, by, given.epochs, seed)
                    seconds = round(time.process_time() - begin, 1)
                    append(given.out, (network, name, by, seed, given.epochs, accuracy, seconds))
                    print(f"{network} {name} {by} seed {seed}: {accuracy:.2%} in {seconds} s", file=sys.stderr)
    write_page(given.out)


def write_page(results: Path = RESULTS) -> None:
    """Put the table of what was measured into the page, and print it."""
    text = table(read(results))
    pages.put(PAGE, "brevitas table", [text])
    print(text)


if __name__ == "__main__":
    main()
