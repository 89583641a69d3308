"""Mutants: one small fault at a time in the compiler's code, and whether a test notices.

    python -m benchmarks.mutants --map                  once: which tests run each line, and their processor seconds
    python -m benchmarks.mutants --map --tests tests/test_ops.py --parameters 99
                                                        more tests; what the map has is kept
    python -m benchmarks.mutants --count 300            goes on where it stopped; a row of results/mutants.csv a mutant
    python -m benchmarks.mutants --again --seconds 8    what no test noticed, with tests that it was not tried with
    python -m benchmarks.mutants --sound                the tests that noticed, without a fault; what fails is run again
    python -m benchmarks.mutants --survivors            the rows that no test noticed, and the interval

The mutants are a seeded sample over ops, passes, quantizers, export and a few files more. Of each, the tests that run
its line are run, those first that notice most in a second, up to `--seconds` of them, until one fails. pytest
collects once; each mutant is a process forked from there, in which the functions that differ get the mutant's code.
Where that shows nothing, or the fault is in what a module does while it is imported, the compiler and the tests are
imported anew. A test that fails without a fault is left out. "no test" means that none of the map runs the line, be
there others outside of the map or not. A test that starts a Python of its own sees no fault there.
"""

from __future__ import annotations

import argparse
import csv
import gc
import importlib
import importlib.machinery
import json
import os
import pkgutil
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import pytest
import torch
from benchmarks.forked import in_a_process
from benchmarks.mutations import Mutant, functions_that_differ, mutants_of, tree_of
from benchmarks.probes import Covering, kind_of, words_of
from scipy.stats import binomtest

from benchmarks import pages

TABLE = pages.RESULTS / "mutants.csv"
WORK = pages.ROOT / ".mutants"
TRIED = WORK / "tried.jsonl"
"""The tests that each mutant was tried with."""
MODULES = WORK / "modules.txt"
"""What the tests imported while they ran."""
FOLDERS = ("ops", "passes", "quantizers", "export")
FILES = ("arguments.py", "progress.py", "launcher.py", "cli/verdict.py", "training/shards.py", "training/stretches.py")
"""Files beside the folders, of the rest of the package."""
COLUMNS = ("key", "file", "line", "operator", "was", "became", "tests", "seconds", "end", "by", "why")
ENDS = {0: "survived", 1: "killed"}
UNNOTICED = ("survived", "no test")


