"""Put the table of a demo run into the README: `nce-fx rewrite ... --out DIR`, then `python -m benchmarks.demo DIR`."""

from __future__ import annotations

import sys

from benchmarks import pages
from nce_fx.artifacts import read_manifest
from nce_fx.report.tables import result_rows

README = pages.ROOT / "README.md"


def main(directory: str) -> None:
    comparison = read_manifest(directory).comparison
    if comparison is None:
        raise SystemExit(f"{directory} has not been retrained: run nce-fx retrain {directory}")
    header, *rows = result_rows(comparison)
    rule = "|".join(["", "---", *["--:"] * (len(header) - 1), ""])
    pages.put(README, "demo table", [f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


if __name__ == "__main__":
    main(sys.argv[1])
