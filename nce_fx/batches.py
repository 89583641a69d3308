"""Batches as people have them, read for a model: what it is called with, and what its output is held against.

x                               inputs alone
(x, y)  [x, y]                  inputs and target; for a model of two inputs, both of them
(x, y, index)                   as many inputs as the model takes; the rest is the target, a tuple where it is several
((x, mask), y)  ({"x": x}, y)   inputs of any form, and a target of any form
{"x": x, "label": y}            by the names of the model's inputs; what has another name is the target

Where no name is an input's, the values of a dict are told by their form, if only one fits each input.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from nce_fx.errors import InputError, NceFxError, one_line
from nce_fx.frozen import Frozen

Pair = tuple[Any, Any]
"""(inputs, target): inputs are a tuple in the order of ``forward``, or a dict by its names."""

FIXED_SIZE = "batch"
"""In a graph's ``meta``: the size of the only batches that it takes, where its model writes that size down."""
MOST = 4096
"""So many batches are no calibration any more, but a loader without an end."""


def gathered(batches: Iterable[Any] | None) -> list[Any]:
    """Return batches as a list, from a list, a DataLoader, or a generator, which is then used up.

    Raises:
        InputError: what was given is one batch and not several, or does not end.
    """
    if batches is None:
        return []
    if isinstance(batches, Tensor | Mapping | str) or not hasattr(batches, "__iter__"):
        raise InputError(f"batches are {_kind(batches)}: give several batches, such as a list of them or a DataLoader")
    found = list(islice(iter(batches), MOST + 1))
    if len(found) > MOST:
        raise InputError(f"batches are more than {MOST}: give a few, such as itertools.islice(loader, 8)")
    return found


def read(batch: Any, model: nn.Module) -> Pair:
    """Return a batch as (inputs, target) for a model; the inputs of a graph always as a tuple.

    Raises:
        InputError: the model takes nothing of the kind, and the message says what it takes; or there is no sample.
    """
    form = Form.of(model)
    for inputs, target in form.readings(batch):
        placed = form.placed(inputs)
        if placed is not None:
            values = tuple(placed.values()) if isinstance(placed, Mapping) else placed
            if leading_size(values) == 0:
                raise InputError(f"a batch holds no sample, {_kind(batch)}: leave it out")
            check_size(values, model)
            return placed, target
    wanted = form.wanted()
    raise InputError(
        f"a batch is {_kind(batch)}, which {type(model).__name__} does not take: give {wanted}, ({wanted}, target), "
        "or a dict by these names"
    )


def named(inputs: Any, model: nn.Module) -> dict[str, Any]:
    """Return the inputs of a batch by the names that the model has for them."""
    names = (slot.name for slot in Form.of(model).slots)
    return dict(inputs) if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=False))