def files_of(folders: Sequence[str] = (*FOLDERS, *FILES)) -> list[Path]:
    """Return the files that folders hold; a file holds itself."""
    places = [pages.ROOT / "nce_fx" / folder for folder in folders]
    return [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*.py")))]


def sample(count: int, seed: int, folders: Sequence[str] = (*FOLDERS, *FILES)) -> list[Mutant]:
    """Return so many mutants, each as likely as any other; the first of a longer sample are a shorter one."""
    found = {mutant.key: mutant for path in files_of(folders) for mutant in mutants_of(path)}
    return [found[key] for key in sorted(found, key=lambda key: sha256(f"{seed} {key}".encode()).digest())[:count]]


class Runner:
    """What pytest does once it has collected: instead of the tests, the mutants."""

    def __init__(self, options: argparse.Namespace, at_import: set[CodeType], covering: Covering) -> None:
        self.options = options
        self.at_import = at_import
        self.covering = covering
        self.failed = ""
        self.tried: dict[str, set[str]] = defaultdict(set)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep so many parameter sets of each test, drawn by their names: fewer are among those of more."""
        tests: dict[str, list[pytest.Item]] = defaultdict(list)
        for item in sorted(items, key=lambda item: sha256(item.nodeid.encode()).digest()):
            if not (self.options.quick and item.get_closest_marker("long")):
                tests[kind_of(item.nodeid)].append(item)
        kept = {id(item) for of_one in tests.values() for item in of_one[: self.options.parameters]}
        items[:] = [item for item in items if id(item) in kept]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notice the first failure."""
        if report.failed and not self.failed:
            self.failed = report.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Make the map, or run the mutants."""
        (self.map if self.options.map else self.mutants)(session)
        return True

    def map(self, session: pytest.Session) -> None:
        """Run every test that the map has not once, and write down what it runs, its seconds, and that it passes."""
        left = [item for item in session.items if item.nodeid not in self.covering.seconds]
        kept = [value for module in tests_modules() for value in vars(module).values()]
        kept = [
            value
            for value in kept
            if hasattr(value, "cache_clear") or (isinstance(value, MutableMapping) and not value)
        ]

        def work() -> int:
            for at, item in enumerate(left):
                for cache in kept:  # each test runs as the first one does, which finds nothing kept
                    getattr(cache, "cache_clear", getattr(cache, "clear", None))()
                self.covering.forget()
                before = sum(os.times()[:4])
                self._runs([item])
                if self.failed:
                    print("fails without a fault:", self.failed, flush=True)
                    self.failed = ""
                else:
                    self.covering.keep(item.nodeid, sum(os.times()[:4]) - before)
                if at % 50 == 49 or item is left[-1]:
                    print(at + 1, "of", len(left), flush=True)
            known = {name for name in sys.modules if not name.startswith(("nce_fx", "tests", "benchmarks", "__"))}
            MODULES.write_text("\n".join(sorted(known | set(MODULES.read_text().split() if MODULES.exists() else ()))))
            return 0

        in_a_process(work, 36_000, WORK / "map.log")

    def mutants(self, session: pytest.Session) -> None:
        """Run the mutants that the table does not have; or again those that no test noticed."""
        items = {item.nodeid: item for item in session.items}
        for module in MODULES.read_text().split():
            with suppress(Exception):  # what tests import as they run is there in every process then
                importlib.import_module(module)
        live = live_functions()
        done: dict[str, dict[str, Any]] = {row["key"]: row for row in rows()}
        for line in TRIED.read_text().splitlines() if TRIED.exists() else ():
            key, tests = json.loads(line)
            self.tried[key].update(tests)
            if row := done.get(key):
                self.covering.learn(pages.ROOT / "nce_fx" / row["file"], tests, row["by"])
        if self.options.sound:
            self.sound(done, items)
        where = self.options.folders.split(",")
        places = set(files_of(where))
        for mutant in sample(self.options.count, self.options.seed, *[] if self.options.again else [where]):
            known = done.get(mutant.key)
            anew = known is not None and self.options.again and known["end"] in UNNOTICED and not known["why"]
            if (anew and mutant.path in places) or (known is None and not self.options.again):
                row = self.end_of(mutant, items, live)
                if known is None or row["tests"]:
                    row |= {name: row[name] + float(known[name]) for name in ("tests", "seconds") if known}
                    done[mutant.key] = row | {"tests": int(row["tests"]), "seconds": round(row["seconds"], 1)}
                    write(done.values())

    def sound(self, done: dict[str, dict[str, Any]], items: dict[str, pytest.Item]) -> None:
        """Run the tests that noticed a fault without any, both ways; forget those that fail, and the rows by them."""
        tests = sorted({row["by"] for row in done.values()} & set(items))
        path, log = files_of()[0], WORK / "sound.log"
        same = str(path), compile(path.read_text(), str(path), "exec", dont_inherit=True)

        def fails(test: str) -> bool:
            return bool(in_a_process(lambda: self._runs([items[test]]), 600, log)[0])

        failed = {test for test in tests if fails(test)}
        in_a_process(lambda: import_anew(*same, tests, ()), 3600, log)
        failed |= {named(line) for line in log.read_text(errors="replace").splitlines() if line[:7] == "FAILED "}
        failed &= set(items)
        print(len(tests), "tests that noticed;", len(failed), "fail without a fault:", *sorted(failed), flush=True)
        for test in failed:
            del self.covering.seconds[test], self.covering.ran[test]
        for key in [key for key, row in done.items() if row["by"] in failed]:
            del done[key]

    def end_of(
        self,
        mutant: Mutant,
        items: dict[str, pytest.Item],
        live: dict[CodeType, list[FunctionType]],
    ) -> dict[str, Any]:
        """Return one mutant's row."""
        mutated, source = tree_of(mutant), mutant.path.read_text()
        name = str(mutant.path)
        now = compile(mutated, name, "exec", dont_inherit=True)
        differ = functions_that_differ(compile(source, name, "exec", dont_inherit=True), now)
        anew = differ is None or any(was in self.at_import for was, _ in differ) or not any(live[w] for w, _ in differ)
        lines = source.splitlines()[mutant.statement - 1 : mutant.line]
        words = words_of(" ".join([*lines, *mutant.path.relative_to(pages.ROOT / "nce_fx").parts]))
        tried = self.tried[mutant.key]
        tests = self.covering.tests(mutant.path, mutant.lines, self.options.seconds, words, tried)
        if anew:  # a fault that acts while the module is imported may be shown by any test
            tests += self.covering.tests(mutant.path, (), self.options.seconds / 2, words, {*tried, *tests})
        tests = [test for test in tests if test in items]
        row = {
            "key": mutant.key,
            "file": str(mutant.path.relative_to(pages.ROOT / "nce_fx")),
            "line": mutant.line,
            "operator": mutant.operator,
            "was": mutant.was,
            "became": mutant.became,
            "tests": len(tests),
            "why": "",
        }
        if not tests:
            return row | {"seconds": 0, "end": "survived" if tried else "no test", "by": ""}

        def exchanged() -> int:
            for was, code in differ or ():
                for function in live[was]:
                    function.__code__ = code
            self._runs([items[test] for test in tests])
            print(self.failed)
            return bool(self.failed)

        log = WORK / "mutant.log"
        most = 10 + 2 * self.options.seconds
        status, seconds = (0, 0.0) if anew else in_a_process(exchanged, most, log)
        if not status and (anew or not self.options.once):
            # What was computed before, and kept, may hide the fault.
            status, more = in_a_process(lambda: import_anew(name, now, tests, ["-x"]), most, log)
            seconds += more
        end = "timeout" if status in (-signal.SIGXCPU, -signal.SIGKILL) else ENDS.get(status, "killed")
        log_lines = log.read_text(errors="replace").splitlines()
        by = next((named(line) for line in reversed(log_lines) if "::" in line), "")
        by = by if end == "killed" else ""
        self.covering.learn(mutant.path, tests, by)
        with TRIED.open("a") as file:
            print(json.dumps([mutant.key, tests]), file=file)
        return row | {"seconds": seconds, "end": end, "by": by}

    def _runs(self, items: list[pytest.Item]) -> bool:
        """Run tests as pytest does, up to the first that fails; return whether one does."""
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return True
        return False


def named(line: str) -> str:
    """Return the test of a line of pytest's, ``FAILED tests/test_x.py::test_y - AssertionError``."""
    return line.removeprefix("FAILED ").partition(" - ")[0].strip()


def tests_modules() -> list[ModuleType]:
    """Return the modules of the tests that are imported."""
    return [module for name, module in sys.modules.items() if name.partition(".")[0] == "tests"]


def live_functions() -> dict[CodeType, list[FunctionType]]:
    """Return every function of the compiler that is there, by its code."""
    found: dict[CodeType, list[FunctionType]] = defaultdict(list)
    gc.unfreeze()  # what was imported with the tests is not listed otherwise
    for one in gc.get_objects():
        if isinstance(one, FunctionType) and "/nce_fx/" in one.__code__.co_filename:
            found[one.__code__].append(one)
    gc.freeze()
    return found


def import_anew(name: str, now: CodeType, tests: Sequence[str], options: Sequence[str]) -> int:
    """Run tests with the compiler and the tests imported again, one module from other code; return pytest's status."""
    get_code = importlib.machinery.SourceFileLoader.get_code
    importlib.machinery.SourceFileLoader.get_code = (  # type: ignore[method-assign]
        lambda self, fullname: now if self.path == name else get_code(self, fullname)  # type: ignore[attr-defined]
    )
    for module in list(sys.modules):
        if module.partition(".")[0] in ("nce_fx", "tests") and not module.endswith("torchvision_operators"):
            del sys.modules[module]
    sys.modules.pop("benchmarks.conftest", None)
    status = pytest.main([*options, "-q", "--no-header", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-s", *tests])
    return int(status)


def called_at_import() -> set[CodeType]:
    """Import every module of the package; return the functions of it that ran meanwhile."""
    found: set[CodeType] = set()

    def noticed(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and "/nce_fx/" in frame.f_code.co_filename:
            found.add(frame.f_code)

    sys.setprofile(noticed)
    try:
        import nce_fx

        for module in pkgutil.walk_packages(nce_fx.__path__, "nce_fx."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    finally:
        sys.setprofile(None)
    return found


def write(found: Iterable[Mapping[str, Any]]) -> None:
    """Write the table whole."""
    part = TABLE.with_suffix(".part")
    with part.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(found)
    part.replace(TABLE)


def rows() -> list[dict[str, str]]:
    """Return the rows that are there."""
    return pages.rows(TABLE)


def summary() -> str:
    """Return how many were killed, with the interval, by folder."""
    lines = []
    for folder in (*FOLDERS, *FILES, ""):
        ends = Counter(row["end"] for row in rows() if row["file"].startswith(folder))
        if count := ends.total():
            noticed = ends["killed"] + ends["timeout"]
            low, high = binomtest(noticed, count).proportion_ci(method="wilson")
            share = f"{noticed} of {count} = {noticed / count:.1%} ({low:.1%} to {high:.1%})"
            lines.append(f"{folder or 'all'}: {share} {dict(ends)}")
    return "\n".join(lines)


def main() -> None:
    """Make the map, run mutants, or show what survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--map", action="store_true")
    parser.add_argument("--again", action="store_true", help="what no test noticed, with tests not tried before")
    parser.add_argument("--sound", action="store_true", help="the tests that noticed, without a fault")
    parser.add_argument("--survivors", action="store_true")
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="of tests for one mutant, by the map")
    parser.add_argument("--parameters", type=int, default=10**6, help="parameter sets of each test")
    parser.add_argument("--folders", default=",".join((*FOLDERS, *FILES)), help="where the faults are, or those again")
    parser.add_argument(
        "--once", action="store_true", help="no second try with all imported anew: what was kept may hide a fault"
    )
    parser.add_argument("--quick", action="store_true", help="no test marked long")
    parser.add_argument("--tests", default="", help="files with commas between, to add to the map; else all")
    options = parser.parse_args()
    if options.survivors:
        for row in rows():
            if row["end"] in UNNOTICED:
                print(f"{row['file']}:{row['line']} {row['end']} {row['tests']}: {row['was']}  ->  {row['became']}")
        print(summary())
        return
    torch.set_num_threads(1)
    WORK.mkdir(exist_ok=True)
    covering = Covering.of(files_of(), WORK / "map.jsonl")
    if options.map:
        covering.start()
    runner = Runner(options, called_at_import(), covering)
    os.chdir(pages.ROOT)
    asked = options.tests.split(",") if options.tests else ["tests"]
    pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-p", "no:terminalreporter", "-m", "not slow", *asked], [runner])
    print(summary())


if __name__ == "__main__":
    main()
