"""Stop each long command with SIGKILL at random moments: in the end it leaves what it leaves when it is never stopped.

    python -m benchmarks.faults --kills 20          each command until it was killed so often; goes on where it stopped
    python -m benchmarks.faults --only "search;retrain"

After each kill the user's next command is given: the same again, or `nce-fx retrain DIR` where a rewrite has begun to
train. At most `IN_A_ROW` kills, then it may end; files are compared byte by byte, but for what they say of seconds.
Networks are small and an epoch or two long; a checkpoint is written at nearly every step. Exits 1 where a file differs,
a command fails, or something half written is left.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from benchmarks.forked import processor_seconds
from benchmarks.interrupted_training import in_a_process

import nce_fx
from benchmarks import pages
from benchmarks.evidence.__main__ import main as evidence
from nce_fx import artifacts
from nce_fx.cli import app
from nce_fx.training.run import CheckpointWriter

LOG = pages.ROOT / ".faults" / "log.jsonl"
REPORT = pages.RESULTS / "faults.json"
IN_A_ROW = 10
FEW = """
from dataclasses import replace
from nce_fx.data import load_data
from nce_fx.data.images import Images

def few():
    data = load_data("digits")
    sizes = ((data.train, 160), (data.test, 64))
    train, test = (Images(part.pixels[:n], part.labels[:n], [5.0], [6.0]) for part, n in sizes)
    return replace(data, name="few.py:few", train=train, test=test, augmented=None)
"""
"""Data of the user's own: three steps an epoch, so that 20 kills of every command fit into minutes."""
DATA = ("--data", "few.py:few")
MODEL = ("resnet8", "--model-args", '{"width": 2}', *DATA)
REWRITE = ("rewrite", *MODEL, "--retrain", "2", "--out", "out")
SEARCH = ("search", *MODEL, "--epochs", "2", "--out", "out")
SLIMMABLE = '{"evaluations": 6, "population": 3, "parents": 2, "drawn": 2, "random": 1}'
SURFACE = '{"float_epochs": 1, "networks": 4, "rounds": 1, "repeats": 2, "finals": 2, "candidates": 1}'
STUDY: Mapping[str, Any] = {
    "about": "A network that trains in a second.",
    "network": "ResNet-8, width 2",
    "model": "resnet8",
    "model_args": {"width": 2},
    "data": "digits",
    "images": 160,
    "seeds": 1,
    "float_recipe": {"epochs": 2, "evaluate_every": 0},
    "retrain": {"epochs": 2, "evaluate_every": 0},
    "search": {"epochs": 2, "warmup_epochs": 1},
}
EVIDENCE = (
    "study.json",
    "--only",
    "float,uniform,nce-plan",
    "--results",
    "out",
    "--report",
    "out/results.md",
    "--work",
    "work",
)
SECONDS = re.compile(rb'("(?:seconds|digest)": ?)(?:"[0-9a-f]*"|\[[^\]]*\]|[-+.\de]+)')
"""Seconds, and the digest over them, in JSON and in the page."""


@dataclass(frozen=True)
class Command:
    """One long command, and what a user types next whatever it has left."""

    first: tuple[str, ...]
    needs_result: bool = False
    """Whether a result folder, ``out``, has to be there before."""
    begun: tuple[str, ...] = ()
    """What goes on with a result that has begun to train."""


COMMANDS: Mapping[str, Command] = {
    "rewrite with retraining": Command(REWRITE, begun=("retrain", "out", *DATA)),
    "rewrite of a range of budgets": Command(("rewrite", *MODEL, "--sweep", "0.8x..1.2x", "--out", "out")),
    "search": Command(SEARCH),
    "search without expansion": Command((*SEARCH, "--no-expand")),
    "search in float": Command((*SEARCH, "--float")),
    "search, adapting": Command(("search", *MODEL, "--method", "adapt", "--epochs", "3", "--out", "out")),
    "search, slimmable": Command((*SEARCH, "--method", "slimmable", "--recipe", SLIMMABLE)),
    "search, surface": Command((*SEARCH, "--method", "surface", "--recipe", SURFACE)),
    "retrain": Command(("retrain", "out", *DATA, "--epochs", "2"), needs_result=True),
    "analyze": Command(("analyze", *MODEL, "--sensitivity", "fisher", "--json")),
    "inspect": Command(("inspect", "out", "--html", "out.html"), needs_result=True),
    "export to integers": Command(("export", "out", "--onnx", "out.onnx", "--format", "integer"), needs_result=True),
    "export to every other form": Command(
        ("export", "out", "--onnx", "out.onnx", "--format", "qonnx", "--pt2", "out.pt2", "--packed", "out.safetensors"),
        needs_result=True,
    ),
    "evidence": Command(("evidence", *EVIDENCE)),
}


