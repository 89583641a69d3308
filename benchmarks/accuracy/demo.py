"""Put the table of the demo into the README: `nce-fx rewrite ... --out DIR`, then `python -m benchmarks.demo DIR...`.

Several folders are several seeds of one command: accuracies are means with deviations, costs the greatest of any seed;
a line under the table has the better uniform network of each seed, which is the rival of the command's own verdict.
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


def against_the_better(comparisons: Sequence[Comparison]) -> str:
    """Return in words how the rewritten network stands to the better uniform one of the same seed."""
    of_seed = [{row.network: 100 * float(row.accuracy or 0.0) for row in each.rows} for each in comparisons]
    rivals = [max(value for name, value in each.items() if name.startswith("uniform")) for each in of_seed]
    ahead = sum(each["NCE 2-bit"] > rival for each, rival in zip(of_seed, rivals, strict=True))
    spread = f" ± {statistics.stdev(rivals):.1f}" if len(rivals) > 1 else ""
    return (
        f"The better uniform network of each seed has {statistics.mean(rivals):.1f}{spread} %;"
        f" NCE is ahead with {ahead} of {len(rivals)}."
    )


def main(directories: Sequence[str]) -> None:
    comparisons = [comparison_of(directory) for directory in directories]
    header, *rows = over_seeds(comparisons)
    rule = "|".join(["", "---", *["--:"] * (len(header) - 1), ""])
    table = [f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]
    pages.put(README, "demo table", [*table, "", against_the_better(comparisons)])


if __name__ == "__main__":
    main(sys.argv[1:])
