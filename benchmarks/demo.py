"""Put the table of a demo run into the README: `nce-fx rewrite ... --out DIR`, then `python -m benchmarks.demo DIR`."""

from __future__ import annotations

import sys
from pathlib import Path

from nce_fx.artifacts import read_manifest
from nce_fx.report.tables import comparison_markdown

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- demo table -->", "<!-- end of demo table -->"


def main(directory: str) -> None:
    comparison = read_manifest(directory).comparison
    if comparison is None:
        raise SystemExit(f"{directory} has not been retrained: run nce-fx retrain {directory}")
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{comparison_markdown(comparison)}\n{END}{after}")


if __name__ == "__main__":
    main(sys.argv[1])
