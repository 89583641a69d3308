"""What searches by a surface win on networks of the evidence: python -m benchmarks.surfaces [STUDY --seeds 100-105]

Each folder of benchmarks/results/surfaces has the tables of one search, networks.csv, surfaces.csv and finals.csv,
as `nce-fx search --method surface` writes them; `python -m benchmarks.evidence STUDY --only nce-surface` makes
them. Of a study that is named, the best candidate and uniform are trained with seeds that nothing was chosen by, as
every row of the evidence is; each is a line of fresh.csv, and what is there is not trained again. Then the table of
docs/search.md is written.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from benchmarks.part import some_images

from benchmarks import pages
from benchmarks.evidence.bench import Bench, Choice
from benchmarks.evidence.rows import refuse_dearer
from benchmarks.evidence.statistics import paired_p
from benchmarks.evidence.study import load_study
from nce_fx.data import load_data

PAGE = pages.DOCS / "search.md"
RESULTS = pages.RESULTS / "surfaces"
UNIFORM, BEST = "uniform", "best candidate"
COLUMNS = ("seed", "what", "accuracy", "macs", "params", "bit_ops", "weight_bytes", "activation_bytes")


def losses(row: dict[str, str]) -> list[float]:
    """Return the held-out losses of a row of finals.csv, one a seed."""
    return [float(value) for name, value in row.items() if name.startswith("loss_")]


def best_candidate(folder: Path) -> dict[str, str]:
    """Return the row of finals.csv of the least mean loss; the first is uniform's and takes no part."""
    return min(pages.rows(folder / "finals.csv")[1:], key=lambda row: statistics.mean(losses(row)))


def train(name: str, seeds: Sequence[int], results: Path, work: Path) -> None:
    """Train uniform and the best candidate with the seeds that are missing."""
    study, folder = load_study(name), results / name
    data = some_images(load_data(study.data, size=study.size), study.images)
    done = {(row["seed"], row["what"]) for row in pages.rows(folder / "fresh.csv")}
    for seed in seeds:
        bench = Bench(study, data, seed, work / name / str(seed))
        widths = bench.channels.widths
        best = {group: int(width) for group, width in best_candidate(folder).items() if group in widths}
        for what, moved in ((UNIFORM, {}), (BEST, best)):
            if (str(seed), what) in done:
                continue
            choice = Choice({**widths, **moved})
            refuse_dearer(bench, what, choice)
            gm, accuracy, _ = bench.low_precision_network(choice)
            costs = bench.cost_of(gm).cost
            row = {"seed": seed, "what": what, "accuracy": round(accuracy, 6)}
            pages.append(folder / "fresh.csv", COLUMNS, row | {key: costs[key] for key in COLUMNS[3:]})
            print(f"{name} seed {seed} {what}: {100 * accuracy:.2f} %", flush=True)


def line(folder: Path) -> str:
    """Return one search as a row of the page's table."""
    networks, surface = pages.rows(folder / "networks.csv"), pages.rows(folder / "surfaces.csv")[-1]
    centre, best = losses(pages.rows(folder / "finals.csv")[0]), losses(best_candidate(folder))
    error = float(surface["seeds"]) * math.sqrt(1 / len(centre) + 1 / len(best))
    cells = (
        folder.name,
        str(len(networks)),
        f"{sum(float(row['seconds']) for row in networks) / 60:.0f} min",
        f"{float(surface['seeds']):.3f}",
        f"{float(surface['explained']):.2f}",
        f"{statistics.mean(best) - statistics.mean(centre):+.3f} ± {error:.3f}",
        *_fresh(pages.rows(folder / "fresh.csv")),
    )
    return f"| {' | '.join(cells)} |"


def _fresh(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    found = {(row["seed"], row["what"]): 100 * float(row["accuracy"]) for row in rows}
    pairs = [(found[seed, BEST], found[seed, UNIFORM]) for seed, what in found if what == BEST]
    if not pairs:
        yield from ("", "", "", "0")
        return
    ours, theirs = (statistics.mean(each) for each in zip(*pairs, strict=True))
    yield from (f"{theirs:.2f} %", f"{ours - theirs:+.2f}", f"{paired_p(pairs):.3f}", str(len(pairs)))


def write_page(results: Path = RESULTS) -> None:
    """Put the table into the page."""
    heads = ["study", "networks", "of one core", "spread of seeds, loss", "explained, left out", "best candidate, loss"]
    heads += ["uniform, test", "best candidate to it, points", "p", "fresh seeds"]
    lines = [f"| {' | '.join(heads)} |", f"|---{'|--:' * (len(heads) - 1)}|"]
    pages.put(PAGE, "surfaces table", [*lines, *(line(folder) for folder in sorted(results.iterdir()))])


def main() -> None:
    """Train what is asked for, then write the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("study", nargs="?")
    options.add_argument("--seeds", default="100-105", help="the first and the last")
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--work", type=Path, default=Path("build/surfaces"))
    given = options.parse_args()
    torch.set_num_threads(1)
    if given.study:
        first, last = map(int, given.seeds.split("-"))
        train(given.study, range(first, last + 1), given.results, given.work)
    if given.results == RESULTS:
        write_page()


if __name__ == "__main__":
    main()
