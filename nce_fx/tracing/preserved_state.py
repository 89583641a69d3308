"""Leave a model, and the random state, as they were: what ``forward`` assigns while it is traced or run is put back.

Models cache grids and masks on themselves, move statistics, count steps. A tracer leaves a proxy there, torch.export a
tensor without values.
"""

import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from nce_fx.paths import modules_of
from nce_fx.random_state import put_back, seed_all

_DEPTH = 4
"""How deep plain objects and containers that hang on modules are looked into."""


@dataclass(frozen=True)
class Kept:
    """What a model's modules, and the containers and plain objects on them, held at one moment."""

    attributes: tuple[tuple[dict[Any, Any], dict[Any, Any]], ...]
    lists: tuple[tuple[list[Any], list[Any]], ...]
    sets: tuple[tuple[set[Any], set[Any]], ...]
    gradients: tuple[tuple[Tensor, bool], ...]

    def names(self, module: nn.Module) -> frozenset[str]:
        """Return the names of what a module held, its tensors and parts aside."""
        return frozenset(next(before for now, before in self.attributes if now is vars(module)))

    def changed(self) -> bool:
        """Say whether something is assigned that was not."""
        return (
            any(not _same(now, before) for now, before in self.attributes)
            or any(not _same_items(now, before) for now, before in self.lists)
            or any(now != before for now, before in self.sets)
        )

    def restore(self) -> None:
        """Put everything back; what did not change is not touched."""
        for now, before in self.attributes:
            if not _same(now, before):
                now.clear()
                now.update(before)
        for sequence, items in self.lists:
            if not _same_items(sequence, items):
                sequence[:] = items
        for group, members in self.sets:
            if group != members:
                group.clear()
                group.update(members)
        for parameter, required in self.gradients:
            if parameter.requires_grad != required:
                parameter.requires_grad_(required)


def _same(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    return now.keys() == before.keys() and all(map(operator.is_, now.values(), before.values()))


def _same_items(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))


def kept(model: nn.Module) -> Kept:
    """Remember what every module of a model holds."""
    dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
    lists: list[tuple[list[Any], list[Any]]] = []
    sets: list[tuple[set[Any], set[Any]]] = []
    seen: set[int] = set()

    def look(value: Any, depth: int) -> None:
        kind = type(value)
        if kind in _ATOMS or id(value) in seen:
            return
        if isinstance(value, dict):
            seen.add(id(value))
            dicts.append((value, dict(value)))
            inside = list(value.values())
        elif isinstance(value, list):
            seen.add(id(value))
            lists.append((value, list(value)))
            inside = value
        elif isinstance(value, set):
            seen.add(id(value))
            sets.append((value, set(value)))
            return
        elif isinstance(value, tuple):
            inside = list(value)
        elif _is_plain_object(value):
            look(vars(value), depth)
            return
        else:
            return
        if depth < _DEPTH:
            for item in inside:
                look(item, depth + 1)

    for module in model.modules():
        look(module.__dict__, 0)
    gradients = tuple((p, p.requires_grad) for p in model.parameters() if p.is_leaf)
    return Kept(tuple(dicts), tuple(lists), tuple(sets), gradients)


_ATOMS = frozenset({int, float, bool, str, type(None), bytes, Tensor, nn.Parameter, torch.Size, torch.dtype})


def _is_plain_object(value: Any) -> bool:
    """Whether a value is an object of somebody's own class, which modules keep and ``forward`` may write to."""
    if isinstance(value, nn.Module | Tensor | type) or not hasattr(value, "__dict__"):
        return False
    return type(value).__module__.partition(".")[0] not in ("torch", "builtins", "numpy")


@contextmanager
def untouched(model: nn.Module) -> Iterator[Kept]:
    """Put back what is assigned to a model, its modes and the random state, whatever happens."""
    before = kept(model)
    with put_back(sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})):
        try:
            yield before
        finally:
            before.restore()


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same; a NaN, which equals nothing, is the same as another."""
    if torch.equal(one, other):
        return True
    can_be_nan = one.is_floating_point() or one.is_complex()
    return can_be_nan and one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


@dataclass(frozen=True)
class Values:
    """The values of all that a model holds, at one moment: a run moves statistics, and may write to parameters."""

    tensors: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, model: nn.Module, but: "Values | None" = None) -> "Values":
        """Remember the values of a model, but for the tensors that others remember."""
        known = {id(tensor) for tensor, _ in but.tensors} if but is not None else set()
        own = [*model.parameters(), *model.buffers()]
        own += [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
        with torch.no_grad():
            return cls(tuple((t, t.detach().clone()) for t in own if not t.is_meta and id(t) not in known))

    def changed(self) -> Iterator[Tensor]:
        """Yield the tensors that have other values now."""
        return (tensor for tensor, value in self.tensors if not same_values(tensor, value))

    def restore(self) -> None:
        """Put all values back."""
        with torch.no_grad():
            for tensor, value in self.tensors:
                if not same_values(tensor, value):
                    tensor.data.copy_(value)


@contextmanager
def values_untouched(model: nn.Module, but: Values | None = None) -> Iterator[Values]:
    """Put back the values, too, of all that a model holds; the tensors that others remember they put back."""
    values = Values.of(model, but)
    try:
        yield values
    finally:
        values.restore()
        if but is not None:
            but.restore()


def seed(number: int) -> None:
    """Start every source of random numbers anew."""
    seed_all(number)
    if torch.accelerator.is_available():
        torch.manual_seed(number)


def drawn() -> tuple[Any, ...]:
    """Return what changes where somebody draws a random number that no graph holds: Python's and numpy's."""
    array: Any = np.random.get_state()
    return random.getstate(), array[2], array[1].tobytes()


def keep_unused(gm: GraphModule, model: nn.Module) -> None:
    """Give a traced graph the parameters and kept buffers of its model that it holds nothing of the name of.

    Of layers that are not used only these are kept: nothing calls them.
    """
    known = gm.state_dict(keep_vars=True).keys()
    for path, module in modules_of(model):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            full = f"{path}.{name}" if path else name
            if tensor is None or is_lazy(tensor) or full in known or name in module._non_persistent_buffers_set:
                continue
            owner = _made(gm, path)
            group: dict[str, Any] = owner._parameters if name in module._parameters else owner._buffers
            group.setdefault(name, tensor)


def _made(owner: nn.Module, path: str) -> nn.Module:
    """Return the module at a path, with plain ones where there is none."""
    for name in path.split(".") if path else ():
        if owner._modules.get(name) is None:
            owner.add_module(name, nn.Module())
        owner = owner._modules[name]  # type: ignore[assignment]
    return owner
