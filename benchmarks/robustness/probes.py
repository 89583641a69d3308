"""Which tests run a line, by probes in the compiled code: ``__ran__[17] = 1`` before each statement of a function.

A probe costs less than a tracer, so that the map of the tests takes little more than the tests. A lambda has a probe of
its own. What a module does while it is imported has none.
"""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import CodeType

NAME = "__ran__"


class Placing(ast.NodeTransformer):
    """Put probes into a module's functions; `spans` are the first and the last line of each."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.spans: list[tuple[int, int]] = []
        self.inside = False

    def probe(self, first: int, last: int) -> ast.Constant:
        """Return the number of a new probe."""
        self.spans.append((first, max(first, last)))
        return ast.Constant(self.first + len(self.spans) - 1)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Put probes into a function, and into those inside it."""
        before, self.inside = self.inside, True
        self.generic_visit(node)
        self.inside = before
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        """Put a probe before what a lambda returns."""
        self.generic_visit(node)
        number = self.probe(node.body.lineno, node.body.end_lineno or 0)
        probe = ast.Call(
            ast.Attribute(ast.Name(NAME, ast.Load()), "__setitem__", ast.Load()), [number, ast.Constant(1)], []
        )
        # The probe answers None, so that the body is what is returned.
        node.body = ast.copy_location(ast.BoolOp(ast.Or(), [probe, node.body]), node.body)
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Put a probe before each statement of a function, but for its docstring."""
        super().generic_visit(node)
        for name, value in ast.iter_fields(node) if self.inside else ():
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                setattr(node, name, [one for statement in value for one in self.with_probe(statement)])
        return node

    def with_probe(self, statement: ast.stmt) -> list[ast.stmt]:
        """Return a statement with the probe before it, which stands for its head where it has a body."""
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            return [statement]
        body = getattr(statement, "body", None)
        last = body[0].lineno - 1 if body else statement.end_lineno or 0
        number = self.probe(statement.lineno, last)
        probe = ast.Assign([ast.Subscript(ast.Name(NAME, ast.Load()), number, ast.Store())], ast.Constant(1))
        return [ast.copy_location(probe, statement), statement]


def with_probes(path: Path, first: int) -> tuple[CodeType, list[tuple[int, int]]]:
    """Return a file's code with probes, numbered from `first`, and the lines of each."""
    placing = Placing(first)
    tree = ast.fix_missing_locations(placing.visit(ast.parse(path.read_text())))
    return compile(tree, str(path), "exec", dont_inherit=True), placing.spans


@dataclass
class Covering:
    """Which tests run a line of a file, and how long each takes."""

    log: Path
    spans: list[tuple[Path, int, int]] = field(default_factory=list)
    """The file and the lines of each probe."""
    code: dict[str, CodeType] = field(default_factory=dict)
    """Each file's code with its probes."""
    seconds: dict[str, float] = field(default_factory=dict)
    ran: dict[str, int] = field(default_factory=dict)
    """The probes of each test, a bit each."""
    hits: bytearray = field(default_factory=bytearray)
    noticed: Counter[tuple[str, Path | None]] = field(default_factory=Counter)
    """How many faults each test, whatever its parameters, was the first to notice: of each file, and in all."""
    tried: Counter[tuple[str, Path | None]] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)
    """How many tests have a word in their names."""

    @staticmethod
    def of(files: Collection[Path], log: Path) -> Covering:
        """Return what the log says of these files; a log of others, or of other text, is begun anew."""
        found, text = Covering(log), sha256()
        for path in sorted(files):
            found.code[str(path)], spans = with_probes(path, len(found.spans))
            found.spans += [(path, first, last) for first, last in spans]
            text.update(path.read_bytes())
        known, *rows = log.read_text().splitlines() if log.exists() else [""]
        if known != text.hexdigest():
            log.write_text(text.hexdigest() + "\n")
            rows = []
        for test, seconds, ran in map(json.loads, rows):
            found.seconds[test], found.ran[test] = seconds, int(ran, 16)
        return found

    def start(self) -> None:
        """Import these files with their probes from now on."""
        self.hits = bytearray(len(self.spans))
        setattr(builtins, NAME, self.hits)
        loader = importlib.machinery.SourceFileLoader
        get_code = loader.get_code

        def with_its_probes(self: importlib.machinery.SourceFileLoader, fullname: str) -> CodeType | None:
            return code.get(self.path) or get_code(self, fullname)

        code = self.code
        loader.get_code = with_its_probes  # type: ignore[assignment, method-assign]

    def forget(self) -> None:
        """Begin with a test."""
        self.hits[:] = bytes(len(self.hits))

    def keep(self, test: str, seconds: float) -> None:
        """Add a test that has ended to the log."""
        ran = sum(1 << at for at, hit in enumerate(self.hits) if hit)
        with self.log.open("a") as log:
            print(json.dumps([test, round(seconds, 3), f"{ran:x}"]), file=log)

    def learn(self, path: Path, tests: Sequence[str], by: str) -> None:
        """Remember which of the tests that were run, in this order, was the first to notice a fault; "" is none."""
        for test in tests[: tests.index(by) + 1 if by in tests else None]:
            for place in (None, path):
                self.tried[kind_of(test), place] += 1
                self.noticed[kind_of(test), place] += test == by

    def _worth(self, test: str, path: Path, words: set[str]) -> float:
        """Return how much a test likely notices in a second, by what it noticed with any parameters."""
        here, anywhere = (kind_of(test), path), (kind_of(test), None)
        # A test that is run notices one fault in forty, where nothing is known of it.
        noticed = 3 * self.noticed[here] + self.noticed[anywhere] + 1
        tried = 3 * self.tried[here] + self.tried[anywhere] + 40
        alike = sum(1 / self.named[word] for word in words & words_of(test))
        return noticed / tried * (1 + min(3, 30 * alike)) / (self.seconds[test] + 0.01)

    def tests(
        self, path: Path, lines: Collection[int], most: float, words: set[str], without: Collection[str] = ()
    ) -> list[str]:
        """Return the tests that run one of the lines, or any line at all where none is given, up to so many seconds.

        Those come first that notice most faults in a second, as far as is known: in this file, then anywhere; those
        named by rare words of the line or the file; the quickest. The second parameter set of a test counts half, the
        third a third.
        """
        asked = sum(
            1 << at
            for at, (file, first, last) in enumerate(self.spans)
            if not lines or (file == path and any(first <= line <= last for line in lines))
        )
        if not self.named:
            self.named.update(word for test in self.seconds for word in words_of(test))
        reach = [(self._worth(test, path, words), test) for test, ran in self.ran.items() if ran & asked]
        sets: Counter[str] = Counter()
        order = []
        for worth, test in sorted((one for one in reach if one[1] not in without), reverse=True):
            sets[kind_of(test)] += 1
            order.append((-worth / sets[kind_of(test)], test))
        chosen: list[str] = []
        for _, test in sorted(order):
            if self.seconds[test] <= most or not chosen:
                chosen.append(test)
                most -= self.seconds[test]
        return chosen


def words_of(text: str) -> set[str]:
    """Return the words of a test's or a file's name, or of a line of code."""
    return set(re.findall("[a-z0-9]{3,}", text.lower()))


def kind_of(test: str) -> str:
    """Return what a test asks: its function's name, and the law where it asks one of several."""
    name, _, parameters = test.partition("[")
    return f"{name} {parameters.rpartition('-')[2]}" if name.endswith("::test_law") else name
