"""Mutants of a module: one small fault each, made in its syntax tree."""

from __future__ import annotations

import ast
import builtins
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import CodeType

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitAnd,
    ast.MatMult: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
ANNOTATIONS = ("annotation", "returns")


@dataclass(frozen=True)
class Mutant:
    """One fault in one file."""

    path: Path
    place: int
    """Which of the tree's places, in order."""
    choice: int
    """Which of the faults that are possible there."""
    operator: str
    """The kind of fault, such as "comparison"."""
    line: int
    statement: int
    """The line where its statement begins."""
    was: str
    became: str

    @property
    def lines(self) -> tuple[int, ...]:
        """The lines at which a test that runs it is seen."""
        return self.line, self.statement

    @property
    def key(self) -> str:
        """What tells it from all others and stays where other lines of the file change but for equal lines above."""
        return sha256(f"{self.path.name} {self.operator} {self.was} {self.became} {self.line}".encode()).hexdigest()[
            :12
        ]


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield every mutant of a file."""
    tree = ast.parse(path.read_text())
    statements = sorted(node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt))
    for number, (parent, name, _, node) in enumerate(places(tree)):
        for choice, (operator, changed) in enumerate(changes(node, parent, name)):
            line = getattr(node, "lineno", 0)
            was, became = (" ".join(ast.unparse(one).split())[:70] for one in (node, changed))
            statement = statements[bisect(statements, line) - 1]
            yield Mutant(path, number, choice, operator, line, statement, was, became)


def tree_of(mutant: Mutant) -> ast.Module:
    """Return the mutant's whole syntax tree."""
    tree = ast.parse(mutant.path.read_text())
    parent, name, at, node = list(places(tree))[mutant.place]
    _, changed = list(changes(node, parent, name))[mutant.choice]
    ast.copy_location(changed, node)
    if at is None:
        setattr(parent, name, changed)
    else:
        getattr(parent, name)[at] = changed
    return ast.fix_missing_locations(tree)


Place = tuple[ast.AST, str, int | None, ast.AST]
"""A node with its parent, the parent's field, and the position where the field is a list."""


def places(parent: ast.AST) -> Iterator[Place]:
    """Yield every node below, but for annotations, docstrings, what is typed only, and messages of errors."""
    for name, value in ast.iter_fields(parent):
        if name in ANNOTATIONS or name == "decorator_list" or (isinstance(parent, ast.Assert) and name == "msg"):
            continue
        for at, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or _says_nothing(node):
                continue
            yield parent, name, at, node
            # What an error says is text: whether it is raised is what counts.
            if not isinstance(node, ast.Raise | ast.JoinedStr):
                yield from places(node)


def _says_nothing(node: ast.AST) -> bool:
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    typed_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    return docstring or typed_only


def changes(node: ast.AST, parent: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield what a node may become, each with the name of its kind."""
    match node:
        case ast.Compare(left=left, ops=[op, *ops], comparators=right) if type(op) in COMPARISONS:
            yield "comparison", ast.Compare(left, [COMPARISONS[type(op)](), *ops], right)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC and not _of_types(node):
            yield "arithmetic", ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in ARITHMETIC:
            yield "arithmetic", ast.AugAssign(target, ARITHMETIC[type(op)](), value)
        case ast.BoolOp(op=op, values=values):
            yield "and, or", ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield "not, minus", operand
        case ast.Constant(value=bool(value)):
            yield "truth", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield "number", ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield "number", ast.Constant(value * 2 + 1)
        case ast.Break():
            yield "break, continue", ast.Continue()
        case ast.Continue():
            yield "break, continue", ast.Break()
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield "returned", ast.Return(ast.Constant(None))
        case ast.Raise():
            yield "left out", ast.Pass()
        case ast.Expr(value=ast.Call()):
            yield "left out", ast.Pass()
    # A condition, negated where no operator of it can be exchanged.
    asked = name == "test" or (name == "ifs" and isinstance(parent, ast.comprehension))
    if asked and isinstance(node, ast.expr) and not isinstance(node, ast.Compare | ast.UnaryOp | ast.BoolOp):
        yield "condition", ast.UnaryOp(ast.Not(), node)


def _of_types(node: ast.BinOp) -> bool:
    """Whether ``a | b`` unites types: names of types, or None."""
    ends = [ast.unparse(end).partition("[")[0].rpartition(".")[2] for end in (node.left, node.right)]
    return isinstance(node.op, ast.BitOr) and any(
        end[:1].isupper() or isinstance(getattr(builtins, end, None), type) for end in ends
    )


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def functions_that_differ(was: CodeType, now: CodeType) -> list[tuple[CodeType, CodeType]] | None:
    """Return the functions' code, from outside in, in which two modules differ; None where it is not in a function."""
    pairs = list(zip(_inside(was), _inside(now), strict=True)) if len(_inside(was)) == len(_inside(now)) else []
    found = next(((a, b) for a, b in pairs if a != b), None)
    if found is None:
        return None
    inner = functions_that_differ(*found)
    # CO_OPTIMIZED is set on functions, not on the bodies of classes and modules.
    return [found, *(inner or [])] if found[0].co_flags & 1 else inner


def _inside(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]
