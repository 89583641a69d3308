"""Arguments of public functions: one of another kind than its annotation names is refused in words, before any work.

``nce_fx.quantize(model)`` says that ``model`` is to be traced first, ``nce_fx.resize(gm, {"stem": 4.0})`` that widths
are whole numbers. What an annotation does not tell apart (batches, losses, tables) is read further in.
"""

import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.jit import ScriptModule
from torch.nn.parameter import is_lazy

from nce_fx.errors import InputError
from nce_fx.up_to_date import bring_up_to_date

P = ParamSpec("P")
R = TypeVar("R")
_TRACE = "trace it first: gm = nce_fx.trace(model, example_inputs)"
_WANTED = {
    "GraphModule": f"a traced graph: {_TRACE.partition(': ')[2]}",
    "Module": "a torch.nn.Module, such as nce_fx.models.MODELS['resnet18']()",
    "QuantSpec": "a QuantSpec, such as nce_fx.QuantSpec(weight_bits=2)",
    "Budget": "a Budget, such as nce_fx.Budget(macs='0.8x')",
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "Path": "a path",
    "Iterable[str]": "a list of strings",
    "Mapping[str, int]": "whole numbers by name, such as {'stem': 24}",
}
"""By what an annotation says: what a message asks for."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function refuse arguments of another kind than it names.

    Raises:
        InputError: by the function that is made: an argument is of another kind.
    """
    names = tuple(inspect.signature(function).parameters)

    @cache
    def kind_of(name: str) -> Any:
        def named() -> None: ...

        named.__annotations__ = {key: kind for key, kind in function.__annotations__.items() if key == name}
        try:
            return get_type_hints(named, function.__globals__).get(name, Any)
        except NameError:
            return Any  # imported for the type checker alone

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
            kind = kind_of(name)
            if not _is(value, kind) or isinstance(value, ScriptModule):
                raise InputError(f"{function.__name__}: {name} {_said(value)}: {_advice(value, kind)}")
            if isinstance(value, GraphModule):
                bring_up_to_date(value)
            if kind is GraphModule and isinstance(value, GraphModule):
                if not any("tensor_meta" in node.meta or "val" in node.meta for node in value.graph.nodes):
                    raise InputError(f"{function.__name__}: no node of {name} has a shape: {_TRACE}")
            # What has shapes is lazy no more, and may have very many parameters.
            elif isinstance(value, nn.Module) and (lazy := [k for k, v in value.named_parameters() if is_lazy(v)]):
                raise InputError(
                    f"{function.__name__}: {lazy[0]} of {name} has no shape yet: run it once, model(*example_inputs)"
                )
        return function(*args, **kwargs)

    return called


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind, as far as looking at it has no effect."""
    if kind is Any:
        return True
    if _is_union(kind):
        return any(_is(value, each) for each in get_args(kind))
    if isinstance(kind, TypeVar):
        return _is(value, kind.__bound__ or Any)
    if getattr(kind, "_is_protocol", False):
        return value is not None
    if kind is float or kind is int:
        return isinstance(value, Real if kind is float else Integral) and not isinstance(value, bool)
    if kind is Path:
        return hasattr(value, "__fspath__")
    if _in_words(kind) == "Iterable[str]":
        # The letters of a string are hardly meant.
        return isinstance(value, Iterable) and not isinstance(value, str)
    if get_origin(kind) is Mapping:
        of_name, of_item = get_args(kind)
        return isinstance(value, Mapping) and all(_is(key, of_name) and _is(value[key], of_item) for key in value)
    return not isinstance(kind, type) or isinstance(value, kind)


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _said(value: Any) -> str:
    if isinstance(value, type):
        return f"is the class {value.__name__}"
    if isinstance(value, str | int | float | None) and len(repr(value)) < 60:
        return f"is {value!r}"
    return f"is of type {type(value).__name__}"


def _advice(value: Any, kind: Any) -> str:
    """Return what to give: by what was given where that tells, else by what is wanted."""
    if isinstance(value, ScriptModule):
        return "TorchScript has no Python left to trace; give the module it was made of"
    if isinstance(value, ExportedProgram):
        return "give its module: program.module()"
    options = [each for each in (get_args(kind) if _is_union(kind) else (kind,)) if each is not type(None)]
    options = [each.__bound__ if isinstance(each, TypeVar) else each for each in options]
    if isinstance(value, type) and any(isinstance(each, type) and issubclass(value, each) for each in options):
        return f"give one of it: {value.__name__}(...)"
    if isinstance(value, nn.Module) and GraphModule in options:
        return _TRACE
    return f"give {' or '.join(_WANTED.get(each, each) for each in map(_in_words, options))}"


def _in_words(kind: Any) -> str:
    """Return a kind as it is written, without the names of modules: ``Mapping[str, int]``."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is None:
        return str(getattr(kind, "__name__", kind))
    return f"{getattr(origin, '__name__', origin)}[{', '.join(map(_in_words, inside))}]"
