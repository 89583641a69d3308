"""What a model is called with: example inputs in any form, as the arguments of its ``forward`` by name.

x                            one tensor
(x, y)  [x, y]               in the order of ``forward``
{"image": x, "mask": y}      by name; what is left out keeps its default
{"image": x}                 one dict, where ``forward`` has one argument and none of these names
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nce_fx.errors import TraceError


class UnsuitableError(TraceError):
    """The example inputs do not fit the model: no other way of tracing will help."""


@dataclass(frozen=True)
class Inputs:
    """One call of a model, and the value of each argument that its ``forward`` is given."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    named: Mapping[str, Any]
    """Name of an input of the graph -> its value, in the order of ``forward``."""
    bound: inspect.BoundArguments
    hint: str = ""
    """What to do if the model does not take them."""

    @property
    def values(self) -> tuple[Any, ...]:
        """The inputs of the graph, in its order."""
        return tuple(self.named.values())

    def filled(self, values: Mapping[str, Any]) -> inspect.BoundArguments:
        """Return the arguments of ``forward`` with other values for the inputs of the graph."""
        filled = copy.copy(self.bound)
        filled.arguments = dict(self.bound.arguments)
        for name, value in self.bound.arguments.items():
            kind = self.bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                filled.arguments[name] = tuple(values[f"{name}_{index}"] for index in range(len(value)))
            elif kind is inspect.Parameter.VAR_KEYWORD:
                filled.arguments[name] = {key: values[key] for key in value}
            else:
                filled.arguments[name] = values[name]
        return filled


def bind_inputs(model: nn.Module, example_inputs: Any) -> Inputs:
    """Return example inputs as arguments of a model.

    Raises:
        UnsuitableError: its ``forward`` does not take them; the message says what it takes.
    """
    given = inspect.signature(model.forward)
    args, kwargs = _arguments(given, example_inputs)
    try:
        bound = given.bind(*args, **kwargs)
    except TypeError as error:
        raise UnsuitableError(
            f"{type(model).__name__} does not take the example inputs ({shapes(example_inputs)}): {error}; its "
            f"forward is {given}: give a tuple in this order, or a dict by these names"
        ) from None
    one_dict = isinstance(example_inputs, Mapping) and not kwargs
    hint = f"; it was given one dict: its forward is {given}, give a dict by these names" if one_dict else ""
    return Inputs(args, kwargs, dict(_named(given, bound)), bound, hint)


def _arguments(given: inspect.Signature, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        parameters = given.parameters.values()
        plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        others = set(example) - set(plain)
        loose = any(p.kind is p.VAR_KEYWORD for p in parameters) and all(isinstance(name, str) for name in example)
        if not others or (loose and others != set(example)):
            return (), dict(example)
        needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        if len(needed) <= 1 and others == set(example) and len(plain) + len(needed):
            return (example,), {}
        return (), dict(example)
    if isinstance(example, torch.Tensor) or not isinstance(example, tuple | list):
        return (example,), {}
    return tuple(example), {}


def _named(given: inspect.Signature, bound: inspect.BoundArguments) -> Iterator[tuple[str, Any]]:
    """Yield the inputs of a graph: an argument each, and each item of ``*args`` and ``**kwargs``."""
    for name, value in bound.arguments.items():
        kind = given.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((f"{name}_{index}", item) for index, item in enumerate(value))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        else:
            yield name, value


def shapes(value: Any) -> str:
    """Return the shapes of tensors in words, such as ``2x3x8x8, mask 2x8``."""
    if isinstance(value, torch.Tensor):
        return "x".join(map(str, value.shape)) or "a number"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shapes(item)}".strip() for key, item in value.items())
    return ", ".join(filter(None, map(shapes, value))) if isinstance(value, tuple | list) else ""
