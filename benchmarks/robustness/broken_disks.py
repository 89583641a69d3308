"""Each long command on a full or read-only disk, in a folder that vanishes, beside itself, with a clock that jumps.

    python -m benchmarks.broken_disks                        as root: disks are small ones in memory, mounted for it
    python -m benchmarks.broken_disks --only "search;retrain"

A command ends well, or says one line and exits with 1. When the disk has room again, or can be written, the user's next
commands leave every byte, but for seconds, that a run leaves that nothing ever befell. Exits 1 where anything else was
seen.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.faults import COMMANDS, MODEL, Command, finished, import_all, left, prepared

from benchmarks import pages
from benchmarks.evidence.__main__ import main as evidence
from nce_fx.cli import app

REPORT = pages.RESULTS / "broken_disks.json"
FULL = (0.05, 0.5, 0.9)
"""How much of what a command writes there is room for."""
MOMENTS = (1, 3, 9)
"""At which of the files that a command opens for writing its result's folder vanishes."""
YEAR = 3.2e7


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    status: int
    text: str

    @property
    def wrong(self) -> str:
        """What is neither a good end nor one clear line."""
        lines = [line for line in self.text.splitlines() if line.startswith("nce-fx: ")]
        if "Traceback (most" in self.text:
            return f"traceback: {self.text.strip().splitlines()[-1][:200]}"
        if self.status not in (0, 1) or (self.status and len(lines) != 1):
            return f"exit {self.status}: {self.text[-200:]}"
        return ""


def started(arguments: tuple[str, ...], folder: Path, log: Path, first: Callable[[], None]) -> int:
    """Start a command as a user does, in a forked process, which does something else first; return its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.chdir(folder)
        out = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
        os.dup2(out, 1)
        os.dup2(out, 2)
        first()
        if arguments[0] == "evidence":
            evidence(list(arguments[1:]))
        else:
            app(list(arguments))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            print(f"nce-fx: {end.code}")
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def given(arguments: tuple[str, ...], folder: Path, log: Path, first: Callable[[], None] = lambda: None) -> Said:
    """Give a command and return how it ended."""
    status = os.waitpid(started(arguments, folder, log, first), 0)[1]
    return Said(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"))


@contextmanager
def disk(place: Path) -> Iterator[Path]:
    """Mount a small disk in memory; ``mount(place, "ro")`` and the like change it."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "none", place], check=True)
    try:
        yield place
    finally:
        os.sync()
        subprocess.run(["umount", "--lazy", place], check=True)


def remount(place: Path, options: str) -> None:
    """Change a disk that is mounted."""
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def size(folder: Path) -> int:
    """Return the bytes of all files, each in whole pages, as a disk in memory counts them."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


@dataclass
class Trial:
    """One command with the run that nothing befell."""

    name: str
    working: Path
    result: Path
    expected: dict[str, str]
    bytes: int
    """What the whole run wrote."""

    @property
    def command(self) -> Command:
        """The command and what follows it."""
        return COMMANDS[self.name]

    @property
    def log(self) -> Path:
        """Where the command's words go: not on the disk that is broken."""
        return self.working / "said.log"

    def lost(self, folder: Path, *, over: bool) -> str:
        """Go on as a user does, unless all is over; return which files differ from the run that nothing befell."""
        if not over:
            try:
                finished(self.command, folder)
            except SystemExit as failed:
                return f"going on: {failed}"
        # Files alone: what a command says goes to the log.
        found = left(folder, says=False)
        differ = sorted(
            path for path in found.keys() | self.expected.keys() if found.get(path) != self.expected.get(path)
        )
        return f"differ: {', '.join(differ)}" if differ else ""

    def on_a_bad_disk(self, options: str) -> tuple[Said, str]:
        """Run on a disk with other options than it needs, then give it what it needs."""
        with disk(self.working / "disk") as place:
            folder = prepared(self.command, place / "here", self.result)
            if options.startswith("full"):
                options = f"size={size(place) + int(float(options[5:]) * self.bytes) // 4096 * 4096 + 4096}"
            remount(place, options)
            said = given(self.command.first, folder, self.log)
            remount(place, "rw,size=100m")
            return said, self.lost(folder, over=not said.status)

    def vanishing(self, moment: int) -> tuple[Said, str]:
        """Remove the result's folder when the n-th file is opened for writing below the folder."""
        folder = prepared(self.command, self.working / "vanishes", self.result)
        said = given(self.command.first, folder, self.log, lambda: sys.addaudithook(Vanishing(folder, moment)))
        # What a command was given is gone; what it made itself is there, or it said that it could not.
        return said, self.lost(folder, over=True) if said.status == 0 and not self.command.needs_result else ""

    def twice(self) -> tuple[Said, str]:
        """Give the command twice at once; the one that is refused says so, and the other is whole."""
        folder = prepared(self.command, self.working / "twice", self.result)
        logs = [self.working / f"said{k}.log" for k in (1, 2)]
        children = [started(self.command.first, folder, log, lambda: None) for log in logs]
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        both = [Said(end, log.read_text(errors="replace")) for end, log in zip(ends, logs, strict=True)]
        worst = max(both, key=lambda said: (bool(said.wrong), said.status))
        return worst, self.lost(folder, over=0 in ends)

    def jumping(self) -> tuple[Said, str]:
        """Let the clock on the wall jump by up to a year, forth and back, whenever it is asked."""
        folder, now = prepared(self.command, self.working / "clock", self.result), time.time
        chance = random.Random(0)

        def first() -> None:
            time.time = lambda: now() + chance.uniform(-YEAR, YEAR)
            time.time_ns = lambda: int(time.time() * 1e9)

        said = given(self.command.first, folder, self.log, first)
        return said, self.lost(folder, over=not said.status)


