"""Put the table of the demo into the README: `nce-fx rewrite ... --out DIR`, then `python -m benchmarks.demo DIR...`.

Several folders are several seeds of one command: accuracies are means with deviations, costs the greatest of any seed.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

from benchmarks import pages
from nce_fx.artifacts import read_manifest
from nce_fx.report.records import Comparison
from nce_fx.report.tables import result_rows

README = pages.ROOT / "README.md"


def comparison_of(directory: str) -> Comparison:
    comparison = read_manifest(directory).comparison
    if comparison is None:
        raise SystemExit(f"{directory} has not been retrained: run nce-fx retrain {directory}")
    return comparison


def over_seeds(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Return the last table, header first: accuracies as means over the seeds, costs as the greatest of any."""
    largest = [
        type(row)(
            **row.model_dump() | {name: max(each.rows[i].cost[name] for each in comparisons) for name in row.cost}
        )
        for i, row in enumerate(comparisons[0].rows)
    ]
    header, *rows = result_rows(comparisons[0].model_copy(update={"rows": tuple(largest)}))
    if len(comparisons) == 1:
        return [header, *rows]
    found = [[100 * float(each.rows[i].accuracy or 0.0) for each in comparisons] for i in range(len(rows))]
    shown = [f"{statistics.mean(own):.1f} ± {statistics.stdev(own):.1f} %" for own in found]
    return [header, *((name, mean, *costs) for (name, _, *costs), mean in zip(rows, shown, strict=True))]


def main(directories: Sequence[str]) -> None:
    header, *rows = over_seeds([comparison_of(directory) for directory in directories])
    rule = "|".join(["", "---", *["--:"] * (len(header) - 1), ""])
    pages.put(README, "demo table", [f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


if __name__ == "__main__":
    main(sys.argv[1:])
