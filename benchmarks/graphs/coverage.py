"""Which layers of public vision models can be widened, and whether widening keeps what the models compute.

    python -m benchmarks.coverage --corpus torchvision            # goes on where it stopped
    python -m benchmarks.coverage --only 'resnet*' --again
    python -m benchmarks.coverage --corpus second --quick
    python -m benchmarks.coverage --table        # writes docs/coverage.md and docs/second_corpus.md

Each model runs in a process of its own, one after the other. Needs torchvision, timm and transformers for their models;
the second corpus the libraries that ``benchmarks.second_corpus`` names.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from benchmarks.coverage_table import write_table
from benchmarks.measure import measure
from benchmarks.second_table import write_table as write_second_table
from benchmarks.whole_way import whole_way

from benchmarks import pages, vision
from benchmarks.pages import load, save

_PATIENCE = 10
"""Seconds on the wall for each processor second, where other work shares the machine."""
RESULTS = pages.RESULTS / "coverage.json"
SECOND = pages.RESULTS / "second_corpus.json"


def main() -> None:
    """Run the models that were asked for, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="append", choices=vision.CORPORA, help="default: all of them")
    parser.add_argument("--only", nargs="+", default=["*"], help="names to run, with * and ?; in this order")
    parser.add_argument("--again", action="store_true", help="also run what has a result")
    parser.add_argument("--failed", action="store_true", help="also run what failed or timed out")
    parser.add_argument("--quick", action="store_true", help="one plan, laws 1, 5 and 6 alone: a third of the time")
    parser.add_argument("--whole-way", action="store_true", help="quantize, train, save, load, export what is ok")
    parser.add_argument("--small-first", action="store_true", help="those first that were traced quickest before")
    parser.add_argument("--timeout", type=float, default=240.0, help="processor seconds a model may take")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no model after so many seconds")
    parser.add_argument("--results", type=Path, help="default: what is committed of the corpus")
    parser.add_argument("--table", action="store_true", help="write the pages from the results, run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    last = time.perf_counter() + options.seconds
    if options.table:
        write_page()
        return
    for name in options.corpus or vision.CORPORA:
        path = options.results or (SECOND if name == "second" else RESULTS)
        results = load(path)
        vision.load(name)
        earlier = load(SECOND if name == "second" else RESULTS)
        keyed = [(_key(entry), entry) for entry in entries(name, options.only)]
        if options.small_first:
            keyed.sort(key=lambda each: sum(earlier.get(each[0], {}).get("seconds", (float("inf"),))))
        for key, entry in keyed:
            known = results.get(key)
            if time.perf_counter() > last:
                return
            if options.whole_way:
                if not known or known["status"] != "ok" or ("pipeline" in known and not options.again):
                    continue
                found = {**known, "pipeline": in_a_process(_whole_way, entry, options.timeout)["pipeline"]}
            elif known and not options.again and not (options.failed and known["status"] != "ok"):
                continue
            else:
                found = in_a_process(partial(measure, quick=options.quick), entry, options.timeout)
                found |= {"when": time.strftime("%Y-%m-%d %H:%M"), "revision": revision()}
            # Read again: another corpus may be running beside this one.
            results = load(path)
            results[key] = found
            save(path, results)
            print(one_line(key, results[key]), flush=True)


def _key(entry: vision.Entry) -> str:
    return entry.name if entry.corpus == "second" else f"{entry.corpus}/{entry.name}"


def write_page() -> None:
    """Write docs/coverage.md and docs/second_corpus.md from the results."""
    write_table(load(RESULTS))
    write_second_table(load(SECOND), load(pages.RESULTS / "second_corpus_before.json"))


def entries(corpus: str, patterns: list[str]) -> Iterator[vision.Entry]:
    """Yield the models of a corpus whose names match, those that match the first pattern first."""
    models = list(vision.corpus(corpus))
    seen: set[str] = set()
    for pattern in patterns:
        for entry in models:
            if fnmatch(entry.name, pattern) and entry.name not in seen:
                seen.add(entry.name)
                yield entry


Measure = Callable[[vision.Entry], Iterator[dict[str, Any]]]


def _whole_way(entry: vision.Entry) -> Iterator[dict[str, Any]]:
    return whole_way(entry.build, entry.inputs())


def in_a_process(measured: Measure, entry: vision.Entry, timeout: float) -> dict[str, Any]:
    """Measure one model in a forked process, which a model that hangs or eats the memory cannot outlive."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(measured, entry, sender, round(timeout)))
    begin = time.perf_counter()
    process.start()
    sender.close()
    result: dict[str, Any] = {"status": "timeout"}
    last = begin + _PATIENCE * timeout
    with contextlib.suppress(EOFError):
        while receiver.poll(max(0.0, last - time.perf_counter())):
            result = {**result, **receiver.recv()}
    if process.is_alive():
        process.kill()
    process.join()
    if result["status"] == "timeout" and process.exitcode != -signal.SIGXCPU:
        result["status"] = f"killed: exit {process.exitcode}"
    return {**result, "wall": round(time.perf_counter() - begin, 1)}


def _child(measured: Measure, entry: vision.Entry, sender: Connection, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    torch.set_num_threads(1)
    for found in measured(entry):
        sender.send(found)
    sender.close()
    os._exit(0)


@cache
def revision() -> str:
    """Return the commit that is measured."""
    command = ["git", "-C", str(pages.ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def one_line(key: str, result: dict[str, Any]) -> str:
    """Say in one line how a model fared."""
    layers = "".join(f" {kind} {result[kind][0]}/{result[kind][1]}" for kind in ("convs", "linears") if kind in result)
    error = max(result.get("errors") or [float("nan")])
    trouble = result.get("trouble", "")
    return (
        f"{key}: {result['status']}{layers} error {error:.1e} {result['wall']} s {result.get('traced', '')} {trouble}"
    )


if __name__ == "__main__":
    main()
