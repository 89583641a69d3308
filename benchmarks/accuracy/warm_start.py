"""What the float network's weights are worth in epochs: the same 2-bit network, from them and from scratch.

    python -m benchmarks.warm_start               trains what is missing, a row of the CSV at a time
    python -m benchmarks.warm_start --table       the table of what is there

Digits, resnet8, rewritten by `nce_fx.rewrite` at the original's cost; PACT + SAWB, 2 bits, first and last layer at 8,
distilled from the float network either way. Each number of epochs is a run of its own, with its own schedule.
"""

from __future__ import annotations

import argparse
import csv
import statistics

import torch
from benchmarks.brevitas_accuracy import float_network

import nce_fx
from benchmarks import pages
from nce_fx.data import load_data
from nce_fx.models import MODELS
from nce_fx.passes.transform.new_weights import from_scratch
from nce_fx.passes.transform.quantize import PUBLISHED
from nce_fx.training import Recipe, train

RESULTS = pages.RESULTS / "warm_start.csv"
PAGE = pages.DOCS / "training.md"
STARTS = ("warm", "scratch")
EPOCHS = (2, 5, 10, 20, 40)


def read() -> dict[tuple[str, int, int], float]:
    """Return (start, epochs, seed) -> accuracy."""
    if not RESULTS.exists():
        return {}
    with RESULTS.open(newline="") as file:
        rows = csv.DictReader(file)
        return {(row["start"], int(row["epochs"]), int(row["seed"])): float(row["accuracy"]) for row in rows}


def table(found: dict[tuple[str, int, int], float]) -> str:
    """Return means and standard deviations as Markdown."""
    lines = ["| epochs | from the widened float weights | from scratch | seeds |", "|--:|--:|--:|--:|"]
    for epochs in EPOCHS:
        seeds = [s for start, e, s in found if start == "warm" and e == epochs and ("scratch", e, s) in found]
        if seeds:
            values = [[100 * found[start, epochs, seed] for seed in seeds] for start in STARTS]
            spreads = [f" ± {statistics.stdev(v):.2f}" if len(v) > 1 else "" for v in values]
            cells = [f"{statistics.mean(v):.2f}{spread} %" for v, spread in zip(values, spreads, strict=True)]
            lines.append(f"| {epochs} | {cells[0]} | {cells[1]} | {len(seeds)} |")
    return "\n".join(lines)


def study(seeds: int, float_epochs: int) -> None:
    """Train what is missing."""
    data = load_data("digits")
    for seed in range(seeds):
        done = read()
        left = [(start, epochs) for epochs in EPOCHS for start in STARTS if (start, epochs, seed) not in done]
        if not left:
            continue
        teacher = float_network("resnet8", data, float_epochs, seed).eval()
        batches = data.batches(8, 64, seed)
        spec = nce_fx.QuantSpec(**PUBLISHED)
        example = (torch.zeros(1, *data.input_shape),)
        warm = nce_fx.rewrite(teacher, example, batches=batches, spec=spec, seed=seed).graph_module
        torch.manual_seed(seed)
        fresh = MODELS["resnet8"](num_classes=data.classes, in_channels=data.input_shape[0])
        begin = {"warm": warm, "scratch": from_scratch(warm, fresh, spec, batches, seed)}
        for start, epochs in left:
            network = begin[start].train()
            accuracy = train(network, data, Recipe(epochs=epochs, seed=seed), teacher=teacher).accuracy
            new = not RESULTS.exists()
            with RESULTS.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if new:
                    writer.writerow(("start", "epochs", "seed", "accuracy"))
                writer.writerow((start, epochs, seed, accuracy))


def main() -> None:
    """Train, and put the table into the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--float-epochs", type=int, default=20)
    options.add_argument("--table", action="store_true", help="train nothing")
    given = options.parse_args()
    torch.set_num_threads(1)
    if not given.table:
        study(given.seeds, given.float_epochs)
    write_page()


def write_page() -> None:
    """Put the table of what was measured into the page, and print it."""
    text = table(read())
    pages.put(PAGE, "warm start table", [text])
    print(text)


if __name__ == "__main__":
    main()
