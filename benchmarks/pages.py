"""Where results and pages are, and how they are written."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"


def load(path: Path) -> dict[str, Any]:
    """Read earlier results, or none."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def save(path: Path, results: Mapping[str, Any]) -> None:
    """Write the results whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    text = json.dumps(dict(sorted(results.items())), indent=1)
    # Source lines count from their packages, wherever those are installed.
    part.write_text(re.sub(r"/[\w./-]*/(?:site-packages|python3\.\d+)/", "", text).replace(f"{ROOT}/", "") + "\n")
    part.replace(path)


def append(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Write one row of a CSV, at once: several processes may write to one file."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV by the names of its columns; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def put(page: Path, name: str, lines: Iterable[str]) -> None:
    """Replace what stands between the two marks of a name, ``<!-- name -->`` and ``<!-- end of name -->``."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, mark, rest = page.read_text().partition(begin)
    _, closing, after = rest.partition(end)
    if not mark or not closing:
        raise SystemExit(f"{page} has no place for the {name}: add {begin} and {end}")
    page.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}")
