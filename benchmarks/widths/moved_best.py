"""What there is to win by moving widths: python -m benchmarks.moved_best [--seeds N] [--images N --epochs N ...]

A surface is fitted to every network that `python -m benchmarks.moved` has trained, and climbed within the budgets and
within what was trained, as `nce-fx search --method surface` does it. The best of it is trained with several seeds, and
the widths as they are with the same, where they were not yet; each is a row of networks.csv, of the kind ``surface`` or
``uniform``. Its widths are those of the first row of that kind, once there is one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from benchmarks.moved import RATIOS, Network, arguments_of, bench_of, read, study_of, train_missing
from benchmarks.moved_page import Networks, of_the_set, surface_of

from benchmarks import pages
from benchmarks.evidence.bench import Bench
from nce_fx.passes.planning.choices import Rules
from nce_fx.passes.planning.settings import Settings
from nce_fx.search.surface_fit import Region, best_of


def best_network(bench: Bench, networks: Networks) -> Network:
    """Return the best of the surface of trained networks."""
    settings = Settings.of(bench.cost, bench.budget, Rules(min(RATIOS) / 2, 2 * max(RATIOS)))
    surface, centre = surface_of(networks), np.zeros(len(networks.groups))
    # One group at a time was moved further than all together were.
    region = Region.of(networks.points[networks.equal], centre)
    best = best_of(surface, settings, region, [settings.original])
    promised = surface.level - float(surface(settings.logs(np.array([best])))[0])
    moved = f"of {len(networks.rows)} widths, promises {promised:.4f} less"
    return Network("surface", moved, {**bench.channels.widths, **settings.widths(best)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Find the best, or take it from the rows, and train it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = arguments_of(options, arguments)
    torch.set_num_threads(1)
    study = study_of(given)
    bench = bench_of(study, 0)
    rows: list[Mapping[str, str]] = [row for row in read(given.out).values() if row["network"] == study.network]
    found = [Network(row["kind"], row["moved"], json.loads(row["widths"])) for row in rows if row["kind"] == "surface"]
    if not found:
        known = pages.load(given.out.with_suffix(".json"))[study.network]
        found = [best_network(bench, Networks(of_the_set(rows), known))]
    uniform = Network("uniform", "", bench.channels.widths)
    train_missing(study, [(network, seed) for seed in range(given.seeds) for network in (found[0], uniform)], given)


if __name__ == "__main__":
    main()
