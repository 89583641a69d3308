"""The graph module that tracing returns: the user's model goes on in it, its frozen norms, methods and numbers.

What it needs to know travels in its ``meta``, which every pass carries along.
"""

import inspect
import linecache
from types import FunctionType, MethodType
from typing import Any, Self
from weakref import finalize

from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx.graph import PythonCode
from torch.fx.graph_module import _loader

from nce_fx.batches import FIXED_SIZE, check_size
from nce_fx.copying import copy_graph
from nce_fx.paths import modules_of
from nce_fx.up_to_date import bring_up_to_date

FROZEN = "frozen"
"""In ``meta``: paths of modules that stay in evaluation mode when the model is trained."""
ORIGIN = "origin"
"""In ``meta``: the class of the user's model."""
ATTRIBUTES = "attributes"
"""In ``meta``: plain values that the user's model has beside its modules and tensors."""


_COMPILED = frozenset({"_graph", "_code", "_lineno_map", "_prologue_start", "_compiled_call_impl"})
"""What a graph module holds that is made of its graph."""


class TracedModule(GraphModule):
    """A graph module that is trained as its model is, and answers what its model's class answers."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; in words where its model wrote down another size of the batch."""
        bring_up_to_date(self)
        if FIXED_SIZE in self.meta:
            check_size((*args, *kwargs.values()), self)
        return super().__call__(*args, **kwargs)

    def recompile(self) -> PythonCode:
        """Generate the code anew; a call of it is a plain one: fx's own prints a second report of what it raises."""
        code = super().recompile()
        type(self).__call__ = TracedModule.__call__  # type: ignore[method-assign]
        forward = type(self).forward
        finalize(forward, _forget_source, forward.__code__.co_filename)
        return code

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but what the user's model keeps frozen."""
        super().train(mode)
        frozen = self.meta.get(FROZEN) if mode else None
        if frozen:
            for path, module in modules_of(self):
                if path in frozen:
                    module.training = False
        return self

    @property
    def graph(self) -> Graph:
        """The graph.

        PyTorch's older ONNX exporter takes a module with a ``graph`` for one of TorchScript, whose graphs say what goes
        in and out; all it looks for there are names that axes may be given by, beside those that it was given.
        """
        graph: Graph = self._graph
        vars(graph).setdefault("inputs", _no_names)
        vars(graph).setdefault("outputs", _no_names)
        return graph

    @graph.setter
    def graph(self, graph: Graph) -> None:
        GraphModule.graph.fset(self, graph)  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModule:
        """Return a copy with the same code; fx's own would generate and compile it anew, and keep every buffer."""
        return copy_graph(self, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what ``torch.save`` keeps: the graph, and what the module holds."""
        from nce_fx.pickling import lines_of, restored

        kept = {key: value for key, value in self.__dict__.items() if key not in _COMPILED}
        return restored, (TracedModule, type(self).__name__, kept, lines_of(self.graph))

    def __getattr__(self, name: str) -> Any:
        """Return what the graph has, else what the user's own model has under that name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            meta = self.__dict__.get("meta", {})
            if name in meta.get(ATTRIBUTES, ()):
                return meta[ATTRIBUTES][name]
            origin = meta.get(ORIGIN)
            if origin is None or name.startswith("__") or hasattr(nn.Module, name):
                raise
            return _of_class(self, origin, name)


def _forget_source(file: str) -> None:
    """Drop the source of a ``forward`` that is gone: fx keeps that of every graph for tracebacks, for ever."""
    _loader.eval_cache.pop(file, None)
    linecache.cache.pop(file, None)


def _no_names() -> tuple[str, ...]:
    return ()


def _of_class(gm: TracedModule, origin: type, name: str) -> Any:
    found = inspect.getattr_static(origin, name, None)
    if found is None:
        raise AttributeError(f"neither {origin.__name__} nor its graph has an attribute {name!r}")
    if isinstance(found, FunctionType):
        return MethodType(found, gm)
    if isinstance(found, property) and found.fget is not None:
        return found.fget(gm)
    return getattr(origin, name)


def kept_attributes(model: nn.Module) -> dict[str, Any]:
    """Return the numbers, words and containers of them that a model keeps beside its modules and tensors."""
    own = set(vars(nn.Module()))
    return {name: value for name, value in vars(model).items() if name not in own and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
