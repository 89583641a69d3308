"""What a graph may call an operation: its name finds every function, method, operator and ATen overload of it.

``spellings_of("relu")`` finds ``F.relu``, ``F.relu_``, ``torch.relu``, ``torch.relu_``, ``torch.Tensor.relu``, the
methods ``"relu"`` and ``"relu_"``, ``torch.ops.aten.relu.default`` and ``torch.ops.aten.relu_.default``.
"""

import operator
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch._ops import OpOverload

_OPERATORS = {
    "add": (operator.add, operator.iadd),
    "sub": (operator.sub, operator.isub),
    "mul": (operator.mul, operator.imul),
    "div": (operator.truediv, operator.itruediv),
    "floor_divide": (operator.floordiv, operator.ifloordiv),
    "remainder": (operator.mod, operator.imod),
    "pow": (operator.pow, operator.ipow),
    "matmul": (operator.matmul, operator.imatmul),
    "neg": (operator.neg,),
    "abs": (operator.abs,),
    "getitem": (operator.getitem,),
}
"""Python's operators by the name that PyTorch has for them; the second one works in place."""

_METHODS = {"matmul": ("__matmul__",), "add": ("__add__", "__iadd__"), "mul": ("__mul__", "__imul__")}


@cache
def spellings_of(name: str) -> tuple[Any, ...]:
    """Return everything that a graph may call an operation of this name; what writes its result elsewhere is none."""
    found: dict[Any, None] = {}
    for each in (name, f"{name}_"):
        for space in (F, torch):
            call = getattr(space, each, None)
            if callable(call) and not isinstance(call, type):
                found[call] = None
        if callable(getattr(torch.Tensor, each, None)):
            found[getattr(torch.Tensor, each)] = None
            found[each] = None
        found.update(dict.fromkeys(_overloads(each)))
    found.update(dict.fromkeys(_OPERATORS.get(name, ())))
    found.update(dict.fromkeys(_METHODS.get(name, ())))
    return tuple(found)


def _overloads(name: str) -> Iterator[OpOverload]:
    """Yield the ATen overloads of a name but those that write into an argument ``out``."""
    packet = getattr(torch.ops.aten, name, None)
    for overload in packet.overloads() if packet is not None else ():
        call = getattr(packet, overload)
        if not any(argument.is_out for argument in call._schema.arguments):
            yield call


def apart(spelling: Any) -> Any:
    """Return what makes a tensor of its own where a spelling overwrites one: ``x.add`` for ``x.add_``."""
    if not in_place(spelling):
        return spelling
    if isinstance(spelling, OpOverload):
        packet = getattr(torch.ops.aten, spelling._schema.name.removeprefix("aten::").removesuffix("_"))
        return getattr(packet, spelling._overloadname)
    if isinstance(spelling, str):
        return spelling.replace("__i", "__") if spelling.startswith("__") else spelling.removesuffix("_")
    own = next((plain for plain, *others in _OPERATORS.values() if spelling in others), None)
    return own or getattr(torch, spelling.__name__.removesuffix("_"))


def in_place(spelling: Any) -> bool:
    """Whether a spelling overwrites its first argument: ``x.relu_()``, ``x += y``."""
    if isinstance(spelling, OpOverload):
        name = spelling._schema.name.removeprefix("aten::")
    else:
        name = spelling if isinstance(spelling, str) else str(getattr(spelling, "__name__", ""))
    of_python = any(spelling is call for _, *others in _OPERATORS.values() for call in others)
    return of_python or name == "__iadd__" or name == "__imul__" or (name.endswith("_") and not name.endswith("__"))


def sets_items(spelling: Any) -> bool:
    """Whether a spelling is ``x[0] = y``, which overwrites its first argument and returns nothing."""
    return spelling is operator.setitem or spelling == "__setitem__"