def run(arguments: tuple[str, ...]) -> None:
    """Run a command in the folder where this process is, with checkpoints at nearly every step."""
    begin = CheckpointWriter.__init__
    CheckpointWriter.__init__ = lambda self, run, seconds: begin(self, run, 0.05)  # type: ignore[method-assign]
    with (
        Path("said.txt").open("w") as said,
        Path("stderr.txt").open("w") as stderr,
        redirect_stdout(said),
        redirect_stderr(stderr),
    ):
        if arguments[0] == "evidence":
            evidence(list(arguments[1:]))
        elif app(list(arguments), standalone_mode=False):
            raise SystemExit("the command failed")


def next_command(command: Command, folder: Path) -> tuple[str, ...] | None:
    """Return what a user types next; None where all is done."""
    begun = command.first if command.first[0] == "retrain" else command.begun
    if begun and (folder / "out" / artifacts.REPORT).exists():
        return begun if artifacts.read_manifest(folder / "out").comparison is None else None
    if command.first[0] == "search" and (folder / "out" / artifacts.PLAN).exists():
        return None
    return command.first


def started(arguments: tuple[str, ...], folder: Path) -> int:
    """Start a command in a folder, in a process forked from this one, and return its id."""

    def work() -> None:
        os.chdir(folder)
        run(arguments)

    return in_a_process(work)


def finished(command: Command, folder: Path) -> float:
    """Give the user's commands until all is done; return the seconds that took.

    Raises:
        SystemExit: one fails.
    """
    seconds = 0.0
    while (arguments := next_command(command, folder)) is not None:
        _, status, used = os.wait4(started(arguments, folder), 0)
        seconds += used.ru_utime + used.ru_stime
        if os.waitstatus_to_exitcode(status):
            raise SystemExit(f"{arguments} failed in {folder}: {(folder / 'stderr.txt').read_text()[-500:]}")
        if arguments == command.first and not command.begun:
            break
    return seconds


def killed(command: Command, folder: Path, moment: float) -> bool:
    """Give the next command and kill it after so many seconds of a processor; return whether it was still running."""
    arguments = next_command(command, folder)
    if arguments is None:
        return False
    child = started(arguments, folder)
    while processor_seconds(child) < moment:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if os.waitstatus_to_exitcode(status):
                raise SystemExit(f"{arguments} failed in {folder}: {(folder / 'stderr.txt').read_text()[-500:]}")
            return False
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def left(folder: Path, says: bool) -> dict[str, str]:
    """Return what each file holds, but for seconds, which no two runs share; with what the command said, or without.

    Of checkpoints the newest counts: the one before it was written when its time had come.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        kept = ("stderr.txt", "seconds.json", "results.md") + (() if says else ("said.txt",))
        later = path.name.startswith("checkpoint-") and max(path.parent.glob("checkpoint-*")) != path
        # An archive of torch.export holds addresses of the process that wrote it.
        if not path.is_file() or path.name in kept or path.suffix in (".lock", ".pt2") or later:
            continue
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            content = without_seconds_of_history(content)
        elif path.suffix == ".csv":
            content = without_columns(content.decode()).encode()
        else:
            content = SECONDS.sub(rb"\1 0", content)
        found[str(path.relative_to(folder))] = sha256(content).hexdigest()[:16]
    return found


def without_seconds_of_history(content: bytes) -> bytes:
    """Return a safetensors file without the seconds, and the seal over them, that a checkpoint's header holds."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    said = json.loads(header.get("__metadata__", {}).get("nce_fx", "{}"))
    header["__metadata__"] = SECONDS.sub(rb"\1 0", json.dumps(said | {"seal": ""}).encode()).decode()
    return json.dumps(header, sort_keys=True).encode() + content[8 + size :]


