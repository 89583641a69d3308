"""Make the evidence: python -m benchmarks.evidence [STUDY ...] [--only ROW,...] [--seeds N] [--ablation NAME] [--table]

A study is a file in benchmarks/recipes/ (by its name) or a path to such a file; without one, those of docs/results.md
are run. Every run becomes a line of evidence.csv (ablations.csv with --ablation) as soon as it is done; what is there
is not run again, what was stopped goes on. In the end docs/results.md and its pictures are written from the tables;
with --table nothing else is done. The device is a GPU where there is one.

    python -m benchmarks.evidence                                         # everything that is missing
    python -m benchmarks.evidence digits-resnet20 --only uniform,nce-plan --seeds 10
    python -m benchmarks.evidence cifar10-resnet20 --data cifar10:DIR
    python -m benchmarks.evidence --workers 4                             # in four processes
    python -m benchmarks.evidence --scheduler tcp://head:8786             # on a cluster of dask's
    torchrun --nproc-per-node 8 -m benchmarks.evidence imagenet-resnet18 --data imagefolder:DIR
    python -m benchmarks.evidence digits-resnet20 --ablation threshold --seeds 3
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence import records
from benchmarks.evidence.ablations import ABLATIONS, Variant
from benchmarks.evidence.bench import Bench
from benchmarks.evidence.front import FRONTS, front_table
from benchmarks.evidence.records import Run, Widths
from benchmarks.evidence.report import write_report
from benchmarks.evidence.rows import ROWS, run_row
from benchmarks.evidence.study import DEFAULT, Study, load_study
from benchmarks.pages import DOCS, RESULTS, ROOT, put
from benchmarks.part import some_images
from nce_fx.data import Data, load_data
from nce_fx.errors import InputError, NceFxError
from nce_fx.executor import executor, results
from nce_fx.processes import start_engine
from nce_fx.version import __version__

Task = tuple[Variant, records.Key, str]
"""What to run, the key of its line, and the command that makes the line again."""
WORK = ROOT / ".evidence"
COSTS = ("macs", "params", "bit_ops", "weight_bytes", "activation_bytes")


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY")
    parser.add_argument("--data", help="the data instead of the study's own, such as cifar10:DIR")
    parser.add_argument("--only", help=f"rows, with commas between: {', '.join(ROWS)}")
    parser.add_argument(
        "--seeds", help="how many seeds from 0, or one range such as 3-5; by default the study's number"
    )
    parser.add_argument("--ablation", choices=ABLATIONS, help="run the variants of an ablation instead")
    parser.add_argument("--epochs", type=int, help="train and search for so long instead: for a first try")
    parser.add_argument("--table", action="store_true", help="only write docs/results.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the tables")
    parser.add_argument("--report", type=Path, default=DOCS / "results.md", help="the report to write")
    parser.add_argument("--work", type=Path, default=WORK, help="the folder of the checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU, in each process")
    parser.add_argument("--workers", type=int, default=1, help="processes of this machine, a seed at a time each")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of dask, such as tcp://head:8786, instead of them")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        if not options.table:
            run(options)
        if start_engine().is_main:
            write_page(options.results, options.report)
    except NceFxError as error:
        raise SystemExit(f"error: {error}") from error


def write_page(results: Path = RESULTS, report: Path = DOCS / "results.md") -> None:
    """Write docs/results.md and its pictures, and with them the README's tables."""
    write_report(results, report)
    if report == DOCS / "results.md":
        for place, front in FRONTS.items():
            put(ROOT / "README.md", place, front_table(results, front))


def run(options: argparse.Namespace) -> None:
    """Run every row of every study that is not in the table: seed by seed, so that whole comparisons end early."""
    table = options.results / ("ablations.csv" if options.ablation else "evidence.csv")
    with executor(options.workers, options.scheduler) as pool:
        for name in options.studies or DEFAULT:
            study = named(name, options)
            about = study.network, data_name(load_data(study.data, size=study.size))
            jobs: dict[tuple[Any, ...], tuple[Study, list[Task], Path, int]] = {}
            for seed in seeds_of(options.seeds, study.seeds):
                for variant in variants_of(options):
                    row = variant.name if options.ablation else variant.row
                    record = (*about, row, seed, records.OWN_WIDTHS)
                    if is_done(table, record, study.with_changes(variant.changes).digest()):
                        continue
                    made = "python -m benchmarks.evidence " + command_of(name, variant, seed, options)
                    # The rows of a seed share a folder of checkpoints: elsewhere one process runs them all.
                    job = jobs.setdefault(
                        (seed, row) if pool is None else (seed,), (study, [], options.work, options.threads)
                    )
                    job[1].append((variant, record, made))
            for _, lines in results(pool, run_rows, jobs):
                if start_engine().is_main:
                    for run, widths in lines:
                        write(table, run, widths)


