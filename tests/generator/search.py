"""Look for programs that break a law: one random program a seed, every law on each, whatever breaks made small.

    python -m tests.generator.search 380 700 --log failures.txt    # goes on where it stopped, 540 seconds at a time

A failure is one line of the log: the seed, what was broken, and the program to paste into ``regressions.py``.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace
from pathlib import Path

import torch

from nce_fx.errors import one_line
from tests.generator import ENDS, KINDS, TAKES, Op, Program
from tests.test_generated import obeys_the_laws


def drawn(seed: int) -> Program:
    """Return the program of a seed: 3 to 30 operations."""
    rng = random.Random(seed)
    kinds = sorted({*KINDS, "again"})
    ops = tuple(
        Op(rng.choice(kinds), rng.choice([0, 0, 0, 1, 2, 3]), rng.randint(0, 5), rng.randint(0, 3), rng.randint(0, 3))
        for _ in range(rng.randint(3, 30))
    )
    return Program(ops, rng.choice(ENDS), rng.choice(TAKES))


def trouble(program: Program) -> str:
    """Return how a program breaks a law, or an empty string."""
    try:
        obeys_the_laws(program)
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)[:160]}"
    return ""


def smaller(program: Program, until: float) -> Program:
    """Leave out operations while what is left still breaks a law."""
    at = 0
    while at < len(program.ops) and time.monotonic() < until:
        without = replace(program, ops=program.ops[:at] + program.ops[at + 1 :])
        if trouble(without):
            program = without
        else:
            at += 1
    return program


def main() -> None:
    """Try the seeds of a range that the log does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int, help="the first seed that is left out")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    until = time.monotonic() + options.seconds
    options.log.touch()
    done = {int(line.split(":")[0]) for line in options.log.read_text().splitlines()}
    with options.log.open("a") as log:
        for seed in range(options.first, options.end):
            if time.monotonic() > until:
                break
            if seed in done:
                continue
            program = drawn(seed)
            broken = trouble(program)
            if broken:
                small = smaller(program, time.monotonic() + 60)
                print(f"{seed}: {trouble(small) or broken}: {small!r}", file=log, flush=True)
                print(f"{seed}: {trouble(small) or broken}: {small!r}", flush=True)
            else:
                print(f"{seed}: ok", file=log, flush=True)


if __name__ == "__main__":
    main()
