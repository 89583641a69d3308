"""torch.fx's symbolic tracing, with the user's source lines, attention opened up, and leaves where it cannot enter."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx import GraphModule, Node, Proxy

from nce_fx.custom import rule_of_module
from nce_fx.errors import one_line
from nce_fx.tracing.attention import can_open, open_attention

_LEAVES = 64
_INNER = ("/torch/", "/nce_fx/tracing/")


_ENTERED = (
    nn.Flatten,
    nn.Unflatten,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
"""torch's own modules that a graph must not hide: sizes written down in them, layers inside them."""

_LITERALS = frozenset({int, float, bool, str, type(None)})


class UntraceableError(Exception):
    """Symbolic tracing met something that it cannot follow; the message says what and where."""


class Tracer(fx.Tracer):
    """Leaves torch's own layers whole, and modules that behave differently in training (dropout, stochastic depth)."""

    def __init__(self, leaves: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.leaves = leaves
        self.stack: list[str] = []
        self.failed: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether a module becomes one node."""
        if isinstance(m, _ENTERED) and module_qualified_name not in self.leaves:
            return False
        return (
            module_qualified_name in self.leaves
            or super().is_leaf_module(m, module_qualified_name)
            or rule_of_module(type(m)) is not None
            or _depends_on_mode(m)
        )

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Enter a module, or make it a node; remember where tracing failed."""
        path = self.path_of_module(m)
        if isinstance(m, nn.MultiheadAttention) and path not in self.leaves and can_open(m, args, kwargs):
            return open_attention(m, *args, **kwargs)
        self.stack.append(path)
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None:
                self.failed = path
            raise
        self.stack.pop()
        return result

    def create_arg(self, a: Any) -> Any:
        """Turn a value into an argument of a node; what nearly all are at once, which fx asks a dozen questions."""
        kind = type(a)
        if kind is Proxy:
            return a.node
        if kind is tuple:
            return tuple([self.create_arg(item) for item in a])
        return a if kind in _LITERALS else super().create_arg(a)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Proxy:
        """Record the user's own source line with every node."""
        proxy = super().create_proxy(*args, **kwargs)
        frame = sys._getframe(1)
        while frame is not None and _is_inner(frame.f_code.co_filename):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None:
            code = frame.f_code
            proxy.node.stack_trace = f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n'
        return proxy


@cache
def _is_inner(file: str) -> bool:
    return any(part in file for part in _INNER)


def _depends_on_mode(m: nn.Module) -> bool:
    """Whether a module without parameters or children reads ``self.training``."""
    if m._modules or m._parameters or m._buffers:
        return False
    code = getattr(type(m).forward, "__code__", None)
    return code is not None and "training" in code.co_names


def symbolic_graph(model: nn.Module, inputs: int, *, enter: bool = True) -> GraphModule:
    """Trace a model that is given so many inputs; with ``enter=False`` leave whole what cannot be entered.

    Arguments that are not given keep their defaults, and are no inputs of the graph.

    Raises:
        UntraceableError: the model, or its outermost module, cannot be followed.
    """
    leaves: frozenset[str] = frozenset()
    defaults = _defaults(model, inputs)
    for _ in range(_LEAVES):
        tracer = Tracer(leaves)
        try:
            graph = tracer.trace(model, concrete_args=defaults or None)
        except Exception as error:
            if enter or tracer.failed is None or tracer.failed in leaves or not tracer.failed:
                raise UntraceableError(one_line(error, libraries=True)) from error
            leaves |= {tracer.failed}
            continue
        _drop_defaults(graph, len(defaults))
        gm = GraphModule(tracer.root, graph, type(model).__name__)
        if any(not node.users and node.op not in ("placeholder", "output") for node in graph.nodes):
            gm.graph.eliminate_dead_code(lambda node: node.is_impure() or _writes(node))
            gm.recompile()
        gm.meta["leaves"] = tuple(sorted(leaves))
        _dropout_modules(gm, model.training)
        return gm
    raise UntraceableError("too many modules cannot be entered")


def _writes(node: Node) -> bool:
    """Whether a node changes one of its inputs in place, so that it does something though nobody reads its result."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_method":
        return (name.endswith("_") and not name.startswith("__")) or name in ("__setitem__", "__iadd__", "__imul__")
    in_place = name == "setitem" or name.endswith("_") or bool(node.kwargs.get("inplace") or node.kwargs.get("out"))
    return node.op == "call_function" and in_place


def _defaults(model: nn.Module, inputs: int) -> dict[str, Any]:
    """Return the arguments of a model that are not given, with their defaults."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return {p.name: p.default for p in plain[inputs:] if p.default is not p.empty}


def _drop_defaults(graph: fx.Graph, count: int) -> None:
    """Take out the inputs that stand for defaults, and the assertions that fx puts on them."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for placeholder in placeholders[len(placeholders) - count :]:
        for user in list(placeholder.users):
            for check in list(user.users):
                graph.erase_node(check)
            graph.erase_node(user)
        graph.erase_node(placeholder)


def _dropout_modules(gm: GraphModule, training: bool) -> None:
    """Make modules of dropout functions whose flag was written into the graph, so that they follow the mode."""
    kinds = {F.dropout: nn.Dropout, F.dropout2d: nn.Dropout2d, F.dropout1d: nn.Dropout1d, torch.dropout: nn.Dropout}
    changed = False
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node.target not in kinds:
            continue
        p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        flag = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
        if flag is training:
            _as_module(gm, node, kinds[node.target](p))
            changed = True
    if changed:
        gm.recompile()


def _as_module(gm: GraphModule, node: Node, module: nn.Module) -> None:
    name = f"{node.name}_module"
    gm.add_submodule(name, module)
    with gm.graph.inserting_before(node):
        new = gm.graph.call_module(name, (node.args[0],))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    gm.graph.erase_node(node)
