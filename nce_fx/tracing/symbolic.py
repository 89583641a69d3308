"""torch.fx's symbolic tracing, with the user's source lines, attention opened up, and leaves where it cannot enter."""

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.fx import GraphModule, Proxy

from nce_fx.errors import one_line
from nce_fx.ops import OPS, Op, Ops
from nce_fx.ops.liveness import has_an_effect, overwritten
from nce_fx.ops.work import ancestors
from nce_fx.traced import TracedModule
from nce_fx.tracing.attention_decomposition import attention_function_opened, can_open, in_example, open_attention
from nce_fx.tracing.checks import CHECKS, answered
from nce_fx.tracing.gradients import OwnGradient, mark
from nce_fx.tracing.inputs import Inputs
from nce_fx.tracing.modes import flags, place_flags
from nce_fx.tracing.preserved_state import Kept

_LEAVES = 64
_INNER = ("/torch/", "/nce_fx/tracing/")


_LITERALS = frozenset({int, float, bool, str, type(None)})
_SWITCHES = frozenset({bool, str, type(None), torch.dtype, torch.device})
"""Inputs that say what a model does; they are what they were in the example."""


class UntraceableError(Exception):
    """Symbolic tracing met something that it cannot follow; the message says what and where."""


class Value(Proxy):
    """Stands for a value."""

    @property
    def data(self) -> Any:
        """The value without its gradient; what is assigned to that of a parameter is read in its place from then on."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        if not self.tracer.overwrite(self, value):  # type: ignore[attr-defined]
            raise UntraceableError("forward assigns to the data of a tensor")


class Tracer(fx.Tracer):
    """Leaves torch's own layers whole, and modules that behave differently in training (dropout, stochastic depth)."""

    def __init__(
        self, inputs: Inputs, ops: Ops, leaves: frozenset[str] = frozenset(), *, overwrites: bool = True
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.ops = ops
        self.leaves = leaves
        self.thread = threading.get_ident()
        self.decided: list[int] = []
        self.checks: list[str] = []
        """Where ``forward`` checks values, which the graph does not."""
        self.stack: list[str] = []
        self.failed: str | None = None
        self.overwrites = overwrites
        """Whether what ``forward`` writes to a parameter is followed; else a module that writes is left whole."""
        self.read: dict[str, Any] = {}
        """What stands for each parameter that was read, by its path."""
        self.overwritten: set[int] = set()
        """The parameters that ``forward`` computes from others and writes down (by ``id``)."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether a module becomes one node."""
        op = self.ops.of_module(m)
        if module_qualified_name in self.leaves or (op is not None and op.name not in OPS.rows):
            return True
        if any(id(parameter) in self.overwritten for parameter in m._parameters.values()):
            return False
        if op is not None and op.catch == "inside":
            return False
        if super().is_leaf_module(m, module_qualified_name):
            # What PyTorch puts together of other modules hides the layers inside.
            return op is not None or not m._modules
        return type(m) in self.ops.spellings or _depends_on_mode(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Enter a module, or make it a node; remember where tracing failed."""
        if not self.is_here():
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if (
            self.ops.of_module(m) is self.ops["nn.MultiheadAttention"]
            and path not in self.leaves
            and can_open(m, args, kwargs, self.known)
        ):
            return open_attention(m, *args, **{**kwargs, "known": self.known})
        self.stack.append(path)
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None:
                self.failed = path
            raise
        self.stack.pop()
        return result

    def known(self, mask: Any) -> Any:
        """Return a mask as it is for the example inputs; ``None`` where modules make it."""
        return in_example(self.inputs.named, self.root, mask)

    def applies(self, query: Any) -> bool:
        """Whether a call is one that is traced, and not inside of what is left whole."""
        return self.is_here() and isinstance(query, Proxy)

    def is_here(self) -> bool:
        """Whether the thread that traces is the one that asks: what fx replaces meanwhile, all threads meet."""
        return threading.get_ident() == self.thread

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return what stands for an attribute of a module."""
        if not self.is_here():
            return attr_val
        self.read = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def overwrite(self, target: Any, value: Any) -> bool:
        """Read a value in the place of a parameter from now on, where ``forward`` computes it from others alone."""
        node = target.node
        while node.target == "detach":
            node = node.args[0]
        path = str(node.target)
        if not self.overwrites or node.op != "get_attr" or path not in self.read or not isinstance(value, Proxy):
            return False
        if any(source.op == node.op and source.target == path for source in ancestors([value.node])):
            return False
        self.overwritten.add(id(dict(self.root.named_parameters(remove_duplicate=False))[path]))
        self.read[path] = value.detach()
        return True

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Make an input of each argument that is given; the others keep their defaults."""
        filled = self.inputs.filled(
            {
                name: _spread(self.create_proxy("placeholder", name, (), {}), value)
                for name, value in self.inputs.named.items()
            }
        )
        forward = self.root.forward

        def call() -> Any:
            return forward(*filled.args, **filled.kwargs)

        return call, []

    def to_bool(self, obj: Proxy) -> bool:
        """Answer a check of values with what does not raise; nothing else is known of a value's truth."""
        answer = answered(sys._getframe(2), self.checks)
        return super().to_bool(obj) if answer is None else answer

    def proxy(self, node: fx.Node) -> Proxy:
        """Return what stands for the value of a node."""
        return Value(node, self)

    def create_arg(self, a: Any) -> Any:
        """Turn a value into an argument of a node; what nearly all are at once, which fx asks a dozen questions."""
        kind = type(a)
        if kind is Value or kind is Proxy:
            return a.node
        if kind is tuple:
            return tuple([self.create_arg(item) for item in a])
        return a if kind in _LITERALS else super().create_arg(a)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Proxy:
        """Record the user's own source line with every node."""
        if args[:2] == ("call_method", "copy_") and len(args[2]) > 1 and self.overwrite(*args[2][:2]):
            written: Proxy = args[2][0]
            return written
        proxy = super().create_proxy(*args, **kwargs)
        if not torch.is_grad_enabled():
            mark(proxy.node)
        frame = sys._getframe(1)
        while frame is not None and _is_inner(frame.f_code.co_filename):
            # Behind this one are those that asked for a trace, who wrote no line of the model.
            frame = None if frame.f_code is symbolic_graph.__code__ else frame.f_back  # type: ignore[assignment]
        if frame is not None:
            code = frame.f_code
            proxy.node.stack_trace = f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n'
        elif proxy.node.target is getattr and proxy.node.all_input_nodes:
            # An attribute becomes a node where it is used, one that forward returns when forward has ended.
            proxy.node.stack_trace = proxy.node.all_input_nodes[0].stack_trace
        return proxy


@contextmanager
def _own_gradients(tracer: Tracer) -> Iterator[None]:
    """Make one node of a function that has a gradient of its own, which would be lost inside of it."""
    entered = vars(torch.autograd.Function)["apply"]

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if tracer.is_here() and any(isinstance(a, Proxy) for a in given) and not any(map(_is_function, given)):
            return tracer.create_proxy("call_function", OwnGradient(cls), args, kwargs)
        return entered.__get__(None, cls)(*args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = entered  # type: ignore[method-assign]


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, Proxy | torch.Tensor)


def _spread(proxy: Any, value: Any) -> Any:
    """Return what stands for an input: a container of its items, and plain switches as they are."""
    kind = type(value)
    if kind in _SWITCHES:
        return value
    if kind in (dict, OrderedDict):
        return kind((key, _spread(proxy[key], item)) for key, item in value.items())
    if kind in (list, tuple):
        return kind(_spread(proxy[index], item) for index, item in enumerate(value))
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


def symbolic_graph(
    model: nn.Module, inputs: Inputs, before: Kept, following: Set[nn.Module], ops: Ops, *, enter: bool = True
) -> GraphModule:
    """Trace a model in its own mode; with ``enter=False`` leave whole what cannot be entered.

    Arguments that are not given keep their defaults, and are no inputs of the graph. What was assigned to the model
    meanwhile is put back. ``gm.meta["decided"]`` says whether the model branches on its mode.

    Raises:
        UntraceableError: the model, or its outermost module, cannot be followed.
    """
    leaves: frozenset[str] = frozenset()
    modes = [(module, module.training) for module in model.modules()]
    for _ in range(_LEAVES):
        tracer = Tracer(inputs, ops, leaves, overwrites=enter)
        try:
            with (
                torch.enable_grad(),
                flags(following, tracer.decided, tracer.is_here),
                _own_gradients(tracer),
                attention_function_opened(tracer.applies, tracer.known),
            ):
                graph = tracer.trace(model)
        except Exception as error:
            before.restore()
            if enter or tracer.failed is None or tracer.failed in leaves or not tracer.failed:
                raise UntraceableError(one_line(error, libraries=True)) from error
            leaves |= {tracer.failed}
            for module, mode in modes:
                module.training = mode
            continue
        gm = _graph_module(model, graph, before)
        changed = _read_what_was_written(gm, ops) | place_flags(gm, ops)
        if any(not node.users and node.op not in ("placeholder", "output") for node in graph.nodes):
            gm.graph.eliminate_dead_code(has_an_effect)
            changed = True
        if changed:
            gm.recompile()
        gm.meta["leaves"] = tuple(sorted(leaves))
        gm.meta["decided"] = bool(tracer.decided)
        gm.meta[CHECKS] = tuple(tracer.checks)
        return gm
    raise UntraceableError("too many modules cannot be entered")


def _read_what_was_written(gm: GraphModule, ops: Ops) -> bool:
    """Let what is read after a call has overwritten it be its result, the same tensor: ``y.add_(x)`` on a line of
    its own is ``y = y.add_(x)``. Returns whether anything changed.
    """
    changed = False
    steps = {node: step for step, node in enumerate(gm.graph.nodes)}
    for node, step in steps.items():
        for written in overwritten(gm, node) if _returns_its_input(ops.of(gm, node), node) else ():
            for user in [user for user in written.users if steps[user] > step]:
                user.replace_input_with(written, node)
                changed = True
    return changed


def _returns_its_input(op: Op | None, node: fx.Node) -> bool:
    """Whether a call returns the tensor that it overwrites, if any; not said of ``x += 1``: ``x`` may be a number."""
    python = str(node.target).startswith("__") or getattr(node.target, "__module__", "") == "_operator"
    return op is not None and "out" not in node.kwargs and not python


def _graph_module(model: nn.Module, graph: fx.Graph, before: Kept) -> GraphModule:
    """Return the graph module of a traced model, which is as it was but for the constants that fx keeps on it."""
    known = before.names(model)
    made = {
        str(node.target): vars(model)[str(node.target)]
        for node in graph.find_nodes(op="get_attr")
        if str(node.target) in vars(model) and str(node.target) not in known
    }
    before.restore()
    vars(model).update(made)
    try:
        return TracedModule(model, graph, type(model).__name__)
    finally:
        for name in made:
            del vars(model)[name]
