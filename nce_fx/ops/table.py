"""The table of operations: one row for each, found by whatever a graph calls."""

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from torch import nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from nce_fx.errors import InputError
from nce_fx.ops import (
    attention,
    conv,
    creation,
    linear,
    lookup,
    movement,
    norm,
    pointwise,
    product,
    recurrent,
    reduction,
    spatial,
    spectral,
)
from nce_fx.ops.given_weight import module_called
from nce_fx.ops.op import OWN_ROW, Absent, Op
from nce_fx.ops.spellings import spellings_of
from nce_fx.registry import Registry

_OWN_NAMES = {"self": "input", "indices": "input", "train": "training"}
"""What ATen calls an argument -> what the signatures call it."""


class Ops:
    """An immutable table of operations.

    ``OPS["conv2d"]`` is the row of a name, ``OPS.of(gm, node)`` that of what a node calls, in any spelling.

    Raises:
        InputError: two rows have one name or one spelling.
    """

    def __init__(self, rows: tuple[Op, ...]) -> None:
        named: dict[str, Op] = {}
        for row in rows:
            if named.setdefault(row.name, row) is not row:
                raise InputError(f"two rows of the table of operations are called {row.name!r}: give one another name")
        by_spelling: dict[Any, Op] = {}
        orders: dict[Any, str] = {}
        # What a row says of a callable goes before what another one has by its name: F.unfold is no Tensor.unfold.
        for find in (_said, _named):
            said = frozenset(by_spelling) if find is _named else frozenset()
            for row in rows:
                for spelling, order in find(row):
                    if spelling in said:
                        continue
                    known = by_spelling.setdefault(spelling, row)
                    if known is not row:
                        raise InputError(_twice(spelling, known, row))
                    orders[spelling] = order or row.signature
        self.rows: Mapping[str, Op] = MappingProxyType(named)
        self.spellings: Mapping[Any, Op] = MappingProxyType(by_spelling)
        """Callable, method name, module type or ATen overload -> its row."""
        self.signatures: Mapping[Any, str] = MappingProxyType(orders)
        """The same -> the names of its arguments in its own order."""

    def __deepcopy__(self, memo: Any) -> "Ops":
        return self

    def __reduce__(self) -> Any:
        mine = ", ".join(name for name in self.rows if name not in OPS.rows)
        raise InputError(
            f"a graph with operations of your own ({mine}) cannot be pickled: keep it with nce_fx.save, or trace again"
        )

    def __getitem__(self, name: str) -> Op:
        return self.rows[name]

    def __iter__(self) -> Iterator[Op]:
        return iter(self.rows.values())

    def adding(self, *rows: Op) -> "Ops":
        """Return a table with these rows too.

        Raises:
            InputError: a row has a name or a spelling that another one has.
        """
        for row in rows:
            for spelling, _ in (*_said(row), *_named(row)):
                if spelling in self.spellings:
                    raise InputError(_twice(spelling, self.spellings[spelling], row))
        return Ops((*self, *rows))

    def of(self, gm: GraphModule, node: Node) -> Op | None:
        """Return the row of what a node calls; ``None`` where the table has none, or the node calls nothing."""
        if (path := module_called(node)) is not None:
            return self.of_module(gm.get_submodule(path))
        return self.of_call(node.target) if node.op in ("call_function", "call_method") else None

    def nearest(self, gm: GraphModule, node: Node) -> Op | None:
        """Return the row of what a node calls; of a module, of the class that it derives from, whatever its forward."""
        if node.op == "call_module":
            return self.derived(gm.get_submodule(str(node.target)))
        return self.of(gm, node)

    def derived(self, module: nn.Module) -> Op | None:
        """Return the row of the nearest class that a module derives from, its own first."""
        rows = (self.spellings.get(kind) or vars(kind).get(OWN_ROW) for kind in type(module).__mro__)
        return next((row for row in rows if row is not None), None)

    def is_norm(self, module: nn.Module | None) -> bool:
        """Whether a module normalizes, as its own class or one that it derives from does."""
        op = None if module is None else self.derived(module)
        return op is not None and op.kind == "norm"

    def of_call(self, target: Any) -> Op | None:
        """Return the row of a function, method name or overload."""
        found = self.spellings.get(target)
        if found is None and inspect.isfunction(target):
            found = self.spellings.get(f"{target.__module__}.{target.__qualname__}")
        return own_row(target) if found is None else found

    def of_module(self, module: nn.Module) -> Op | None:
        """Return the row of a module: of its own class, or of one whose ``forward`` it has."""
        kinds: Any = type(module).__mro__
        for kind in kinds:
            row: Op | None = self.spellings.get(kind) or vars(kind).get(OWN_ROW)
            if row is not None:
                return row if type(module).forward is kind.forward else None
        return None

    def arguments(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by their names in the signature, whatever the order of this spelling."""
        names = argument_names(self.signatures[target])
        return dict(zip(names, args, strict=False)) | {_OWN_NAMES.get(name, name): v for name, v in kwargs.items()}

    def where(self, wanted: Callable[[Op], bool]) -> frozenset[Any]:
        """Return every spelling of the rows that one asks for."""
        return frozenset(spelling for spelling, row in self.spellings.items() if wanted(row))


def own_row(target: Any) -> Op | None:
    """Return the row that `nce_fx.channel_rule` gave a function or operator of the user's own."""
    found: Op | None = getattr(target, OWN_ROW, None)
    if found is None and isinstance(target, OpOverload):
        found = getattr(target.overloadpacket, OWN_ROW, None)
    return found


@cache
def argument_names(signature: str) -> tuple[str, ...]:
    """Return the names of the arguments of a signature in order: ``("input", "dim")`` of ``"input, dim=None"``."""
    return tuple(part.split("=")[0].strip() for part in signature.split(", "))


def argument_defaults(signature: str) -> Mapping[str, Any]:
    """Return the defaults of a signature: ``{"groups": 1}`` of ``"input, groups=1"``."""
    parts = (part.partition("=") for part in signature.split(", "))
    return {name: ast.literal_eval(default) for name, equals, default in parts if equals}


def followed_arguments(op: Op) -> frozenset[str]:
    """Return the arguments of an operation that the widths set, such as ``{"groups"}`` of a convolution."""
    return frozenset() if isinstance(op.follows, Absent) else frozenset(op.follows) & {*argument_names(op.signature)}


def _twice(spelling: Any, known: Op, row: Op) -> str:
    return f"{spelling} is a spelling of {known.name!r}: it cannot be one of {row.name!r} too"


def _said(row: Op) -> Iterator[tuple[Any, str]]:
    """Yield the modules and callables of a row, with the order of arguments where that differs."""
    yield from ((kind, "") for kind in row.modules)
    # A dot: the full name of a function of a library that need not be installed.
    yield from ((s, order) for s, order in row.spellings.items() if not isinstance(s, str) or "." in s)


def _named(row: Op) -> Iterator[tuple[Any, str]]:
    """Yield what PyTorch calls by the names of a row."""
    # A dot: a row of a module alone, or of one callable.
    names = {row.name: ""} | {s: order for s, order in row.spellings.items() if isinstance(s, str)}
    yield from ((s, order) for name, order in names.items() if "." not in name for s in spellings_of(name))


OPS = Ops(
    (
        *conv.ROWS,
        *linear.ROWS,
        *product.ROWS,
        *attention.ROWS,
        *lookup.ROWS,
        *recurrent.ROWS,
        *norm.ROWS,
        *pointwise.ROWS,
        *reduction.ROWS,
        *spatial.ROWS,
        *movement.ROWS,
        *spectral.ROWS,
        *creation.ROWS,
    )
)
"""The operations that nce-fx knows."""


@cache
def default() -> Ops:
    """Return the table with the rows that installed packages add by the entry point ``nce_fx.ops``.

    Raises:
        InputError: what an entry point names is no row, or cannot be imported.
    """
    ops = OPS
    for rows in Registry[Any]("ops", {}, _are_rows).values():
        ops = ops.adding(*(rows if isinstance(rows, tuple) else (rows,)))
    return ops


def _are_rows(value: Any) -> bool:
    """Whether an entry point names a row, or a tuple of rows."""
    return all(isinstance(row, Op) for row in (value if isinstance(value, tuple) else (value,)))


def table_of(gm: GraphModule) -> Ops:
    """Return the table that a graph was traced with."""
    found: Ops = gm.meta.get("ops") or default()
    return found
