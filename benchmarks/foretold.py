"""What plans promise: python -m benchmarks.foretold [STUDY ...] [--seeds N] [--work FOLDER]

The noise that the planner predicts of its own plan, as a share of that at the original widths, for the networks of the
evidence: known in seconds, before anything is retrained. benchmarks/results/foretold.json gets a line a study;
docs/planning.md sets it beside the accuracy that was gained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.__main__ import WORK, data_name
from benchmarks.evidence.records import RESULTS
from benchmarks.evidence.rows import Bench, planned
from benchmarks.evidence.study import RECIPES, Study, load_study
from nce_fx.data import load_data

FILE = RESULTS / "foretold.json"


def main() -> None:
    """Measure the studies named, or all on digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY")
    parser.add_argument("--seeds", type=int, default=3, help="how many trained networks of each study")
    parser.add_argument("--work", type=Path, default=WORK, help="where the evidence keeps its checkpoints")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.studies or sorted(path.stem for path in RECIPES.glob("digits-*.json"))
    lines = {line["study"]: line for line in (json.loads(FILE.read_text()) if FILE.exists() else [])}
    for name in names:
        lines[name] = measured(load_study(name), options.seeds, options.work)
        print(name, lines[name]["noise"], flush=True)
        FILE.write_text(json.dumps(sorted(lines.values(), key=lambda line: line["study"]), indent=1) + "\n")


def measured(study: Study, seeds: int, work: Path) -> dict[str, Any]:
    """Return the line of one study; its float networks are trained where the evidence has not done so."""
    data = load_data(study.data, size=study.size)
    benches = [Bench(study, data, seed, work / f"{study.name}-{study.digest()}" / str(seed)) for seed in range(seeds)]
    noise = [planned(bench).predicted_noise for bench in benches]
    return {"study": study.name, "network": study.network, "data": data_name(data), "noise": noise}


if __name__ == "__main__":
    main()