class Vanishing:
    """An audit hook that counts the files opened for writing below a folder, and removes ``out`` at one of them."""

    def __init__(self, folder: Path, moment: int) -> None:
        self.below, self.moment, self.count = str(folder), moment, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Notice one call of the system."""
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = os.path.abspath(os.fsdecode(arguments[0])) if isinstance(arguments[0], str | bytes) else ""
            self.count += path.startswith(self.below)
            if self.count == self.moment:
                self.count += 1
                for name in ("out", "work"):
                    shutil.rmtree(Path(self.below) / name, ignore_errors=True)


def trial(name: str, working: Path) -> Trial:
    """Run a command once whole."""
    command, result = COMMANDS[name], working / "result"
    if command.needs_result and not result.exists():
        prepared(COMMANDS["analyze"], result, result)
        finished(Command(("rewrite", *MODEL, "--out", "out")), result)
    whole = prepared(command, working / "whole", result)
    before = size(whole)
    finished(command, whole)
    return Trial(name, working, result, left(whole, says=False), max(8192, size(whole) - before))


def ends(one: Trial) -> Iterator[tuple[str, Said, str]]:
    """Yield each fault with how the command ended and what was lost."""
    for share in FULL:
        yield "full disk", *one.on_a_bad_disk(f"full {share}")
    yield "read-only disk", *one.on_a_bad_disk("ro")
    for moment in MOMENTS:
        yield "vanishing folder", *one.vanishing(moment)
    yield "two at once", *one.twice()
    yield "jumping clock", *one.jumping()


def main() -> None:
    """Run every fault on every command that is asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", help=f"commands, with semicolons between: {'; '.join(COMMANDS)}")
    asked = options.parse_args()
    torch.set_num_threads(1)
    import_all()
    results = pages.load(REPORT)
    with tempfile.TemporaryDirectory() as working:
        for name in asked.only.split(";") if asked.only else COMMANDS:
            one, found, wrong = trial(name, Path(working)), Counter[str](), []
            for fault, said, lost in ends(one):
                end = "refused" if said.status else "done"
                found[f"{fault}: {end}"] += 1
                if said.wrong or lost:
                    wrong.append(f"{fault}: {said.wrong or lost}")
                words = next((line for line in said.text.splitlines() if line.startswith("nce-fx: ")), "")
                print(f"{name} | {fault} | {end} | {words[:160]} | {said.wrong or lost}", flush=True)
            results[name] = {"ends": dict(sorted(found.items())), "wrong": wrong}
            pages.save(REPORT, results)
    sys.exit(any(row["wrong"] for row in results.values()))


if __name__ == "__main__":
    main()