def is_done(table: Path, record: records.Key, digest: str) -> bool:
    """Return whether a table has a run.

    Raises:
        InputError: it has, by another recipe: the two must not be mixed.
    """
    found = next((run for run in records.read(table, Run) if records.key(run) == record), None)
    if found is not None and not found.version.endswith(digest):
        raise InputError(
            f"{table.name} has {', '.join(map(str, record))} by another recipe ({found.version}, not {digest}):"
            " remove the lines of that network and data, or put the recipe back"
        )
    return found is not None


def run_rows(study: Study, tasks: list[Task], work: Path, threads: int) -> list[tuple[Run, Widths]]:
    """Run rows one after another and return their lines."""
    torch.set_num_threads(threads)
    data = some_images(load_data(study.data, size=study.size), study.images)
    return [run_one(study, data, *task, work) for task in tasks]


def run_one(study: Study, data: Data, variant: Variant, key: records.Key, made: str, work: Path) -> tuple[Run, Widths]:
    """Run one row and return its lines."""
    changed = study.with_changes(variant.changes)
    about: tuple[Any, ...] = key[:4]
    bench = Bench(changed, data, key[3], work / f"{changed.name}-{changed.digest()}" / str(key[3]))
    outcome = run_row(bench, variant.row)
    costs: dict[str, Any] = {name: outcome.cost.cost[name] for name in COSTS}
    run = Run(
        *about,
        accuracy=round(outcome.accuracy, 6),
        **costs,
        search_seconds=outcome.search_seconds,
        train_seconds=outcome.train_seconds,
        device=start_engine().device.type,
        command=made,
        version=f"{version()}.{changed.digest()}",
    )
    before = bench.channels.widths
    widths = " ".join(f"{group}={before[group]}>{width}" for group, width in outcome.widths.items())
    return run, Widths(*about, widths=widths)


def write(table: Path, run: Run, widths: Widths) -> None:
    """Put the lines of one row into the tables, and say so."""
    records.add(table.with_name("widths.csv"), widths)
    records.add(table, run)
    print(
        f"{run.network} {run.data} seed {run.seed} {run.row}: {100 * run.accuracy:.2f} %"
        f"  {run.macs:,} MACs  {run.params:,} parameters  {run.bit_ops:,} bit operations  {run.weight_bytes:,} bytes"
        f"  {run.search_seconds} + {run.train_seconds} s",
        flush=True,
    )


def named(name: str, options: argparse.Namespace) -> Study:
    """Return a study with what the command line changes."""
    study = load_study(name)
    changes: dict[str, object] = {}
    if options.data:
        changes["data"] = options.data
    if options.epochs:
        epochs = {"epochs": options.epochs}
        warmup = {"warmup_epochs": min(options.epochs - 1, study.searching(0).warmup_epochs)}
        changes |= {"float_recipe": epochs, "retrain": epochs, "search": {**epochs, **warmup}}
    return study.with_changes(changes)


def variants_of(options: argparse.Namespace) -> Iterator[Variant]:
    """Return the rows to run, or the variants of the ablation.

    Raises:
        SystemExit: an unknown row.
    """
    every = ABLATIONS[options.ablation] if options.ablation else [Variant(row, "", {}) for row in ROWS]
    # The commas within a variant's own brackets part no rows.
    wanted = re.split(r",(?![^\[]*\])", options.only) if options.only else None
    names = {name for variant in every for name in ({variant.row, variant.name} if options.ablation else {variant.row})}
    unknown = sorted(set(wanted or ()) - {*ROWS, *names})
    if unknown:
        raise SystemExit(f"error: no row {unknown[0]!r}: there are {', '.join(dict.fromkeys((*ROWS, *sorted(names))))}")
    return (variant for variant in every if wanted is None or variant.row in wanted or variant.name in wanted)


def seeds_of(text: str | None, number: int) -> range:
    """Return the seeds that ``--seeds`` asks for."""
    first, dash, last = (text or str(number)).partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first))


def command_of(name: str, variant: Variant, seed: int, options: argparse.Namespace) -> str:
    """Return the arguments that make one line again."""
    only = f"'{variant.name}'" if options.ablation else variant.row
    parts = [name, f"--only {only}", f"--seeds {seed}-{seed}"]
    parts += [f"--{flag} {getattr(options, flag)}" for flag in ("ablation", "epochs") if getattr(options, flag)]
    # A folder is the user's own business.
    parts += [f"--data {options.data.partition(':')[0]}:DIR"] if options.data else []
    return " ".join(parts)


def data_name(data: Data) -> str:
    """Return how tables name the data."""
    return data.name.rpartition(":")[2]


def version() -> str:
    """Return the version, with the commit where there is one."""
    found = subprocess.run(["git", "describe", "--always", "--exclude=*"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        return f"{__version__}+"
    # What the command itself writes is no change of the program.
    code = ["git", "diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results", ":!docs"]
    changed = "-changed" if subprocess.run(code, cwd=ROOT, check=False).returncode else ""
    return f"{__version__}+g{found.stdout.strip()}{changed}"


if __name__ == "__main__":
    main(sys.argv[1:])
