"""Graph modules as ``torch.save`` and ``torch.load`` take them: the graph itself, not code that is traced again.

Values of nodes are named by their nodes, functions of libraries by their names.
"""

import importlib
from dataclasses import dataclass
from functools import reduce
from types import FunctionType
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import _get_qualified_name, map_aggregate
from torch.fx.passes.shape_prop import TensorMetadata
from torch.types import py_sym_types

from nce_fx.by_mode import ByMode, ModeCode
from nce_fx.paths import called


@dataclass(frozen=True)
class Value:
    """Stands for the node of this name."""

    name: str


@dataclass(frozen=True)
class Function:
    """Stands for a function of a library, such as ``torch.conv2d`` or ``torch.ops.aten.conv2d.default``."""

    name: str

    def found(self) -> Any:
        """Return the function."""
        package, _, rest = self.name.rpartition(".")[0].partition(".")
        module = importlib.import_module(package or "builtins")
        return reduce(getattr, [*filter(None, rest.split(".")), self.name.rpartition(".")[2]], module)


@dataclass(frozen=True)
class Line:
    """A node, in the order of its graph."""

    name: str
    op: str
    target: Any
    args: Any
    kwargs: Any
    type: Any
    meta: dict[str, Any]


_KEPT = ("tensor_meta", "stack_trace", "type", "val")
"""What of a node's ``meta`` is kept."""


def lines_of(graph: Graph) -> list[Line]:
    """Return the nodes of a graph as values that can be pickled."""
    return [
        Line(
            node.name,
            node.op,
            _named(node.target),
            map_aggregate(node.args, _named),
            map_aggregate(node.kwargs, _named),
            node.type,
            {key: _plain(node.meta[key]) for key in _KEPT if key in node.meta and not _is_symbolic(node.meta[key])},
        )
        for node in graph.nodes
    ]


def graph_of(lines: list[Line]) -> Graph:
    """Return the graph that lines were made of."""
    graph = Graph()
    made: dict[str, Node] = {}

    def back(value: Any) -> Any:
        if isinstance(value, Value):
            return made[value.name]
        return value.found() if isinstance(value, Function) else value

    for line in lines:
        args: Any = map_aggregate(line.args, back)
        kwargs: Any = map_aggregate(line.kwargs, back)
        node = graph.create_node(line.op, back(line.target), args, kwargs, line.name, line.type)
        node.meta.update(line.meta)
        made[line.name] = node
    return graph


def restored(kind: type[GraphModule], name: str, state: dict[str, Any], lines: list[Line]) -> GraphModule:
    """Return a graph module with these attributes and this graph."""
    gm = kind(nn.Module(), Graph(), name)
    gm.__dict__.update(state)
    graph = graph_of(lines)
    if any(called(gm, node, ByMode) is not None for node in graph.nodes):
        graph.set_codegen(ModeCode())
    gm.graph = graph
    return gm


def _named(value: Any) -> Any:
    return Value(value.name) if isinstance(value, Node) else function(value)


def function(value: Any) -> Any:
    """Return what stands for a function that pickle may not find by itself; the value where it is none."""
    if isinstance(value, type) or not callable(value):
        return value
    # A function that another one made, as F.max_pool3d, is no attribute of its module by the name that it has.
    if isinstance(value, FunctionType) and ("<locals>" not in value.__qualname__ or value.__name__ == "<lambda>"):
        return value
    named = Function(_get_qualified_name(value))
    try:
        return named if named.found() is value else value
    except (AttributeError, ImportError):
        return value


def filled(kind: type, *values: Any) -> Any:
    """Return a tuple of a kind, with functions in the place of their names."""
    return kind(*(value.found() if isinstance(value, Function) else value for value in values))


def _plain(value: Any) -> Any:
    """Return what is known of a value without its memory format, which pickle does not take."""
    if isinstance(value, TensorMetadata):
        return value._replace(memory_format=None)
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return {key: _plain(item) for key, item in value.items()} if type(value) is dict else value


def _is_symbolic(value: Any) -> bool:
    """Whether a value, or one that a container of it holds, belongs to an export that is over."""
    if isinstance(value, list | tuple | dict):
        return any(map(_is_symbolic, value.values() if isinstance(value, dict) else value))
    return isinstance(value, py_sym_types) or type(value).__name__ == "FakeTensor"
