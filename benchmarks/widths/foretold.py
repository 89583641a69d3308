"""What plans promise: python -m benchmarks.foretold [STUDY ...] [--work FOLDER]

For every seed of the evidence, once its float network is trained and before anything else is: the noise that the
planner predicts of its own plan, as a share of that at the original widths; and what it predicts for the widths of
every other row, at several exponents of its law. docs/planning.md sets both beside the accuracy that came of it.
benchmarks/results/foretold.json gets a line a seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.__main__ import WORK, data_name
from benchmarks.evidence.bench import Bench
from benchmarks.evidence.records import RESIZED, Widths, read
from benchmarks.evidence.study import RECIPES, load_study
from benchmarks.pages import RESULTS
from nce_fx.data import load_data
from nce_fx.passes.planning.choices import Rules, legal_choices, sensitivity_of
from nce_fx.rewrite import plan_analyzed

FILE = RESULTS / "foretold.json"
EXPONENTS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
MOVED = ("nce-plan", "nce-search", "random", "shuffled", "no-expand", "float-search")
"""Rows whose widths are not the original ones."""


def main() -> None:
    """Measure the studies named, or all on digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY")
    parser.add_argument("--work", type=Path, default=WORK, help="where the evidence keeps its checkpoints")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    if FILE.exists():
        lines = {(line["study"], line["seed"]): line for line in json.loads(FILE.read_text())}
    widths = read(RESULTS / "widths.csv", Widths)
    for name in options.studies or sorted(path.stem for path in RECIPES.glob("digits-*.json")):
        study = load_study(name)
        data = load_data(study.data, size=study.size)
        mine = [w for w in widths if (w.network, w.data, w.trained) == (study.network, data_name(data), RESIZED)]
        mine = [w for w in mine if w.row in MOVED]
        for seed in sorted({each.seed for each in mine}):
            bench = Bench(study, data, seed, options.work / f"{study.name}-{study.digest()}" / str(seed))
            lines[name, seed] = {"study": name, "network": study.network, "data": data_name(data), "seed": seed}
            lines[name, seed] |= measured(bench, {each.row: each.pairs() for each in mine if each.seed == seed})
            print(name, seed, lines[name, seed]["noise"], flush=True)
            FILE.write_text(json.dumps([lines[key] for key in sorted(lines)], indent=1) + "\n")


def measured(bench: Bench, rows: dict[str, dict[str, tuple[int, int]]]) -> dict[str, Any]:
    """Return the noise of the plan, and that of each row's widths (group -> before, after) at every exponent."""
    analyses = bench.analyses
    choices = legal_choices(bench.channels, Rules())
    scores = sensitivity_of(choices, analyses.sensitivity.by_group)

    def noise(widths: dict[str, tuple[int, int]], exponent: float) -> float:
        ratios = np.array([widths[group.id][1] / widths[group.id][0] for group in choices.groups])
        return round(float(scores @ ratios**-exponent / scores.sum()), 6)

    return {
        "noise": round(plan_analyzed(analyses, bench.budget).predicted_noise or 1.0, 6),
        "rows": {row: {f"{p:g}": noise(widths, p) for p in EXPONENTS} for row, widths in rows.items()},
    }


if __name__ == "__main__":
    main()