@contextmanager
def on_a_batch(inputs: Any) -> Iterator[None]:
    """Say on which batch a model fails: most often the data are of another shape, or a last batch is of one sample.

    Raises:
        InputError: instead of what the model raises, which is its cause.
    """
    try:
        yield
    except (NceFxError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        parts = tuple(inputs.values()) if isinstance(inputs, Mapping) else inputs
        alone = leading_size(parts if isinstance(parts, (tuple, list)) else (parts,)) == 1
        hint = "; a batch of one may be too small: choose another batch size" if alone else ""
        what = f"{_kind(inputs)}: {one_line(error, libraries=True)}{hint}"
        raise InputError(f"the model fails on a batch, {what}") from error


def leading_size(values: Iterable[Any]) -> int | None:
    """Return the length of the first axis of the first tensor among inputs, or of a list that is given; ``None``: none.

    For example 16 of ``(torch.randn(16, 3, 32, 32),)``.
    """
    for value in values:
        if isinstance(value, Tensor) and value.dim():
            return int(value.shape[0])
        if isinstance(value, list) and not value:
            return 0
        inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        found = leading_size(inside)
        if found is not None:
            return found
    return None


def check_size(values: Iterable[Any], model: nn.Module) -> None:
    """Check that a graph takes batches of this size.

    Raises:
        InputError: its model writes another size down.
    """
    only = model.meta.get(FIXED_SIZE) if isinstance(model, GraphModule) else None
    if only is not None and (size := leading_size(values)) not in (only, None):
        raise InputError(
            f"a batch of {size}: this graph takes batches of {only} alone, for what its model does depends on their "
            f"size: trace it with a batch of {size}"
        )


def samples_in(inputs: Any, target: Any = None) -> int:
    """Return how many samples a batch has: the length of its target where that is a tensor, else of its inputs.

    Raises:
        InputError: neither holds a tensor whose first axis is the batch.
    """
    if isinstance(target, Tensor) and target.dim():
        return len(target)
    first = inputs
    while isinstance(first, tuple | Mapping) and len(first):
        first = next(iter(first.values())) if isinstance(first, Mapping) else first[0]
    if isinstance(first, list) and first:
        # A list of samples has as many targets; a list of features has batches in it.
        if isinstance(target, list | tuple) and len(target) == len(first):
            return len(first)
        sizes = {len(item) for item in first if isinstance(item, Tensor) and item.dim()}
        return sizes.pop() if len(sizes) == 1 else len(first)
    leaf = next((leaf for leaf in tree_leaves((inputs, target)) if isinstance(leaf, Tensor) and leaf.dim()), None)
    if leaf is None:
        raise InputError(f"a batch of {_kind(inputs)} has no size: give tensors whose first axis is the batch")
    return len(leaf)


@dataclass(frozen=True)
class Slot(Frozen):
    """One input of a model."""

    name: str
    required: bool
    like: Mapping[str, Any] | None = None
    """Its signature as it was traced, see `nce_fx.signature`; ``None`` where nothing is known."""

    def fits(self, value: Any) -> bool:
        """Whether a value has the form of the one that was traced; sizes may be others."""
        if self.like is None:
            return True
        return _fits(value, self.like)

    def __str__(self) -> str:
        if self.like is not None and "tensor" in self.like:
            return f"{self.name} {self.like['dtype']} {'x'.join(map(str, self.like['tensor'])) or 'scalar'}"
        return self.name


@dataclass(frozen=True)
class Form:
    """What a model takes."""

    slots: tuple[Slot, ...]
    is_graph: bool
    loose: bool = False
    """Whether it takes more than it names."""

    @staticmethod
    def of(model: nn.Module) -> "Form":
        """Return the inputs of a graph as it was traced, or of a module as its ``forward`` names them."""
        if isinstance(model, GraphModule):
            nodes = model.graph.find_nodes(op="placeholder")
            known = model.meta.get("inputs") or ()
            likes = known if len(known) == len(nodes) else [None] * len(nodes)
            return Form(
                tuple(
                    Slot(str(node.target).lstrip("*"), not node.args, like)
                    for node, like in zip(nodes, likes, strict=True)
                ),
                True,
            )
        parameters = inspect.signature(model.forward).parameters.values()
        plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        slots = tuple(Slot(p.name, p.default is p.empty) for p in plain)
        return Form(slots, False, len(plain) < len(parameters))

    @property
    def required(self) -> int:
        """How many inputs must be given."""
        return sum(slot.required for slot in self.slots)

    def wanted(self) -> str:
        """Return what the model takes, in words."""
        names = ", ".join(map(str, self.slots))
        return f"({names})" if len(self.slots) != 1 else names

    def readings(self, batch: Any) -> Iterator[Pair]:
        """Yield what may be inputs and target in a batch, the likeliest first."""
        if isinstance(batch, Mapping):
            yield from self._by_name(batch)
            yield from self._by_form(batch)
        elif isinstance(batch, tuple | list) and len(batch):
            first, rest = batch[0], batch[1:]
            if isinstance(first, tuple | list | Mapping):
                for inputs in self._nested(first):
                    yield inputs, _one(rest)
            most = len(self.slots) if self.is_graph else max(self.required, 1)
            for count in range(min(len(batch) - 1, max(most, 1)), 0, -1):
                yield tuple(batch[:count]), _one(batch[count:])
            yield tuple(batch), None
            yield (batch,), None
        else:
            yield (batch,), None

    def _nested(self, inputs: Any) -> Iterator[Any]:
        if isinstance(inputs, Mapping):
            yield from (found for found, rest in self._by_name(inputs) if rest is None)
            return
        if self.slots and self.slots[0].like is not None and not self.slots[0].like.keys() & {"tensor", "value"}:
            yield (inputs,)
        yield tuple(inputs)
        yield (inputs,)

    def _by_name(self, batch: Mapping[Any, Any]) -> Iterator[Pair]:
        own = {slot.name: batch[slot.name] for slot in self.slots if slot.name in batch}
        if own:
            yield own, _rest(batch, own)
        like = self.slots[0].like if self.slots else None
        if like is not None and "dict" in like:
            inside = {name: batch[name] for name in like["dict"] if name in batch}
            yield (inside,), _rest(batch, inside)
        elif self.loose and not own:
            yield dict(batch), None
        elif not self.is_graph and len(self.slots) == 1 and not own:
            yield (batch,), None

    def _by_form(self, batch: Mapping[Any, Any]) -> Iterator[Pair]:
        """The values that alone have the form of an input."""
        if any(slot.like is None for slot in self.slots):
            return
        found = [[name for name, value in batch.items() if slot.fits(value)] for slot in self.slots]
        if all(len(names) == 1 for names in found) and len({names[0] for names in found}) == len(found):
            own = dict.fromkeys(names[0] for names in found)
            yield tuple(batch[name] for name in own), _rest(batch, own)

    def placed(self, inputs: Any) -> Any:
        """Return inputs as the model is called with them; ``None`` where it does not take them."""
        if isinstance(inputs, Mapping):
            if any(slot.required and slot.name not in inputs for slot in self.slots):
                return None
            if not all(slot.fits(inputs[slot.name]) for slot in self.slots if slot.name in inputs):
                return None
            if not self.is_graph:
                return dict(inputs)
            given = [slot.name in inputs for slot in self.slots]
            # A graph is run by position: a gap would need what it keeps as a default.
            held = tuple(inputs[slot.name] for slot in self.slots if slot.name in inputs)
            return held if given == sorted(given, reverse=True) else None
        if not self.required <= len(inputs) <= (len(self.slots) if not self.loose else len(inputs)):
            return None
        fits = all(slot.fits(value) for slot, value in zip(self.slots, inputs, strict=False))
        return tuple(inputs) if fits else None


def _one(rest: Any) -> Any:
    """The target that is left: nothing, itself, or several."""
    return None if not len(rest) else rest[0] if len(rest) == 1 else tuple(rest)


def _rest(batch: Mapping[Any, Any], own: Mapping[Any, Any]) -> Any:
    rest = {name: value for name, value in batch.items() if name not in own}
    return None if not rest else next(iter(rest.values())) if len(rest) == 1 else rest


def _fits(value: Any, like: Mapping[str, Any]) -> bool:
    if "tensor" in like:
        if not isinstance(value, Tensor) or value.dim() != len(like["tensor"]):
            return False
        kind = getattr(torch, str(like["dtype"]), torch.int64)
        return (value.is_floating_point() or value.is_complex()) == (kind.is_floating_point or kind.is_complex)
    if "dict" in like:
        return isinstance(value, Mapping) and all(
            name in value and _fits(value[name], item) for name, item in like["dict"].items()
        )
    if "list" in like or "tuple" in like:
        items = like.get("list", like.get("tuple"))
        # fx has as many items as were traced.
        return (
            isinstance(value, list | tuple)
            and len(value) == len(items or ())
            and all(_fits(one, item) for one, item in zip(value, items or (), strict=True))
        )
    return isinstance(value, type(like["value"])) and bool(value == like["value"])


def _kind(value: Any) -> str:
    """A value in words: ``a float32 tensor 8x3x16x16``, ``a tuple (...)``."""
    if isinstance(value, Tensor):
        return (
            f"a {str(value.dtype).removeprefix('torch.')} tensor {'x'.join(map(str, value.shape)) or 'of one number'}"
        )
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(f'{key}: {_kind(item)}' for key, item in islice(value.items(), 6)) or 'nothing'}"
    if isinstance(value, tuple | list):
        inside = ", ".join(map(_kind, islice(value, 6))) + (", ..." if len(value) > 6 else "")
        return f"a {'list' if isinstance(value, list) else 'tuple'} ({inside or 'empty'})"
    return f"of type {type(value).__name__}"