def without_columns(text: str) -> str:
    """Return a CSV table without its columns of seconds."""
    rows = list(csv.reader(io.StringIO(text)))
    kept = [at for at, name in enumerate(rows[0]) if "seconds" not in name] if rows else []
    return "\n".join(",".join(row[at] for at in kept) for row in rows)


def prepared(command: Command, folder: Path, result: Path) -> Path:
    """Return a new folder with what a command needs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(STUDY))
    (folder / "few.py").write_text(FEW)
    if command.needs_result:
        shutil.copytree(result / "out", folder / "out")
    return folder


def rounds(name: str, kills: int, seed: int, working: Path, kept: Path) -> Iterator[dict[str, Any]]:
    """Run a command whole, then again and again with kills; yield what came of each time.

    Files that differ are copied into ``kept``.
    """
    command, chance, result = COMMANDS[name], random.Random(f"{name} {seed}"), working / "result"
    says = name == "analyze"
    if command.needs_result and not result.exists():
        prepared(COMMANDS["analyze"], result, result)
        finished(Command(("rewrite", *MODEL, "--out", "out")), result)
    whole = prepared(command, working / "whole", result)
    seconds, expected = finished(command, whole), left(whole, says)
    assert len(expected) > len(left(prepared(command, working / "killed", result), says)), f"{name} has written nothing"
    while kills > 0:
        folder = prepared(command, working / "killed", result)
        moments: list[float] = []
        while len(moments) < min(IN_A_ROW, kills):
            moments.append(round(chance.uniform(0, 0.9 * seconds), 3))
            if not killed(command, folder, moments[-1]):
                moments.pop()
                break
        finished(command, folder)
        found = left(folder, says)
        wrong = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
        kills -= len(moments)
        for path in wrong:
            for run, source in (("whole", whole), ("killed", folder)):
                if (source / path).exists():
                    (kept / name / run / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source / path, kept / name / run / path)
        yield {"command": name, "seconds": round(seconds, 1), "kills": moments, "differ": wrong}


def import_all() -> None:
    """Import what commands import, once, before processes are forked: a kill that meets an import says little."""
    # The first optimizer imports the compiler of PyTorch.
    torch.optim.SGD([torch.zeros(1)])
    for module in pkgutil.walk_packages(nce_fx.__path__, "nce_fx."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("cvxpy", "onnxruntime", "sklearn.datasets", "sklearn.model_selection"):
        importlib.import_module(name)


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return kills, times that were compared, and files that differed, by command."""
    found: dict[str, Any] = {}
    for line in lines:
        row = found.setdefault(line["command"], {"kills": 0, "compared": 0, "differ": []})
        row["kills"] += len(line["kills"])
        row["compared"] += 1
        row["differ"] = sorted({*row["differ"], *line["differ"]})
    return found


def main() -> None:
    """Run the kills that the log does not have."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=20, help="of each command")
    options.add_argument("--only", help=f"commands, with semicolons between: {'; '.join(COMMANDS)}")
    options.add_argument("--log", type=Path, default=LOG)
    given = options.parse_args()
    torch.set_num_threads(1)
    import_all()
    given.log.parent.mkdir(parents=True, exist_ok=True)
    given.log.touch()
    lines = [json.loads(line) for line in given.log.read_text().splitlines()]
    done = Counter({name: row["kills"] for name, row in summary(lines).items()})
    with tempfile.TemporaryDirectory() as working, given.log.open("a") as log:
        for name in given.only.split(";") if given.only else COMMANDS:
            for line in rounds(name, given.kills - done[name], done[name], Path(working), given.log.parent):
                print(json.dumps(line), file=log, flush=True)
                print(f"{name}: {len(line['kills'])} kills; {line['differ'] or 'equal'}", flush=True)
                lines.append(line)
    found = summary(lines)
    pages.save(REPORT, pages.load(REPORT) | found)
    sys.exit(any(row["differ"] for row in found.values()))


if __name__ == "__main__":
    main()
