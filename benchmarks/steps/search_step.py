"""What a step of the search costs, as a ratio to a plain quantized training step at the widest candidates.

    python -m benchmarks.search_step

A search step is a step on the weights and a step on the widths, each on a batch of its own of the same size. One
thread; the two networks take turns, in another order every round; the figure is the median over the rounds of
(search / plain), in CPU time of the process, so that other programs on the machine disturb it less. 2-bit PACT + SAWB,
first and last layer at 8 bits, five candidates a group. The networks are widened first, as expansions would leave them.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from benchmarks.training_step import in_turns, ratios, show

import nce_fx
from benchmarks import pages
from nce_fx.data.loaders import BatchDataset, Data
from nce_fx.models import MODELS
from nce_fx.passes.transform.quantize import PUBLISHED
from nce_fx.passes.transform.widths import InsertWidthChoices, Mixing, channel_order
from nce_fx.processes import start_engine
from nce_fx.search import SearchRecipe
from nce_fx.search.expansion import first_candidates
from nce_fx.search.width_search import WidthSearch
from nce_fx.training.loop import train_step
from nce_fx.training.run import prepare

NETWORKS = {"resnet20": (32, 32), "resnet8": (64, 8), "mobilenet_v2": (16, 32)}
"""Name -> batch size, image size."""

MIXINGS: tuple[Mixing, ...] = ("zeros", "interpolate")
PAGE = pages.DOCS / "search.md"
RESULTS = pages.RESULTS / "search_step.json"


class Noise(BatchDataset):
    """Images without meaning."""

    def __init__(self, count: int, size: int) -> None:
        self.x, self.y = torch.randn(count, 3, size, size), torch.randint(0, 10, (count,))

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, indices: Any) -> Any:
        return self.x[indices], self.y[indices]


def steps_of(name: str, batch: int, size: int, mixing: Mixing) -> dict[str, Callable[[], None]]:
    """Return a plain quantized step and a search step of the same network at the same batch."""
    torch.manual_seed(0)
    noise = Noise(4 * batch, size)
    data = Data("noise", noise, noise, (3, size, size), 10)
    gm = nce_fx.trace(MODELS[name](num_classes=10).train(), (torch.randn(1, 3, size, size),))
    free = [group for group in nce_fx.analyze_channels(gm) if group.pinned is None]
    wide = nce_fx.resize(gm, {g.id: g.width + max(1, g.width // 4 // g.step) * g.step for g in free})
    recipe = SearchRecipe(epochs=2, warmup_epochs=0, batch_size=batch, mixing=mixing)
    channels, cost, spec = nce_fx.analyze_channels(wide), nce_fx.analyze_cost(wide), nce_fx.QuantSpec(**PUBLISHED)
    plain = nce_fx.quantize(wide, spec, data.batches(1, batch))
    candidates, order = first_candidates(channels, recipe).candidates, channel_order(wide)
    callback = WidthSearch(data, cost, candidates, order, recipe, nce_fx.Budget(macs=0.7, params=0.7), spec)
    network = InsertWidthChoices(candidates, order, mixing)(plain).graph_module
    engine = start_engine()
    alone = prepare(plain, data, recipe.training(), None, engine, None, None)
    both = prepare(network, data, recipe.training(), None, engine, None, None, callback)
    callback.before_epoch(both)
    one = noise.__getitems__(range(batch))
    callback.batches = repeat(one)

    def search() -> None:
        callback.before_step(both)
        train_step(both, one, 0.01, 0, False)
        callback.after_step(both)

    def train() -> None:
        train_step(alone, one, 0.01, 0, False)

    return {"plain": train, "search": search}


def main() -> None:
    """Measure, print, and write the JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    options.add_argument("--out", type=Path, default=RESULTS)
    given = options.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": {"processor": platform.machine(), "torch": torch.__version__, "threads": 1}}
    for name in given.networks:
        batch, size = NETWORKS[name]
        mixed = {}
        for mixing in MIXINGS:
            steps = steps_of(name, batch, size, mixing)
            mixed[mixing] = ratios(in_turns(steps, given.rounds), "plain")["search"]
        found[name] = {"batch": batch, "size": size, **mixed}
        show(f"{name}, batch {batch}x3x{size}x{size}: search step, ratio to plain", mixed)
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    write_page(given.out)
    print(f"\nwrote {given.out} and the table in {PAGE}")


def write_page(results: Path = RESULTS) -> None:
    """Put the figures into docs/search.md."""
    found = pages.load(results)
    rows = ["| network | batch | padded with zeros | interpolated |", "|---|---|--:|--:|"]
    for name in NETWORKS:
        if name in found:
            own = found[name]
            ratio = [f"{own[mixing]['ratio']:.2f}" for mixing in MIXINGS]
            rows.append(f"| {name} | {own['batch']}x3x{own['size']}x{own['size']} | {ratio[0]} | {ratio[1]} |")
    pages.put(PAGE, "search step table", rows)


if __name__ == "__main__":
    main()
